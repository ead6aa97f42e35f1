"""Evaluation: an arm's outputs on the test set and their scores, and what these say about the arms of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from igds_utils.config.settings import TaskConfig
from igds_utils.core.store import content_hash
from igds_utils.data.metrics import pass_at_k
from igds_utils.data.stats import holm, interval, paired_difference
from igds_utils.engine import distributed
from igds_utils.engine.prompts import encode, encode_all, evaluation_prompt
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from igds_utils.engine.lm import LM

DRAWS = 5  # of Random: with fewer the luck of drawing and training is not known, and nothing is judged against it
REFERENCES = ("random", "full", "original")  # with which every arm is compared
Question = tuple[Example, str]  # a test example and its rendered prompt


def questions(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], config: TaskConfig
) -> list[Question]:
    """The test examples with their prompts, the longest first."""
    texts = [
        evaluation_prompt(task, example, tokenizer, config.rendering, config.shots, config.max_prompt_tokens)
        for example in examples
    ]
    lengths = map(len, encode_all(tokenizer, texts))
    longest_first = sorted(zip(lengths, examples, texts, strict=True), key=lambda one: -one[0])
    return [(example, text) for _, example, text in longest_first]


def rows_that_fit(lm: LM, asked: Sequence[Question], config: TaskConfig, cache_gb: float) -> int:
    """How many answers to `questions` may decode together, as in the causal filter (`intervention.cache_gb`)."""
    from igds_utils.engine import generation

    return generation.rows_that_fit(lm, len(encode(lm.tokenizer, asked[0][1])) + config.max_new_tokens, cache_gb)


def batches(asked: Sequence[Question], config: TaskConfig, rows: int) -> Iterator[Sequence[Question]]:
    """Questions whose answers decode together, at least one batch for each process that shares the work."""
    from igds_utils.engine.batching import even_chunks

    share = math.ceil(len(asked) / distributed.processes())
    return even_chunks(asked, max(1, min(share, rows // config.samples)))


def answer(
    lm: LM, task: Task, asked: Sequence[Question], config: TaskConfig, rows: int, seed: int, arm: str
) -> list[pd.DataFrame]:
    """`config.samples` outputs for each question, in a table of its own: (sample_id, k, output), k from 0.

    One sample is decoded greedily; more are drawn with the preset's temperature and top-p, each from a random stream
    of its own for (seed, arm, example, k): which answers decode together changes none of them.
    """
    from igds_utils.engine.generation import Sampling, generate

    sampling = None
    if config.samples > 1:
        seeds = [f"{task.name}/{arm}/{seed}/{example.id}" for example, _ in asked]
        sampling = Sampling(config.temperature, config.top_p, seeds)
    texts = [text for _, text in asked]
    outputs = generate(lm, texts, config.max_new_tokens, task.stops, rows, sampling, config.samples)
    return [
        pd.DataFrame({"sample_id": example.id, "k": range(len(drawn)), "output": drawn})
        for (example, _), drawn in zip(asked, outputs, strict=True)
    ]


def in_order(outputs: pd.DataFrame) -> pd.DataFrame:
    """Outputs as they are stored: by sample id, then by k."""
    return outputs.sort_values(["sample_id", "k"], kind="stable", ignore_index=True)


def decoding(task: Task, config: TaskConfig) -> dict[str, Any]:
    """What stored outputs depend on beside the model and the test set."""
    names = ("rendering", "shots", "max_prompt_tokens", "max_new_tokens", "samples", "temperature", "top_p")
    draws = {"draws": "one stream a sample and k"} if config.samples > 1 else {}
    return {"wording": content_hash(task.wording), **{name: getattr(config, name) for name in names}} | draws


def score_outputs(task: Task, examples: Sequence[Example], outputs: pd.DataFrame) -> pd.DataFrame:
    """Scores of every example: sample_id, output (its first), one column a metric (mean over its outputs), score.

    outputs: as `answer` gives them. `score` is the task's own metric; of n outputs' accuracy it is pass@n (unbiased).
    Raises `ValueError` unless all examples, and only they, have the same number of outputs.
    """
    ids = [example.id for example in examples]
    drawn = outputs.sort_values("k").groupby("sample_id")["output"].agg(list)
    if strangers := sorted(set(drawn.index) - set(ids)):
        raise ValueError(
            f"outputs of {strangers[0]!r}, which is none of the {len(ids)} examples: they are of another set"
        )
    counts = drawn.map(len).reindex(ids, fill_value=0)
    n = max(1, int(counts.iloc[0]))
    if (wrong := counts[counts != n]).size:
        raise ValueError(
            f"{wrong.index[0]} has {wrong.iloc[0]} outputs, the first example {n}: generate them again"
        )
    texts = drawn[ids].explode()
    scored = pd.DataFrame(task.score_all(list(texts), [example for example in examples for _ in range(n)]))
    metrics = scored.groupby(texts.index, sort=False)
    main = metrics[task.metric]
    score = main.sum().map(lambda right: pass_at_k(n, int(right), n)) if task.metric == "accuracy" else main.mean()
    table = metrics.mean().assign(score=score).rename_axis("sample_id").reset_index()
    table.insert(1, "output", drawn[ids].str[0].to_numpy())
    return table


def corpus_scores(
    task: Task, examples: Sequence[Example], scored: pd.DataFrame
) -> dict[str, dict[str, float]]:
    """Arm -> metrics of its first outputs as one corpus (chrF, BLEU); none where the task's metric has no such form.

    scored: rows of `score_outputs` for all examples of several arms, with a column arm.
    """
    found = {}
    for arm, rows in scored.groupby("arm", sort=False):
        outputs = rows.set_index("sample_id")["output"].loc[[example.id for example in examples]]
        if made := task.score_corpus(outputs.tolist(), examples):
            found[arm] = made
    return found


# ---- the arms of a task compared -------------------------------------------------------------------------


def summarise(
    evaluation: pd.DataFrame,
    n_train: dict[str, int],
    main_ratio: float,
    logs: dict[str, pd.DataFrame],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    likelihoods: Mapping[str, pd.DataFrame] | None = None,
) -> list[dict]:
    """One record per arm, seeds of an arm pooled: its score and its paired differences (the numbers of Table 2).

    evaluation: arm, selector, ratio, seed, sample_id, score. n_train: arm -> samples it was trained on. main_ratio: at
    which all selectors are compared. logs, likelihoods: log.parquet and likelihoods.parquet of the arms that have one.

    A record holds arm, selector, ratio, main (whether it is at the main ratio, or has none), seeds, by_seed (scores),
    n_train; target_tokens and steps (of one training, mean over seeds); n (test samples); score, low, high (over test
    samples); gain_over_full (percent); above_random (how many of Random's draws score lower); and against random (of
    the same ratio), full, original, for IGDS also every other arm of its ratio: `vs_random`, `vs_random_low`,
    `vs_random_high`, `vs_random_judged` (whether both were trained twice or more, Random `DRAWS` times) and, if so,
    `vs_random_p` (`paired_difference`; of the three references Holm-adjusted over arms). Where all arms have
    likelihoods, the same for loglik (nats per target token): loglik, loglik_low, loglik_vs_random etc.
    What cannot be compared is None; JSON can hold the result.
    """
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    measures = {"": "score"}
    if likelihoods and set(likelihoods) >= set(evaluation["arm"]):
        known = pd.concat(likelihoods, names=["arm"]).reset_index("arm")
        evaluation = evaluation.merge(known, on=["arm", "sample_id"], how="left", validate="many_to_one")
        measures["loglik_"] = "loglik"
    groups = {  # no ratio: nothing was selected, or all
        (selector, float(ratio) if "@" in frame["arm"].iloc[0] else None): frame
        for (selector, ratio), frame in evaluation.groupby(["selector", "ratio"], sort=True, dropna=False)
    }
    tables = {
        prefix: {key: _by_seed(frame, measure) for key, frame in groups.items()}
        for prefix, measure in measures.items()
    }
    full, records = tables[""].get(("full", None)), []
    for (selector, ratio), frame in groups.items():
        scores, random = tables[""][selector, ratio], tables[""].get(("random", ratio))
        trained = [logs[arm] for arm in frame["arm"].unique() if arm in logs]
        arm = selector if ratio is None else f"{selector}@{ratio:g}"
        record = {
            "arm": arm, "selector": selector, "ratio": ratio, "main": ratio is None or ratio == main_ratio,
            "seeds": [int(s) for s in scores.columns], "by_seed": [float(s) for s in scores.mean()],
            "n_train": n_train.get(arm),
            "target_tokens": fmean(log["target_tokens"].sum() for log in trained) if trained else None,
            "steps": fmean(map(len, trained)) if trained else None, "n": len(scores),
        }  # fmt: skip
        references = {"random": ("random", ratio), "full": ("full", None), "original": ("original", None)}
        if selector == "igds":
            others = [key for key in groups if key[1] in (None, ratio) and key[0] not in (*REFERENCES, "igds")]
            references |= {other[0]: other for other in others}
        for prefix, of_arms in tables.items():
            found = interval(of_arms[selector, ratio].mean(axis=1), **options)
            names = (measures[prefix], f"{prefix}low", f"{prefix}high")
            record |= dict(zip(names, map(_plain, found), strict=True))
            for name, key in references.items():
                record |= _versus(f"{prefix}vs_{name}", of_arms, (selector, ratio), key, options)
        mean, of_full = record["score"], 0 if full is None else float(full.to_numpy().mean())
        record["gain_over_full"] = 100 * (mean / of_full - 1) if of_full else None
        compared = random is not None and selector != "random"
        record["above_random"] = int((random.mean() < mean).sum()) if compared else None
        records.append(record)
    for field in [f"{prefix}vs_{name}_p" for prefix in tables for name in REFERENCES]:
        raw = pd.Series([record[field] for record in records], dtype=float)
        for record, adjusted in zip(records, holm(raw), strict=True):
            record[field] = _plain(adjusted)
    return records


def checks(
    evaluation: pd.DataFrame, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[dict]:
    """Whether a task can tell data apart: full - original, clean - corrupted must lie above zero with their interval.

    A record holds name, gain, low, high (units of the metric) and passed, which is None where an arm was trained once.
    """
    by_arm = {arm: _model(arm, _by_seed(frame)) for arm, frame in evaluation.groupby("selector")}
    made = []
    for better, worse in (("full", "original"), ("clean", "corrupted")):
        if better in by_arm and worse in by_arm:
            found = paired_difference(by_arm[better], by_arm[worse], confidence, resamples, seed)
            row = {"name": f"{better} - {worse}", "gain": found.mean, "low": found.low, "high": found.high}
            made.append(row | {"passed": found.low > 0 if found.judged else None})
    return made


def _by_seed(evaluation: pd.DataFrame, measure: str = "score") -> pd.DataFrame:
    """A measure of one arm: a row per test sample, a column per training seed."""
    return evaluation.groupby(["sample_id", "seed"])[measure].mean().unstack()


def _model(selector: str, scores: pd.DataFrame) -> pd.DataFrame | pd.Series:
    """What `paired_difference` compares: an arm by its trainings, the untrained model as it stands."""
    return scores.iloc[:, 0] if selector == "original" else scores


def _versus(name: str, tables: dict, arm: tuple, reference: tuple, options: dict) -> dict:
    fields = [f"{name}{part}" for part in ("", "_low", "_high", "_p", "_judged")]
    if reference == arm or reference not in tables:
        return dict.fromkeys(fields)
    found = paired_difference(*(_model(key[0], tables[key]) for key in (arm, reference)), **options)
    judged = found.judged and (reference[0] != "random" or found.trainings[1] >= DRAWS)
    values = (*map(_plain, found[:3]), found.p_value if judged else None, judged)
    return dict(zip(fields, values, strict=True))


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
