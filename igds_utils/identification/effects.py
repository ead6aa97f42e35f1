"""The causal filter of a run: effects of features on a task's sets, stored part by part.

    rows, ranked = effects.causal_filter(run, "math", features)

In another batch the last bits of a sum may differ, and with them a greedy answer whose two
likeliest tokens are as good as equal.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pandas as pd

from igds_utils.core.experiment import Run
from igds_utils.engine import activations, generation
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.prompts import Sample
from igds_utils.engine.steering import Steering
from igds_utils.identification import intervention
from igds_utils.identification.intervention import KEYS, QUANTITIES, change

Kind = Literal["forced", "foreign", "generated"]
FEATURES = 64  # of several layers that are amplified together
ANSWERS, TARGETS = 256, 4096  # rows (feature, sample) of one part: generated, and forced
RANDOM = "_random_directions"


def causal_filter(
    run: Run, task: str, features: Sequence[Feature], label: str = "", contrasts: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`measure` of the validation set for any features, and the features ranked by it.

    contrasts: of how many, best forced effect first, the change of another sample's target is
    measured as well (columns `change` and `foreign`); it ranks nothing.
    """
    settings = run.preset.intervention
    finalists = settings.finalists and max(settings.finalists, settings.k)
    rows = measure(run, task, "validation", features, label, finalists)
    if contrasts:
        few = likeliest(rows, contrasts)
        other = effects_of(run, task, "validation", "foreign", few, label)
        rows["change"], other["foreign"] = change(rows, "loglik"), change(other, "loglik")
        rows = rows.merge(other[[*KEYS, "foreign"]], on=KEYS, how="left")
    found = _deltas(run, rows), _recalled(run, task)
    return rows, intervention.rank_features(*found, settings.rank_by)


def confirm(run: Run, task: str, ranked: pd.DataFrame) -> pd.DataFrame:
    """`causal_effects` of the k best of ranked features on the confirmation set.

    Answers are generated only where features are ranked by their score.
    """
    settings = run.preset.intervention
    chosen, finalists = features_of(ranked.head(settings.k)), 0 if settings.rank_by == "loglik" else None
    return _deltas(run, measure(run, task, "confirmation", chosen, finalists=finalists))


def placebos(run: Run, task: str, features: Sequence[Feature]) -> pd.DataFrame:
    """What amplifying does where nothing is to be found: layer, feature, effect, kind.

    On the confirmation set, which chose neither the placebos nor the feature beside them.

    Kinds: `random direction`, the activations of candidates (`features`) with random directions
    of their norms; `not recalled`, the most frequent other features of the same layers. effect:
    the mean change of what candidates are ranked by.
    """
    settings, table = run.preset.intervention, _recalled(run, task)
    n, by = settings.placebos, settings.rank_by
    draw = np.random.default_rng([run.preset.seed, 3])
    drawn = sorted(draw.choice(len(features), min(n, len(features)), replace=False))
    rare = table[~table["candidate"] & table["layer"].isin({f.layer for f in features})]
    rare = rare.sort_values(["frequency", "layer", "feature"], ascending=[False, True, True])
    random, rare = [features[place] for place in drawn], features_of(rare.head(n))
    columns = ["layer", "feature", "effect", "kind"]
    found = [pd.DataFrame(columns=columns)]
    for kind, label, chosen in (
        ("random direction", RANDOM, random), ("not recalled", "_not_recalled", rare)
    ):  # fmt: skip
        if chosen:
            finalists = 0 if by == "loglik" else settings.finalists
            effects = _deltas(run, measure(run, task, "confirmation", chosen, label, finalists))
            effects = effects.rename(columns={QUANTITIES[by]: "effect"}).assign(kind=kind)
            found.append(effects[columns].dropna())
    return pd.concat(found[1:] or found, ignore_index=True)


def doses(run: Run, task: str, feature: Feature) -> pd.DataFrame:
    """`measure` of a feature on every second validation sample at each dose: `doses.parquet`.

    Further columns: scale, clamped (or added), and influence, |h' - h| / |h| at p. Scale -1 is the
    same added and clamped: the feature is off. In bf16 another batch may turn a near-tie, so there
    scale 0 is decoded too: the answers that it changes are the noise of the generated effects.
    """
    settings, samples = run.preset.intervention, _samples(run, task, "validation")[::2]
    level, kinds = _levels(run, task)[feature], ("forced", "generated")
    given = {kind: _given(run, task, "validation", kind) for kind in kinds}

    def build(dose: tuple[float, bool]) -> pd.DataFrame:
        levels = {feature: level} if dose[1] else None
        steering = Steering(run.saes, [feature], dose[0], settings.positions, levels)
        shared = steering, [feature], samples
        told, said = (_measured(run, task, kind, *shared, given[kind]) for kind in kinds)
        prompts, layer = run.prompts(task, "validation")[::2], feature.layer
        h = activations.critical_residuals(run.lm, prompts, [layer])[layer]  # (N, d)
        moved = steering.amplify(h[:, None], [feature] * len(h))[:, 0] - h
        share = (moved.norm(dim=-1) / h.norm(dim=-1)).tolist()  # in the order of the samples
        rows = told.merge(said, on=KEYS)
        return rows.assign(scale=dose[0], clamped=dose[1], influence=share)

    noise = [] if run.preset.chosen.dtype == "float32" else [0.0]
    parts = [(scale, False) for scale in [*noise, *settings.doses]]
    parts += [(scale, True) for scale in settings.doses if scale != -1]
    inputs = _inputs(run, task, "validation", [feature], "generated")
    inputs |= {"doses": settings.doses, "level": level}
    rows = run.make_in_parts(f"{task}/doses.parquet", parts, build, f"{task} doses", **inputs)
    if noise:
        still = rows[rows["scale"] == 0]
        share = (still["output_original"] != still["output_amplified"]).mean()
        print(f"{task}: amplifying by nothing changes {share:.0%} of the answers in {run.preset.chosen.dtype}")
    return rows[rows["scale"] != 0]


def measure(
    run: Run, task: str, name: str, features: Sequence[Feature], label: str = "",
    finalists: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Forced effects of features on one of a task's sets, and generated effects of the best.

    finalists: how many generate, best forced effect first; none: all. One row a (sample,
    feature), nan where nothing was generated. label: as of `effects_of`.
    """
    if not features:
        raise ValueError(f"{run.folder(task)}: no candidate to amplify; lower recall.tau")
    rows = effects_of(run, task, name, "forced", features, label)
    if finalists == 0:
        return rows
    best = features if finalists is None else likeliest(rows, finalists)
    answers = effects_of(run, task, name, "generated", best, label)
    return rows.merge(answers, on=KEYS, how="left", validate="one_to_one")


def effects_of(
    run: Run, task: str, name: str, kind: Kind, features: Sequence[Feature], label: str = ""
) -> pd.DataFrame:
    """Effects of features on one of a task's sets: `effects_<kind>_<name><label>.parquet`.

    kind: "forced" or "generated" (`intervention`; the latter is stored without it), "foreign":
    forced, of the next sample's target. label: of features other than the candidates; `RANDOM`
    amplifies random directions (`Steering`).
    """
    settings, stored = run.preset.intervention, "" if kind == "generated" else f"{kind}_"
    path = f"{run.folder(task)}/effects_{stored}{name}{label}.parquet"
    random = run.preset.seed if label == RANDOM else None
    inputs = _inputs(run, task, name, features, kind) | {"random": random}
    if run.store.fresh(path, **inputs):  # needs no model, which says how the work is parted
        return run.make(path, lambda: None, **inputs)
    samples, given = _samples(run, task, name), _given(run, task, name, kind)
    levels = _levels(run, task) if settings.clamp else None

    def build(part: tuple[list[Feature], list[Sample]]) -> pd.DataFrame:
        steered = part[0], settings.scale, settings.positions, levels, random
        return _measured(run, task, kind, Steering(run.saes, *steered), *part, given)

    parts, groups = [], [list(features)]  # that share the reading of a prompt
    if len(features) > FEATURES or not run.saes.one_column:
        # Each SAE is read once (Qwen-Scope's encoder, which is needed whole, takes 1 GB).
        by_layer = groupby(sorted(features, key=lambda one: one.layer), lambda one: one.layer)
        groups = [list(some) for _, some in by_layer]
    for some in groups:
        size = max(1, (TARGETS if stored else ANSWERS) // len(some))
        parts += [(some, own) for own in even_chunks(samples, size)]
    return run.make_in_parts(
        path, parts, build, f"{task} {name}", whole=bool(stored), **inputs,
        finish=lambda table: table.sort_values("sample_id", kind="stable", ignore_index=True),
    )  # fmt: skip


def likeliest(rows: pd.DataFrame, n: int) -> list[Feature]:
    """The n features that raise the targets' mean log-likelihood most, best first."""
    mean = change(rows, "loglik").groupby([rows["layer"], rows["feature"]]).mean().round(12)
    best = mean.sort_values(ascending=False, kind="stable").head(n)  # ties by (layer, index)
    return features_of(best.index.to_frame())


def _deltas(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    sure = run.preset.confidence, run.preset.bootstrap, run.preset.seed
    return intervention.causal_effects(rows, *sure)


def _recalled(run: Run, task: str) -> pd.DataFrame:
    return run.read(f"{run.folder(task)}/recall.parquet")


def _levels(run: Run, task: str) -> dict[Feature, float]:
    """Mean activation at p over D_prior, the level of a clamped feature; 0 of a silent one."""
    table = _recalled(run, task)
    return defaultdict(float, zip(features_of(table), table["mean_activation"], strict=True))


def _inputs(
    run: Run, task: str, name: str, features: Sequence[Feature], kind: Kind
) -> dict[str, Any]:
    """What effects of these features on a set depend on."""
    settings, new = run.preset.intervention, run.config(task).max_new_tokens
    levels = [_levels(run, task)[one] for one in features] if settings.clamp else None
    inputs = {"features": [one.name for one in features], **run.inputs(task, name)}
    inputs |= {"positions": settings.positions, "scale": settings.scale, "clamp": levels}
    answered = {"max_new_tokens": new, "metric": run.task(task).scoring}
    return inputs | (answered if kind == "generated" else {"kind": kind})


def _samples(run: Run, task: str, name: str) -> list[Sample]:
    return run.samples(task, [example.id for example in run.examples(task, name)])


def _given(run: Run, task: str, name: str, kind: Kind) -> dict[str, list[int]]:
    """The tokens after each prompt: the unsteered answer, the target or the next sample's.

    Unsteered answers are stored as `originals_<name>.jsonl`.
    """
    samples, new = _samples(run, task, name), run.config(task).max_new_tokens
    path, ids = f"{run.folder(task)}/originals_{name}.jsonl", [one.id for one in samples]

    def build() -> list[dict]:
        made, stops = [], run.task(task).stops
        for some in even_chunks(samples, _rows(run, samples, new)):
            made += intervention.original_answers(run.lm, some, new, stops)
        return [{"id": one, "tokens": tokens} for one, tokens in zip(ids, made, strict=True)]

    if kind == "generated":
        made = run.make(path, build, max_new_tokens=new, **run.inputs(task, name))
        return {record["id"]: record["tokens"] for record in made}
    targets = [sample.tokens[len(sample.prompt) :] for sample in samples]
    first = int(kind == "foreign")
    return dict(zip(ids, targets[first:] + targets[:first], strict=True))


def _measured(
    run: Run, task: str, kind: Kind, steering: Steering, features: list[Feature],
    samples: list[Sample], given: dict[str, list[int]],
) -> pd.DataFrame:  # fmt: skip
    """Effects of one kind, of as many rows (feature, sample) at once as memory holds."""
    new, batch, tables = run.config(task).max_new_tokens, run.preset.batch_tokens, []
    rows = _rows(run, samples, new) if kind == "generated" else TARGETS
    for few in even_chunks(features, rows):
        for some in even_chunks(samples, max(1, rows // len(few))):
            shared, texts = (run.lm, steering, few, some), [given[one.id] for one in some]
            if kind == "generated":
                asked = run.score(task), new, run.task(task).stops, texts, batch
                tables.append(intervention.generated_effects(*shared, *asked))
            else:
                tables.append(intervention.forced_effects(*shared, batch, texts))
    return pd.concat(tables)


def _rows(run: Run, samples: list[Sample], new: int) -> int:
    """How many rows (feature, sample) may decode together."""
    longest = max(len(sample.prompt) for sample in samples) + new
    return generation.rows_that_fit(run.lm, longest, run.preset.intervention.cache_gb)
