"""The causal filter of a run: the original answers once, then every candidate, part after part; all of it stored.

table = effects.measure(run, "math", "validation", features)

A part is what some features do to one sample; memory only says how many parts decode together, so that a run that ran
out of it is continued by one that decodes fewer rows at once. In batches of another size the last bits of a sum may
differ, and with them a greedy answer whose two likeliest tokens are as good as equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd

from igds_utils.core import launch
from igds_utils.core.experiment import Run
from igds_utils.engine import caching
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.prompts import Sample
from igds_utils.engine.sae import Feature
from igds_utils.identification import intervention, racing

Part = tuple[list[Feature], str]  # features that are amplified, and the id of the sample
FEATURES = 64  # of one part at most, on one sample


def measure(
    run: Run,
    task: str,
    name: str,
    features: Sequence[Feature],
    folder: str = "",
    max_new_tokens: int | None = None,
    label: str = "",
) -> pd.DataFrame:
    """`intervention.amplified_scores` of features on one of a task's sets, stored as `effects_<name><label>.parquet`.

    folder: where, the task's own by default. max_new_tokens: the task's own by default. label: of features other than
    the candidates; the original answers are shared. On the validation set the preset may let candidates race
    (`intervention.racing`): those that leave early have fewer rows. The processes that the preset asks for share the
    parts. Raises `ValueError` without a feature.
    """
    if not features:
        raise ValueError(
            f"{task}: there is no candidate to amplify; lower recall.tau, so that features are recalled"
        )
    path = f"{folder or task}/effects_{name}{label}.parquet"
    new = max_new_tokens or run.config(task).max_new_tokens
    ids = [example.id for example in run.examples(task, name)]
    shares = run.preset.intervention.racing if name == "validation" else []
    inputs = _inputs(run, task, name, ids, features, new) | ({"racing": shares} if shares else {})
    if not run.store.fresh(path, **inputs):
        names = [feature.name for feature in features]
        launch.share(
            run, "igds_utils.identification.effects:measure_named", task, name, names, folder, new, label
        )
    originals = _originals(run, task, name, f"{folder or task}/originals_{name}.jsonl", new)
    if not shares:
        return _stage(run, task, name, path, ids, features, originals, new)
    tables, stages = [], []

    def stage(some: Sequence[str], left: Sequence[Feature]) -> pd.DataFrame:
        stages.append(path.replace(".parquet", f"_race{len(stages)}.parquet"))
        tables.append(_stage(run, task, name, stages[-1], some, left, originals, new))
        return tables[-1]

    racing.race(stage, features, ids, shares)
    return run.make(path, lambda: pd.concat(tables, ignore_index=True), **inputs)


def measure_named(
    run: Run, task: str, name: str, features: Sequence[str], folder: str, max_new_tokens: int, label: str
) -> None:
    """`measure` of features by name, for `launch.share`."""
    measure(run, task, name, [Feature.parse(one) for one in features], folder, max_new_tokens, label)


def causal_filter(
    run: Run,
    task: str,
    features: Sequence[Feature],
    folder: str = "",
    max_new_tokens: int | None = None,
    label: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The causal filter over any features: `measure` of the validation set, and the features ranked by it, best first.

    Their frequencies are those of `recall.parquet` in the same folder (`intervention.rank_features`).
    """
    rows, preset = measure(run, task, "validation", features, folder, max_new_tokens, label), run.preset
    deltas = intervention.causal_effects(rows, preset.confidence, preset.bootstrap, preset.seed)
    return rows, intervention.rank_features(deltas, run.read(f"{folder or task}/recall.parquet"))


def _inputs(
    run: Run, task: str, name: str, ids: Sequence[str], features: Sequence[Feature], max_new_tokens: int
) -> dict[str, Any]:
    """What effects depend on."""
    settings = run.preset.intervention
    return dict(
        ids=list(ids), features=[feature.name for feature in features], positions=settings.positions,
        scale=settings.scale, max_new_tokens=max_new_tokens, metric=run.task(task).scoring, **run.inputs(task, name),
    )  # fmt: skip


def _originals(run: Run, task: str, name: str, path: str, max_new_tokens: int) -> dict[str, list[int]]:
    """The unsteered model's answer to every sample of a set: token ids by sample id."""
    samples = run.samples(task, [example.id for example in run.examples(task, name)])

    inputs = {"max_new_tokens": max_new_tokens, **run.inputs(task, name)}
    if not run.store.fresh(path, **inputs):
        rows = rows_that_fit(run, samples, max_new_tokens)

        def build(some: Sequence[Sample]) -> list[pd.DataFrame]:
            answers = intervention.original_answers(run.lm, some, max_new_tokens, run.task(task).stops, rows)
            return [
                pd.DataFrame({"id": [sample.id], "tokens": [np.array(tokens, int)]})
                for sample, tokens in zip(some, answers, strict=True)
            ]

        run.make_in_parts(
            path, samples, build, f"{task} {name} originals", together=lambda missing: even_chunks(missing, rows),
            finish=lambda table: table.to_dict("records"), **inputs,
        )  # fmt: skip
    return {record["id"]: record["tokens"] for record in run.read(path)}


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
    inputs = _inputs(run, task, name, ids, features, max_new_tokens)
    if run.store.fresh(path, **inputs):  # without an SAE, which tells how the work is parted
        return run.make(path, lambda: pd.DataFrame(), **inputs)  # nothing is made: it says so, and reads
    one_column = run.saes.one_column
    rows = rows_that_fit(run, list(samples.values()), max_new_tokens)

    def amplified(some: list[Feature], own: list[str]) -> pd.DataFrame:
        return intervention.amplified_scores(
            run.lm, run.saes, some, [samples[i] for i in own], run.score(task), max_new_tokens,
            settings.scale, settings.positions, run.task(task).stops,
            [originals[i] for i in own], run.preset.batch_tokens,
        )  # fmt: skip

    def build(some: Sequence[Part]) -> list[pd.DataFrame]:
        together, own = some[0][0], [sample_id for _, sample_id in some]
        made = pd.concat([amplified(fitting, own) for fitting in even_chunks(together, rows)])
        return [made[made["sample_id"] == sample_id] for sample_id in own]

    return run.make_in_parts(
        path, parts_of(features, ids, one_column), build, f"{task} {name}",
        together=lambda missing: batches_of(missing, rows),
        finish=lambda table: table.sort_values("sample_id", kind="stable", ignore_index=True), **inputs,
    )  # fmt: skip


def parts_of(features: Sequence[Feature], ids: Sequence[str], one_column: bool) -> list[Part]:
    """The features that are amplified together on each sample, at most `FEATURES` of them.

    Where there are more, or encoding takes the whole encoder (no `one_column`; 1 GB of Qwen-Scope's), those of one
    layer come together, layer after layer, so that each SAE is read once and no second one is held. Elsewhere all
    features share the reading of a prompt.
    """
    if len(features) > FEATURES or not one_column:
        ordered = sorted(features, key=lambda feature: feature.layer)
        groups = [list(some) for _, some in groupby(ordered, key=lambda feature: feature.layer)]
    else:
        groups = [list(features)]
    together = [list(some) for group in groups for some in even_chunks(group, FEATURES)]
    return [(some, sample_id) for some in together for sample_id in ids]


def batches_of(parts: Sequence[Part], rows: int) -> Iterator[list[Part]]:
    """Neighbours with the same features that decode together: at most `rows` rows (feature, sample), or one part."""
    for features, same in groupby(parts, key=itemgetter(0)):
        yield from even_chunks(list(same), max(1, rows // len(features)))


def rows_that_fit(run: Run, samples: Sequence[Sample], max_new_tokens: int) -> int:
    """How many rows may decode together within the preset's memory for their caches (`intervention.cache_gb`).

    A row that departs from its original late has read up to `max_new_tokens` of it and has room for as many more.
    """
    longest = max(len(sample.prompt) for sample in samples) + 2 * max_new_tokens
    return caching.rows_that_fit(run.lm, longest, run.preset.intervention.cache_gb)
