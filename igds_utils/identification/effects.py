"""The causal filter of a run: effects of features on a task's sets, stored part after part.

    rows, ranked = effects.causal_filter(run, "math", features)

A part is what some features do to one sample; memory only says how many parts are computed together, so that a run that
ran out of it is continued by one that takes fewer rows at once. In batches of another size the last bits of a sum may
differ, and with them a greedy answer whose two likeliest tokens are as good as equal.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import pandas as pd

from igds_utils.core.experiment import Run
from igds_utils.engine import activations, generation
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.prompts import Sample
from igds_utils.engine.sae import FeatureSet
from igds_utils.engine.steering import Steering
from igds_utils.identification import intervention
from igds_utils.identification.intervention import KEYS, QUANTITIES

Kind = Literal["forced", "foreign", "generated"]
Part = tuple[list[Feature], str]  # features that are amplified, and the id of the sample
FEATURES = 64  # of one part at most, on one sample
TOGETHER = 4096  # rows (feature, sample) of one call where nothing is generated


# ---- the filter ------------------------------------------------------------------------------------------


def causal_filter(
    run: Run, task: str, features: Sequence[Feature], label: str = "", contrasts: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The causal filter over any features: `measure` of the validation set, and the features ranked by it, best first.

    contrasts: of how many, best forced effect first, the change of another sample's target is measured as well; it
    stands in the columns `change` and `foreign` of their rows, and ranks nothing.
    """
    settings = run.preset.intervention
    finalists = settings.finalists and max(settings.finalists, settings.k)
    rows = measure(run, task, "validation", features, label, finalists)
    if contrasts:
        other = effects_of(run, task, "validation", "foreign", likeliest(rows, contrasts), label)
        rows["change"], other["foreign"] = (intervention.change(table, "loglik") for table in (rows, other))
        rows = rows.merge(other[[*KEYS, "foreign"]], on=KEYS, how="left")
    recalled = run.read(f"{run.folder(task)}/recall.parquet")
    return rows, intervention.rank_features(_deltas(run, rows), recalled, settings.rank_by)


def confirm(run: Run, task: str, ranked: pd.DataFrame) -> pd.DataFrame:
    """`intervention.causal_effects` of the k best of ranked features on the confirmation set."""
    chosen = intervention.selected_features(ranked, run.preset.intervention.k)
    return _deltas(run, measure(run, task, "confirmation", chosen))


def placebos(run: Run, task: str, features: Sequence[Feature]) -> pd.DataFrame:
    """What the same filter finds where nothing is to be found: kind, layer, feature and effect of each placebo.

    Kinds: `random direction`, the activations of candidates with random directions of their norms; `not recalled`, the
    most frequent of the other features in the candidates' layers. `intervention.placebos` of each kind, and no more
    random directions than candidates. effect: the mean change of what the candidates (`features`) are ranked by.
    """
    preset, settings = run.preset, run.preset.intervention
    rng, table = np.random.default_rng([preset.seed, 3]), run.read(f"{run.folder(task)}/recall.parquet")
    drawn = rng.choice(len(features), min(settings.placebos, len(features)), replace=False)
    rare = table[~table["candidate"] & table["layer"].isin({feature.layer for feature in features})]
    rare = rare.sort_values(["frequency", "layer", "feature"], ascending=[False, True, True])
    kinds = {
        "random direction": ([features[place] for place in sorted(drawn)], "_random_directions", preset.seed),
        "not recalled": (intervention.selected_features(rare, settings.placebos), "_not_recalled", None),
    }
    finalists = 0 if settings.rank_by == "loglik" else settings.finalists
    found = [pd.DataFrame(columns=["layer", "feature", "effect", "kind"])]
    for kind, (chosen, label, random) in kinds.items():
        if chosen:
            rows = measure(run, task, "validation", chosen, label, finalists, random)
            effects = _deltas(run, rows).rename(columns={QUANTITIES[settings.rank_by]: "effect"})
            found.append(effects[["layer", "feature", "effect"]].dropna().assign(kind=kind))
    return pd.concat(found[1:] or found, ignore_index=True)


def doses(run: Run, task: str, feature: Feature) -> pd.DataFrame:
    """Effects of one feature on the validation set over `intervention.doses`, added and clamped: `doses.parquet`.

    Rows as of `measure`, with scale, clamped, and influence: |h' - h| / |h| at the critical position. To add -1 and to
    clamp at 1 - 1 times the level both switch the feature off, and are measured once.
    """
    settings, samples = run.preset.intervention, _samples(run, task, "validation")
    level, read = _levels(run, task)[feature], cache(lambda kind: _read(run, task, "validation", kind))

    def build(dose: tuple[float, bool]) -> pd.DataFrame:
        scale, clamped = dose
        levels = {feature: level} if clamped else None
        steering, tables = Steering(run.saes, [feature], scale, settings.positions, levels), []
        for some in even_chunks(list(samples.values()), _rows(run, task, samples)):
            shared = steering, [feature], some
            told, said = (_measured(run, task, kind, *shared, read(kind)) for kind in ("forced", "generated"))
            tables.append(told.merge(said, on=KEYS))
        return pd.concat(tables).assign(scale=scale, clamped=clamped)

    def finish(table: pd.DataFrame) -> pd.DataFrame:
        table = pd.concat([table, table[table["scale"] == -1].assign(clamped=True)], ignore_index=True)
        known, prompts = FeatureSet(run.saes[feature.layer], [feature.index]), run.prompts(task, "validation")
        h = activations.critical_residuals(run.lm, prompts, [feature.layer])[feature.layer]  # (N, d) at p
        at_p = {"a": known.encode(h.to(run.saes.device))[:, 0].tolist(), "norm": h.norm(dim=-1).tolist()}
        at_p = pd.DataFrame(at_p, index=list(samples)).loc[table["sample_id"]].reset_index(drop=True)
        added = (table["scale"] * at_p["a"]).where(~table["clamped"], (1 + table["scale"]) * level - at_p["a"])
        return table.assign(influence=added.abs() * known.directions[0].norm().item() / at_p["norm"])

    parts = [(scale, clamped) for clamped in (False, True) for scale in settings.doses]
    inputs = _inputs(run, task, "validation", [feature], "generated") | {"doses": settings.doses, "level": level}
    return run.make_in_parts(
        f"{task}/doses.parquet", [dose for dose in parts if dose != (-1, True)], build, f"{task} doses",
        finish=finish, **inputs,
    )  # fmt: skip


# ---- effects of any features on any set ------------------------------------------------------------------


def measure(
    run: Run,
    task: str,
    name: str,
    features: Sequence[Feature],
    label: str = "",
    finalists: int | None = None,
    random: int | None = None,
) -> pd.DataFrame:
    """Forced effects of features on one of a task's sets, and generated effects of the best of them.

    finalists: how many generate, best forced effect first; none: all. One row a (sample, feature); what a feature that
    does not generate lacks is nan. label, random: as of `effects_of`.
    """
    if not features:
        raise ValueError(f"{task}: there is no candidate to amplify; lower recall.tau, so that features are recalled")
    rows = effects_of(run, task, name, "forced", features, label, random)
    if finalists == 0:
        return rows
    best = features if finalists is None else likeliest(rows, finalists)
    answers = effects_of(run, task, name, "generated", best, label, random)
    return rows.merge(answers, on=KEYS, how="left", validate="one_to_one")


def effects_of(
    run: Run,
    task: str,
    name: str,
    kind: Kind,
    features: Sequence[Feature],
    label: str = "",
    random: int | None = None,
) -> pd.DataFrame:
    """Effects of one kind of features on one of a task's sets, stored as `effects_<kind>_<name><label>.parquet`.

    kind: "forced" is `intervention.forced_effects`, "foreign" the same of the next sample's target in place of a
    sample's own, "generated" `intervention.generated_effects` (stored without the kind). label: of features other than
    the candidates. random: a seed; amplifies random directions in place of the features' own (`Steering`).
    """
    settings, generates = run.preset.intervention, kind == "generated"
    path = f"{run.folder(task)}/effects_{'' if generates else f'{kind}_'}{name}{label}.parquet"
    inputs = _inputs(run, task, name, features, kind) | {"random": random}
    if run.store.fresh(path, **inputs):  # without the model and an SAE, which tell how the work is parted
        return run.make(path, lambda: pd.DataFrame(), **inputs)  # nothing is made: it says so, and reads
    samples, read = _samples(run, task, name), _read(run, task, name, kind)
    rows = _rows(run, task, samples) if generates else TOGETHER

    def build(some: Sequence[Part]) -> list[pd.DataFrame]:
        own, tables = [samples[sample_id] for _, sample_id in some], []
        for together in even_chunks(some[0][0], rows):
            levels = _levels(run, task) if settings.clamp else None
            steering = Steering(run.saes, together, settings.scale, settings.positions, levels, random)
            tables.append(_measured(run, task, kind, steering, together, own, read))
        made = pd.concat(tables)
        return [made[made["sample_id"] == sample.id] for sample in own]

    return run.make_in_parts(
        path, parts_of(features, list(samples), run.saes.one_column), build, f"{task} {name}",
        together=lambda missing: batches_of(missing, rows),
        finish=lambda table: table.sort_values("sample_id", kind="stable", ignore_index=True),
        whole=not generates, **inputs,
    )  # fmt: skip


def originals(run: Run, task: str, name: str) -> dict[str, list[int]]:
    """The unsteered model's answer to every sample of a set, token ids by sample id: `originals_<name>.jsonl`."""
    new, samples = run.config(task).max_new_tokens, _samples(run, task, name)

    def build(some: Sequence[Sample]) -> list[pd.DataFrame]:
        answers = intervention.original_answers(run.lm, some, new, run.task(task).stops)
        both = zip(some, answers, strict=True)
        return [pd.DataFrame({"id": [sample.id], "tokens": [np.array(tokens, int)]}) for sample, tokens in both]

    records = run.make_in_parts(
        f"{run.folder(task)}/originals_{name}.jsonl", list(samples.values()), build, f"{task} {name} originals",
        together=lambda missing: even_chunks(missing, _rows(run, task, samples)),
        finish=lambda table: table.to_dict("records"), whole=True, max_new_tokens=new, **run.inputs(task, name),
    )  # fmt: skip
    return {record["id"]: record["tokens"] for record in records}


def likeliest(rows: pd.DataFrame, n: int) -> list[Feature]:
    """The n features that raise the mean log-likelihood of the targets most, best first; ties by (layer, index)."""
    mean = intervention.change(rows, "loglik").groupby([rows["layer"], rows["feature"]]).mean().round(12)
    return features_of(mean.sort_values(ascending=False, kind="stable").head(n).index.to_frame())


# ---- what they share -------------------------------------------------------------------------------------


def _deltas(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    return intervention.causal_effects(rows, run.preset.confidence, run.preset.bootstrap, run.preset.seed)


def _inputs(run: Run, task: str, name: str, features: Sequence[Feature], kind: Kind) -> dict[str, Any]:
    """What effects of these features on a set depend on."""
    settings, config = run.preset.intervention, run.config(task)
    levels = [_levels(run, task)[feature] for feature in features] if settings.clamp else None
    inputs = {"features": [feature.name for feature in features], **run.inputs(task, name)}
    inputs |= {"positions": settings.positions, "scale": settings.scale, "clamp": levels}
    answered = {"max_new_tokens": config.max_new_tokens, "metric": run.task(task).scoring}
    return inputs | (answered if kind == "generated" else {"kind": kind})


def _levels(run: Run, task: str) -> dict[Feature, float]:
    """Mean activation at p over D_prior, the level of a clamped feature; 0 of one that never fired there."""
    table = run.read(f"{run.folder(task)}/recall.parquet")
    return defaultdict(float, zip(features_of(table), table["mean_activation"], strict=True))


def _samples(run: Run, task: str, name: str) -> dict[str, Sample]:
    return {one.id: one for one in run.samples(task, [example.id for example in run.examples(task, name)])}


def _read(run: Run, task: str, name: str, kind: Kind) -> dict[str, list[int]]:
    """What follows each sample's prompt: its unsteered answer, its target, or (foreign) the next sample's target."""
    if kind == "generated":
        return originals(run, task, name)
    samples, first = _samples(run, task, name), int(kind == "foreign")
    targets = [sample.tokens[len(sample.prompt) :] for sample in samples.values()]
    return dict(zip(samples, targets[first:] + targets[:first], strict=True))


def _measured(run: Run, task: str, kind: Kind, steering: Steering, features, samples, read: dict) -> pd.DataFrame:
    """Effects of one kind; read: what follows the prompts (`_read`)."""
    shared, read = (run.lm, steering, features, samples), [read[sample.id] for sample in samples]
    if kind != "generated":
        return intervention.forced_effects(*shared, run.preset.batch_tokens, read)
    new, stops = run.config(task).max_new_tokens, run.task(task).stops
    return intervention.generated_effects(*shared, run.score(task), new, stops, read, run.preset.batch_tokens)


def _rows(run: Run, task: str, samples: dict[str, Sample]) -> int:
    """How many rows (feature, sample) may decode together."""
    longest = max(len(sample.prompt) for sample in samples.values()) + run.config(task).max_new_tokens
    return generation.rows_that_fit(run.lm, longest, run.preset.intervention.cache_gb)


def parts_of(features: Sequence[Feature], ids: Sequence[str], one_column: bool) -> list[Part]:
    """The features that are amplified together on each sample, at most `FEATURES` of them.

    Where there are more, or encoding takes the whole encoder (no `one_column`; 1 GB of Qwen-Scope's), those of one
    layer come together, layer after layer, so that each SAE is read once and no second one is held. Elsewhere all
    features share the reading of a prompt.
    """
    groups = [list(features)]
    if len(features) > FEATURES or not one_column:
        ordered = sorted(features, key=lambda feature: feature.layer)
        groups = [list(some) for _, some in groupby(ordered, key=lambda feature: feature.layer)]
    return [(some, one) for group in groups for some in even_chunks(group, FEATURES) for one in ids]


def batches_of(parts: Sequence[Part], rows: int) -> Iterator[list[Part]]:
    """Neighbours with the same features that are computed together: `rows` rows (feature, sample), or one part."""
    for features, same in groupby(parts, key=itemgetter(0)):
        yield from even_chunks(list(same), max(1, rows // len(features)))
