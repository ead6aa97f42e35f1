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

import numpy as np
import pandas as pd

from igds_utils.core.experiment import Run
from igds_utils.engine import caching
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.prompts import Sample
from igds_utils.engine.sae import Feature
from igds_utils.identification import intervention

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
    the candidates; the original answers are shared. Raises `ValueError` without a feature.
    """
    if not features:
        raise ValueError(
            f"{task}: there is no candidate to amplify; lower recall.tau, so that features are recalled"
        )
    path = f"{folder or task}/effects_{name}{label}.parquet"
    settings, new = run.preset.intervention, max_new_tokens or run.config(task).max_new_tokens
    ids, names = [example.id for example in run.examples(task, name)], [feature.name for feature in features]
    inputs = dict(
        ids=ids, features=names, positions=settings.positions, scale=settings.scale, max_new_tokens=new,
        metric=run.task(task).scoring, **run.inputs(task, name),
    )  # fmt: skip
    if run.store.fresh(path, **inputs):  # without the model and an SAE, which tell how the work is parted
        return run.make(path, lambda: pd.DataFrame(), **inputs)  # nothing is made: it says so, and reads
    samples = {sample.id: sample for sample in run.samples(task, ids)}
    longest = max(len(sample.prompt) for sample in samples.values()) + new
    rows = caching.rows_that_fit(run.lm, longest, settings.cache_gb)
    originals = _originals(
        run, task, name, f"{folder or task}/originals_{name}.jsonl", list(samples.values()), new, rows
    )

    def build(some: Sequence[Part]) -> list[pd.DataFrame]:
        together, own = some[0][0], [sample_id for _, sample_id in some]
        tables = [
            intervention.amplified_scores(
                run.lm, run.saes, fitting, [samples[i] for i in own], run.score(task), new, settings.scale,
                settings.positions, run.task(task).stops, [originals[i] for i in own], run.preset.batch_tokens,
            )
            for fitting in even_chunks(together, rows)
        ]  # fmt: skip
        made = pd.concat(tables)
        return [made[made["sample_id"] == sample_id] for sample_id in own]

    return run.make_in_parts(
        path, parts_of(features, ids, run.saes.one_column), build, f"{task} {name}",
        together=lambda missing: batches_of(missing, rows),
        finish=lambda table: table.sort_values("sample_id", kind="stable", ignore_index=True), **inputs,
    )  # fmt: skip


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


def _originals(
    run: Run, task: str, name: str, path: str, samples: Sequence[Sample], max_new_tokens: int, rows: int
) -> dict[str, list[int]]:
    """The unsteered model's answer to every sample of a set, `rows` in a batch: token ids by sample id."""

    def build(some: Sequence[Sample]) -> list[pd.DataFrame]:
        answers = intervention.original_answers(run.lm, some, max_new_tokens, run.task(task).stops, rows)
        return [
            pd.DataFrame({"id": [sample.id], "tokens": [np.array(tokens, int)]})
            for sample, tokens in zip(some, answers, strict=True)
        ]

    records = run.make_in_parts(
        path, samples, build, f"{task} {name} originals", together=lambda missing: even_chunks(missing, rows),
        finish=lambda table: table.to_dict("records"), whole=True, max_new_tokens=max_new_tokens,
        **run.inputs(task, name),
    )  # fmt: skip
    return {record["id"]: record["tokens"] for record in records}


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
