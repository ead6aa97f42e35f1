"""The causal filter of a run: the original answers once, then every candidate, part after part; all of it stored.

table = effects.measure(run, "math", "validation", features)
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from igds_utils import intervention, racing
from igds_utils.caching import cache_bytes
from igds_utils.experiment import Run
from igds_utils.intervention import Sample
from igds_utils.sae import Feature


def measure(
    run: Run,
    task: str,
    name: str,
    features: Sequence[Feature],
    folder: str = "",
    max_new_tokens: int | None = None,
) -> pd.DataFrame:
    """`intervention.amplified_scores` of features on one of a task's sets, stored as `effects_<name>.parquet`.

    folder: where, the task's own by default. max_new_tokens: the task's own by default. On the validation set the
    preset may let candidates race (`intervention.racing`): those that leave early have fewer rows. Raises `ValueError`
    without a feature.
    """
    if not features:
        raise ValueError(
            f"{task}: there is no candidate to amplify; lower recall.tau, so that features are recalled"
        )
    path, new = f"{folder or task}/effects_{name}.parquet", max_new_tokens or run.config(task).max_new_tokens
    ids = [example.id for example in run.examples(task, name)]
    originals = _originals(run, task, name, f"{folder or task}/originals_{name}.jsonl", new)
    shares = run.preset.intervention.racing if name == "validation" else []
    if not shares:
        return _stage(run, task, name, path, ids, features, originals, new)
    tables, stages = [], []

    def stage(some: Sequence[str], left: Sequence[Feature]) -> pd.DataFrame:
        stages.append(path.replace(".parquet", f"_race{len(stages)}.parquet"))
        tables.append(_stage(run, task, name, stages[-1], some, left, originals, new))
        return tables[-1]

    racing.race(stage, features, ids, shares)
    versions = [run.store.version(one) for one in stages]
    return run.make(path, lambda: pd.concat(tables, ignore_index=True), racing=shares, stages=versions)


def _originals(run: Run, task: str, name: str, path: str, max_new_tokens: int) -> dict[str, list[int]]:
    """The unsteered model's answer to every sample of a set: token ids by sample id."""

    def build() -> list[dict]:
        samples = run.samples(task, [example.id for example in run.examples(task, name)])
        together = rows_that_fit(run, samples, max_new_tokens)
        answers = intervention.original_answers(
            run.lm, samples, max_new_tokens, run.task(task).stops, together
        )
        return [{"id": s.id, "tokens": tokens} for s, tokens in zip(samples, answers, strict=True)]

    made = run.make(path, build, max_new_tokens=max_new_tokens, **run.inputs(task, name))
    return {record["id"]: record["tokens"] for record in made}


def _stage(
    run: Run,
    task: str,
    name: str,
    path: str,
    ids: Sequence[str],
    features: Sequence[Feature],
    originals: dict[str, list[int]],
    max_new_tokens: int,
) -> pd.DataFrame:
    settings = run.preset.intervention
    samples = {sample.id: sample for sample in run.samples(task, list(ids))}
    size = max(1, rows_that_fit(run, list(samples.values()), max_new_tokens) // len(features))
    parts = [list(ids[start : start + size]) for start in range(0, len(ids), size)]

    def build(part: list[str]) -> pd.DataFrame:
        return intervention.amplified_scores(
            run.lm, run.saes, features, [samples[i] for i in part], run.score(task), max_new_tokens,
            settings.scale, settings.positions, run.task(task).stops,
            [originals[i] for i in part], run.preset.batch_tokens,
        )  # fmt: skip

    return run.make_in_parts(
        path, parts, build, f"{task} {name}", ids=list(ids), features=[feature.name for feature in features],
        positions=settings.positions, scale=settings.scale, max_new_tokens=max_new_tokens, part=size,
        **run.inputs(task, name),
    )  # fmt: skip


def rows_that_fit(run: Run, samples: Sequence[Sample], max_new_tokens: int) -> int:
    """How many rows may decode together within the preset's memory for their caches (`intervention.cache_gb`).

    A row that departs from its original late has read up to `max_new_tokens` of it and has room for as many more.
    """
    longest = max(len(sample.prompt) for sample in samples) + 2 * max_new_tokens
    return max(1, int(run.preset.intervention.cache_gb * 1e9 / cache_bytes(run.lm, longest)))
