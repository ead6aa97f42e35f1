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
from igds_utils.display import without_seed
from igds_utils.engine import distributed
from igds_utils.engine.prompts import encode_all
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example

if TYPE_CHECKING:
    from igds_utils.engine.lm import LM

DRAWS = 5  # of Random: with fewer, the luck of drawing and training is not known: nothing is judged
Question = tuple[Example, str]  # a test example and its rendered prompt


def batches(
    lm: LM, asked: Sequence[Question], config: TaskConfig, cache_gb: float
) -> Iterator[Sequence[Question]]:
    """Questions whose answers decode together: `cache_gb` holds them, each process has some."""
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

    One sample is decoded greedily; more are drawn with the preset's temperature and top-p, each
    from a random stream of its own for (seed, arm, example, k).
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
    fields = "max_prompt_tokens max_new_tokens rendering shots samples temperature top_p"
    how = config.model_dump(include=set(fields.split()))
    return {"wording": content_hash(task.wording)} | how


def score_outputs(task: Task, examples: Sequence[Example], outputs: pd.DataFrame) -> pd.DataFrame:
    """Scores of every example: sample_id, output (its first), a column a metric (mean), score.

    outputs: the rows that `answer` gives. `score` is the task's own metric; of n outputs' accuracy
    it is pass@n (unbiased). Raises `ValueError` unless every example has n outputs.
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
    draws score lower); vs_random (of the same ratio) with vs_random_low, _high, _judged (whether
    both were trained twice or more, Random `DRAWS` times) and, if so, _p (Holm-adjusted over arms).
    IGDS has vs_full, vs_full_low, vs_full_high etc. of every other arm of its ratio. The same of
    loglik (nats per target token): loglik, loglik_low, loglik_vs_random etc. JSON can hold it.
    """
    prefixes = {"score": ""}
    if likelihoods:
        known = pd.concat(likelihoods, names=["arm"]).reset_index("arm")
        evaluation = evaluation.merge(known, on=["arm", "sample_id"], validate="many_to_one")
        prefixes["loglik"] = "loglik_"
    evaluation = evaluation.assign(arm=evaluation["arm"].map(without_seed))
    tables = {name: _table(evaluation, "arm", name) for name in prefixes}
    arms, records = sorted(set(evaluation["arm"])), []
    for arm in arms:
        selector, _, share = arm.partition("@")  # without a share nothing was selected, or all
        ratio, scores = float(share) if share else None, tables["score"]
        trained = [log for name, log in logs.items() if without_seed(name) == arm]
        target_tokens = [log["target_tokens"].sum() for log in trained]
        record = {
            "arm": arm,
            "selector": selector,
            "ratio": ratio,
            "main": ratio in (None, main_ratio),
            "seeds": [int(seed) for seed in scores[arm]],
            "by_seed": scores[arm].mean().tolist(),
            "n_train": n_train.get(arm),
            "target_tokens": fmean(target_tokens) if trained else None,
            "steps": fmean(map(len, trained)) if trained else None,
            "n": len(scores),
        }
        others = [random := f"random@{share}"]
        if selector == "igds":
            others += [one for one in arms if one.partition("@")[2] in ("", share)]
        for measure, table in tables.items():
            prefix = prefixes[measure]
            found = map(_plain, interval(table[arm].mean(axis=1), *options))
            record |= zip((measure, f"{prefix}low", f"{prefix}high"), found, strict=True)
            for other in sorted({*others} & {*arms} - {arm}):
                record |= _versus(prefix, table, arm, other, options)
        full = float(scores["full"].to_numpy().mean()) if "full" in arms else 0
        record["gain_over_full"] = 100 * (record["score"] / full - 1) if full else None
        if random in arms and random != arm:
            draws = scores[random].mean()
            record["above_random"] = int((draws < record["score"]).sum())
        records.append(record)
    for field in [f"{prefix}vs_random_p" for prefix in prefixes.values()]:
        compared = [record for record in records if field in record]
        for record, adjusted in zip(compared, holm([r[field] for r in compared]), strict=True):
            record[field] = _plain(adjusted)
    return records


def checks(evaluation: pd.DataFrame, *options: float) -> list[dict]:
    """Whether a task can tell data apart: full - original and clean - corrupted, above zero.

    A record holds name, gain, low, high (units of the metric) and passed (whether the interval lies
    above zero), which is None where an arm was trained once. options: as in `summarise`.
    """
    table, made = _table(evaluation, "selector", "score"), []
    for better, worse in (("full", "original"), ("clean", "corrupted")):
        if better in table and worse in table:
            found = paired_difference(_model(table, better), _model(table, worse), *options)
            row = {"name": f"{better} - {worse}", "gain": found.mean, "low": found.low}
            passed = found.low > 0 if found.judged else None
            made.append(row | {"high": found.high, "passed": passed})
    return made


def _table(evaluation: pd.DataFrame, by: str, measure: str) -> pd.DataFrame:
    """A measure of all arms: a row per test sample, a column per arm and training seed."""
    return evaluation.pivot_table(index="sample_id", columns=[by, "seed"], values=measure)


def _model(table: pd.DataFrame, arm: str) -> pd.DataFrame | pd.Series:
    """What `paired_difference` compares: an arm by its trainings, the untrained model as it is."""
    return table[arm].iloc[:, 0] if arm == "original" else table[arm]


def _versus(prefix: str, table: pd.DataFrame, arm: str, other: str, options: tuple) -> dict:
    found = paired_difference(_model(table, arm), _model(table, other), *options)
    name = f"{prefix}vs_{other.partition('@')[0]}"
    made = {name: found.mean, f"{name}_low": _plain(found.low), f"{name}_high": _plain(found.high)}
    if other.startswith("random@"):
        made[f"{name}_judged"] = judged = found.judged and found.trainings[1] >= DRAWS
        made[f"{name}_p"] = found.p_value if judged else None
    return made


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
