"""An arm's outputs on the test set and their scores, and the arms of a task compared."""

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
from igds_utils.engine.prompts import encode_all, evaluation_prompt
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from igds_utils.engine.lm import LM

DRAWS = 5  # of Random: with fewer, the luck of drawing and training is not known: nothing is judged
Question = tuple[Example, str]  # a test example and its rendered prompt


def questions(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], config: TaskConfig
) -> list[Question]:
    """The test examples with their prompts."""
    options = tokenizer, config.rendering, config.shots, config.max_prompt_tokens
    return [(example, evaluation_prompt(task, example, *options)) for example in examples]


def batches(
    lm: LM, asked: Sequence[Question], config: TaskConfig, cache_gb: float
) -> Iterator[Sequence[Question]]:
    """Questions whose answers decode together: `cache_gb` holds them, and each process has some."""
    from igds_utils.engine import batching, generation

    prompts = encode_all(lm.tokenizer, [text for _, text in asked])
    longest = max(map(len, prompts)) + config.max_new_tokens
    fit = generation.rows_that_fit(lm, longest, cache_gb) // config.samples
    share = math.ceil(len(asked) / distributed.processes())
    return batching.even_chunks(asked, max(1, min(share, fit)))


def answer(
    lm: LM, task: Task, asked: Sequence[Question], config: TaskConfig, seed: int, arm: str
) -> list[pd.DataFrame]:
    """`config.samples` outputs for each question, as a table: (sample_id, k, output), k from 0.

    One sample is decoded greedily; more are drawn with the preset's temperature and top-p, each from
    a random stream of its own for (seed, arm, example, k), whatever decodes together with it.
    """
    from igds_utils.engine.generation import Sampling, generate

    sampling, samples = None, config.samples
    if samples > 1:
        seeds = [f"{task.name}/{arm}/{seed}/{example.id}" for example, _ in asked]
        sampling = Sampling(config.temperature, config.top_p, seeds)
    options = config.max_new_tokens, task.stops, len(asked) * samples, sampling, samples
    outputs = generate(lm, [text for _, text in asked], *options)
    return [
        pd.DataFrame({"sample_id": example.id, "k": range(samples), "output": drawn})
        for (example, _), drawn in zip(asked, outputs, strict=True)
    ]


def decoding(task: Task, config: TaskConfig) -> dict[str, Any]:
    """What stored outputs depend on beside the model and the test set."""
    limits = {"max_prompt_tokens", "max_new_tokens"}
    fields = limits | {"rendering", "shots", "samples", "temperature", "top_p"}
    return {"wording": content_hash(task.wording)} | config.model_dump(include=fields)


def score_outputs(task: Task, examples: Sequence[Example], outputs: pd.DataFrame) -> pd.DataFrame:
    """Scores of every example: sample_id, output (its first), a column a metric (mean), score.

    outputs: the rows that `answer` gives. `score` is the task's own metric; of n outputs' accuracy it
    is pass@n (unbiased). Raises `ValueError` unless every example has n outputs.
    """
    ids = [example.id for example in examples]
    drawn = outputs.sort_values("k").groupby("sample_id")["output"].agg(list)
    n = len(drawn.iloc[0])
    if set(drawn.index) != set(ids) or (drawn.map(len) != n).any():
        raise ValueError("these outputs answer another test set: run notebook 04 again")
    texts = drawn[ids].explode()
    repeated = [example for example in examples for _ in range(n)]
    scored = pd.DataFrame(task.score_all(list(texts), repeated))
    metrics = scored.groupby(texts.index, sort=False)
    score = metrics[task.metric].mean()
    if task.metric == "accuracy":
        score = metrics["accuracy"].sum().map(lambda right: pass_at_k(n, int(right), n))
    table = metrics.mean().assign(score=score).rename_axis("sample_id").reset_index()
    table.insert(1, "output", drawn[ids].str[0].to_numpy())
    return table


# ---- the arms of a task compared ---------------------------------------------------------------------


def summarise(
    evaluation: pd.DataFrame,
    n_train: dict[str, int],
    main_ratio: float,
    logs: dict[str, pd.DataFrame],
    likelihoods: Mapping[str, pd.DataFrame] | None = None,
    *options: float,
) -> list[dict]:
    """One record per arm, its seeds pooled: its score and its paired differences (Table 2).

    evaluation: arm, selector, ratio, seed, sample_id, score. n_train: arm -> samples of a training.
    main_ratio: at which all selectors are compared. logs: log.parquet of the trained arms.
    likelihoods: likelihoods.parquet of all arms. options: confidence, resamples, seed.

    A record holds arm, selector, ratio, main (whether at the main ratio, or without one), seeds,
    by_seed (scores), n_train; target_tokens and steps (of a training, mean over seeds); n (test
    samples); score with low and high; gain_over_full (percent); above_random (how many of Random's
    draws score lower); vs_random (of the same ratio) with vs_random_low, _high, _judged (whether both
    were trained twice or more, Random `DRAWS` times) and, if so, _p (Holm-adjusted over arms). IGDS
    has vs_full, vs_full_low, vs_full_high etc. of every other arm of its ratio, too. With likelihoods
    the same stands there for loglik (nats per target token): loglik, loglik_low, loglik_vs_random
    etc. What cannot be compared is None; JSON can hold the result.
    """
    prefixes = {"score": ""}
    if likelihoods:
        known = pd.concat(likelihoods, names=["arm"]).reset_index("arm")
        evaluation = evaluation.merge(known, on=["arm", "sample_id"], validate="many_to_one")
        prefixes["loglik"] = "loglik_"
    groups = {  # no ratio: nothing was selected, or all
        (selector, float(ratio) if "@" in frame["arm"].iloc[0] else None): frame
        for (selector, ratio), frame in evaluation.groupby(["selector", "ratio"])
    }
    tables = {
        measure: {key: _by_seed(frame, measure) for key, frame in groups.items()}
        for measure in prefixes
    }
    records = []
    for key, frame in groups.items():
        (selector, ratio), scores = key, tables["score"][key]
        trained = [logs[arm] for arm in frame["arm"].unique() if arm in logs]
        target_tokens = [log["target_tokens"].sum() for log in trained]
        arm = selector if ratio is None else f"{selector}@{ratio:g}"
        record = {
            "arm": arm,
            "selector": selector,
            "ratio": ratio,
            "main": ratio in (None, main_ratio),
            "seeds": [int(seed) for seed in scores.columns],
            "by_seed": [float(score) for score in scores.mean()],
            "n_train": n_train.get(arm),
            "target_tokens": fmean(target_tokens) if trained else None,
            "steps": fmean(map(len, trained)) if trained else None,
            "n": len(scores),
        }
        others = {"random": ("random", ratio)}
        if selector == "igds":
            others |= {name: (name, own) for name, own in groups if own in (None, ratio)}
        for measure, prefix in prefixes.items():
            of_arms = tables[measure]
            found = map(_plain, interval(of_arms[key].mean(axis=1), *options))
            record |= zip((measure, f"{prefix}low", f"{prefix}high"), found, strict=True)
            for name, other in others.items():
                if name != "igds":
                    record |= _versus(f"{prefix}vs_{name}", of_arms, key, other, options)
        full, random = (tables["score"].get(one) for one in (("full", None), others["random"]))
        mean, of_full = record["score"], 0 if full is None else float(full.to_numpy().mean())
        record["gain_over_full"] = 100 * (mean / of_full - 1) if of_full else None
        compared = random is not None and selector != "random"
        record["above_random"] = int((random.mean() < mean).sum()) if compared else None
        records.append(record)
    for field in [f"{prefix}vs_random_p" for prefix in prefixes.values()]:
        raw = pd.Series([record[field] for record in records], dtype=float)
        for record, adjusted in zip(records, holm(raw), strict=True):
            record[field] = _plain(adjusted)
    return records


def checks(evaluation: pd.DataFrame, *options: float) -> list[dict]:
    """Whether a task can tell data apart: full - original and clean - corrupted, above zero.

    A record holds name, gain, low, high (units of the metric) and passed (whether the interval lies
    above zero), which is None where an arm was trained once. options: as in `summarise`.
    """
    by_arm = {arm: _model(arm, _by_seed(frame)) for arm, frame in evaluation.groupby("selector")}
    made = []
    for better, worse in (("full", "original"), ("clean", "corrupted")):
        if better in by_arm and worse in by_arm:
            found = paired_difference(by_arm[better], by_arm[worse], *options)
            row = {"name": f"{better} - {worse}", "gain": found.mean, "low": found.low}
            passed = found.low > 0 if found.judged else None
            made.append(row | {"high": found.high, "passed": passed})
    return made


def _by_seed(evaluation: pd.DataFrame, measure: str = "score") -> pd.DataFrame:
    """A measure of one arm: a row per test sample, a column per training seed."""
    return evaluation.groupby(["sample_id", "seed"])[measure].mean().unstack()


def _model(selector: str, scores: pd.DataFrame) -> pd.DataFrame | pd.Series:
    """What `paired_difference` compares: an arm by its trainings, the untrained model as it is."""
    return scores.iloc[:, 0] if selector == "original" else scores


def _versus(name: str, tables: dict, arm: tuple, other: tuple, options: tuple) -> dict:
    fields = [f"{name}{part}" for part in ("", "_low", "_high", "_p", "_judged")]
    if other[0] != "random":
        del fields[3:]
    if other == arm or other not in tables:
        return dict.fromkeys(fields)
    found = paired_difference(*(_model(key[0], tables[key]) for key in (arm, other)), *options)
    judged = found.judged and found.trainings[1] >= DRAWS
    values = (*map(_plain, found[:3]), found.p_value if judged else None, judged)
    return dict(zip(fields, values, strict=False))


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
