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

from igds_utils.config.settings import InterventionConfig
from igds_utils.core.experiment import Run
from igds_utils.engine import activations, generation
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.features import features_of
from igds_utils.engine.prompts import Sample
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering
from igds_utils.identification import intervention

Part = tuple[list[Feature], str]  # features that are amplified, and the id of the sample
FEATURES = 64  # of one part at most, on one sample
TOGETHER = 4096  # rows (feature, sample) of one call where nothing is generated
KEYS = ["sample_id", "layer", "feature"]


# ---- effects of any features on any set ------------------------------------------------------------------


def measure(
    run: Run,
    task: str,
    name: str,
    features: Sequence[Feature],
    folder: str = "",
    max_new_tokens: int | None = None,
    label: str = "",
    finalists: int | None = None,
    random: int | None = None,
) -> pd.DataFrame:
    """Forced effects of features on one of a task's sets, and generated effects of the best of them.

    finalists: how many generate, best forced effect first; none: all. One row a (sample, feature); what a feature that
    does not generate lacks is nan. The other parameters are those of `effects_of`.
    """
    if not features:
        raise ValueError(
            f"{task}: there is no candidate to amplify; lower recall.tau, so that features are recalled"
        )
    shared = (folder, max_new_tokens, label, random)
    rows = effects_of(run, task, name, "forced", features, *shared)
    if finalists == 0:
        return rows
    best = features if finalists is None else likeliest(rows, finalists)
    answers = effects_of(run, task, name, "generated", best, *shared)
    return rows.merge(answers, on=KEYS, how="left", validate="one_to_one")


def effects_of(
    run: Run,
    task: str,
    name: str,
    kind: Literal["forced", "foreign", "generated"],
    features: Sequence[Feature | str],
    folder: str = "",
    max_new_tokens: int | None = None,
    label: str = "",
    random: int | None = None,
) -> pd.DataFrame:
    """Effects of one kind of features on one of a task's sets, stored as `effects_<kind>_<name><label>.parquet`.

    kind: "forced" is `intervention.forced_effects`, "foreign" the same of the next sample's target in place of a
    sample's own, "generated" `intervention.generated_effects` (stored without the kind). folder: where, the task's own
    by default. max_new_tokens: of an answer, the task's own by default. label: of features other than the candidates;
    the original answers are shared. random: a seed; amplifies random directions in place of the features' own
    (`Steering`).
    """
    features = [Feature.parse(one) if isinstance(one, str) else one for one in features]
    ids, settings = [example.id for example in run.examples(task, name)], run.preset.intervention
    generates, new = kind == "generated", max_new_tokens or run.config(task).max_new_tokens
    path = f"{folder or task}/effects_{'' if generates else f'{kind}_'}{name}{label}.parquet"
    inputs = _inputs(run, task, name, features, folder) | {"random": random}
    inputs |= {"max_new_tokens": new, "metric": run.task(task).scoring} if generates else {"kind": kind}
    if run.store.fresh(path, **inputs):  # without the model and an SAE, which tell how the work is parted
        return run.make(path, lambda: pd.DataFrame(), **inputs)  # nothing is made: it says so, and reads
    samples, rows = run.samples(task, ids), TOGETHER
    targets = [sample.tokens[len(sample.prompt) :] for sample in samples]
    if kind == "foreign":
        targets = [*targets[1:], targets[0]]
    target_of = dict(zip(ids, targets, strict=True))
    if generates:
        rows, answers = _rows(run, samples, new), originals(run, task, name, folder, new)
    known = {sample.id: sample for sample in samples}

    def build(some: Sequence[Part]) -> list[pd.DataFrame]:
        own, tables = [sample_id for _, sample_id in some], []
        for together in even_chunks(some[0][0], rows):
            steering = _steering(run, task, together, settings, folder, random)
            shared = run.lm, steering, together, [known[i] for i in own]
            if generates:
                tables.append(_generated(run, task, *shared, new, [answers[i] for i in own]))
            else:
                given = [target_of[i] for i in own]
                tables.append(intervention.forced_effects(*shared, run.preset.batch_tokens, given))
        made = pd.concat(tables)
        return [made[made["sample_id"] == sample_id] for sample_id in own]

    return run.make_in_parts(
        path, parts_of(features, ids, run.saes.one_column), build, f"{task} {name}",
        together=lambda missing: batches_of(missing, rows),
        finish=lambda table: table.sort_values("sample_id", kind="stable", ignore_index=True),
        whole=not generates, **inputs,
    )  # fmt: skip


def likeliest(rows: pd.DataFrame, n: int) -> list[Feature]:
    """The n features that raise the mean log-likelihood of the targets most, best first; ties by (layer, index)."""
    change = rows["loglik_amplified"] - rows["loglik_original"]
    mean = change.groupby([rows["layer"], rows["feature"]]).mean().round(12)
    return features_of(mean.sort_values(ascending=False, kind="stable").head(n).index.to_frame())


def originals(
    run: Run, task: str, name: str, folder: str = "", max_new_tokens: int | None = None
) -> dict[str, list[int]]:
    """The unsteered model's answer to every sample of a set, token ids by sample id: `originals_<name>.jsonl`."""
    new, stops = max_new_tokens or run.config(task).max_new_tokens, run.task(task).stops
    samples = run.samples(task, [example.id for example in run.examples(task, name)])

    def build(some: Sequence[Sample]) -> list[pd.DataFrame]:
        answers = intervention.original_answers(run.lm, some, new, stops, len(some))
        return [
            pd.DataFrame({"id": [sample.id], "tokens": [np.array(tokens, int)]})
            for sample, tokens in zip(some, answers, strict=True)
        ]

    records = run.make_in_parts(
        f"{folder or task}/originals_{name}.jsonl", samples, build, f"{task} {name} originals",
        together=lambda missing: even_chunks(missing, _rows(run, samples, new)),
        finish=lambda table: table.to_dict("records"), whole=True, max_new_tokens=new, **run.inputs(task, name),
    )  # fmt: skip
    return {record["id"]: record["tokens"] for record in records}


# ---- the filter ------------------------------------------------------------------------------------------


def causal_filter(
    run: Run,
    task: str,
    features: Sequence[Feature],
    folder: str = "",
    max_new_tokens: int | None = None,
    label: str = "",
    contrasts: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The causal filter over any features: `measure` of the validation set, and the features ranked by it, best first.

    contrasts: of how many, best forced effect first, the change of another sample's target is measured as well; it
    stands in the columns `change` and `foreign` of their rows, and ranks nothing. Frequencies are those of
    `recall.parquet` in the same folder (`intervention.rank_features`).
    """
    preset, settings = run.preset, run.preset.intervention
    finalists = settings.finalists and max(settings.finalists, settings.k)
    rows = measure(run, task, "validation", features, folder, max_new_tokens, label, finalists)
    if contrasts:
        best = likeliest(rows, contrasts)
        other = effects_of(run, task, "validation", "foreign", best, folder, label=label)
        other["foreign"] = other["loglik_amplified"] - other["loglik_original"]
        rows["change"] = rows["loglik_amplified"] - rows["loglik_original"]
        rows = rows.merge(other[[*KEYS, "foreign"]], on=KEYS, how="left")
    deltas = intervention.causal_effects(rows, preset.confidence, preset.bootstrap, preset.seed)
    recalled = run.read(f"{folder or task}/recall.parquet")
    return rows, intervention.rank_features(deltas, recalled, settings.rank_by)


def confirm(run: Run, task: str, ranked: pd.DataFrame) -> pd.DataFrame:
    """`intervention.causal_effects` of the k best of ranked features on the confirmation set."""
    preset = run.preset
    chosen = intervention.selected_features(ranked, preset.intervention.k)
    rows = measure(run, task, "confirmation", chosen)
    return intervention.causal_effects(rows, preset.confidence, preset.bootstrap, preset.seed)


def placebos(run: Run, task: str, features: Sequence[Feature]) -> pd.DataFrame:
    """What the same filter finds where nothing is to be found: kind, layer, feature and effect of each placebo.

    Kinds: `random direction`, the activations of candidates with random directions of their norms; `not recalled`, the
    most frequent of the other features in the candidates' layers. `intervention.placebos` of each kind, and no more
    random directions than candidates. effect: the mean change of what the candidates (`features`) are ranked by.
    """
    preset, settings = run.preset, run.preset.intervention
    rng, table = np.random.default_rng([preset.seed, 3]), run.read(f"{task}/recall.parquet")
    drawn = rng.choice(len(features), min(settings.placebos, len(features)), replace=False)
    rare = table[~table["candidate"] & table["layer"].isin({feature.layer for feature in features})]
    rare = rare.sort_values(["frequency", "layer", "feature"], ascending=[False, True, True])
    kinds = {
        "random direction": ([features[place] for place in sorted(drawn)], "_random_directions", preset.seed),
        "not recalled": (intervention.selected_features(rare, settings.placebos), "_not_recalled", None),
    }
    finalists = 0 if settings.rank_by == "loglik" else settings.finalists
    found = []
    for kind, (chosen, label, random) in kinds.items():
        if chosen:
            rows = measure(run, task, "validation", chosen, label=label, finalists=finalists, random=random)
            effects = intervention.causal_effects(rows, preset.confidence, preset.bootstrap, preset.seed)
            effects = effects.rename(columns={intervention.QUANTITIES[settings.rank_by]: "effect"})
            found.append(effects[["layer", "feature", "effect"]].dropna().assign(kind=kind))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["kind", "effect"])


def doses(run: Run, task: str, feature: Feature) -> pd.DataFrame:
    """Effects of one feature on the validation set over `intervention.doses`, added and clamped: `doses.parquet`.

    Rows as of `measure`, with scale, clamped, and influence: |h' - h| / |h| at the critical position.
    """
    settings, ids = run.preset.intervention, [example.id for example in run.examples(task, "validation")]
    new, level = run.config(task).max_new_tokens, _levels(run, task)[feature]
    inputs = _inputs(run, task, "validation", [feature]) | {"doses": settings.doses, "level": level}
    answers_of = cache(lambda: originals(run, task, "validation"))
    residuals = cache(lambda layer: activations.critical_residuals(run.lm, run.prompts(task, "validation"), [layer]))

    def build(dose: tuple[float, bool]) -> pd.DataFrame:
        scale, clamped = dose
        changed = settings.model_copy(update={"scale": scale, "clamp": clamped})
        steering = _steering(run, task, [feature], changed)
        samples, answers, tables = run.samples(task, ids), answers_of(), []
        for some in even_chunks(samples, _rows(run, samples, new)):
            shared = run.lm, steering, [feature], some
            told = intervention.forced_effects(*shared, run.preset.batch_tokens)
            said = _generated(run, task, *shared, new, [answers[sample.id] for sample in some])
            tables.append(told.merge(said, on=KEYS))
        h = residuals(feature.layer)[feature.layer]  # (N, d) at p
        amplified = steering.amplify(h[:, None].to(run.saes.device), [feature] * len(h))
        influence = (amplified[:, 0].cpu() - h).norm(dim=-1) / h.norm(dim=-1)
        table = pd.concat(tables).assign(scale=scale, clamped=clamped)
        table["influence"] = table["sample_id"].map(dict(zip(ids, influence.tolist(), strict=True)))
        return table

    parts = [(scale, clamped) for clamped in (False, True) for scale in settings.doses]
    inputs |= {"max_new_tokens": new, "metric": run.task(task).scoring}
    return run.make_in_parts(f"{task}/doses.parquet", parts, build, f"{task} doses", **inputs)


# ---- what they share -------------------------------------------------------------------------------------


def _inputs(run: Run, task: str, name: str, features: Sequence[Feature], folder: str = "") -> dict[str, Any]:
    """What effects of these features on a set depend on, beside how an answer is made and scored."""
    settings, levels = run.preset.intervention, None
    if settings.clamp:
        levels = [_levels(run, task, folder)[feature] for feature in features]
    steered = {"positions": settings.positions, "scale": settings.scale, "clamp": levels}
    return {"features": [feature.name for feature in features], **steered, **run.inputs(task, name)}


def _levels(run: Run, task: str, folder: str = "") -> dict[Feature, float]:
    """Mean activation at p over D_prior, the level of a clamped feature; 0 of one that never fired there."""
    table = run.read(f"{folder or task}/recall.parquet")
    return defaultdict(float, zip(features_of(table), table["mean_activation"], strict=True))


def _steering(
    run: Run,
    task: str,
    features: Sequence[Feature],
    settings: InterventionConfig,
    folder: str = "",
    random: int | None = None,
) -> Steering:
    levels = _levels(run, task, folder) if settings.clamp else None
    return Steering(run.saes, features, settings.scale, settings.positions, levels, random)


def _generated(run: Run, task: str, lm, steering, features, samples, new: int, answers) -> pd.DataFrame:
    score, stops = run.score(task), run.task(task).stops
    return intervention.generated_effects(
        lm, steering, features, samples, score, new, stops, answers, run.preset.batch_tokens
    )


def _rows(run: Run, samples: Sequence[Sample], max_new_tokens: int) -> int:
    """How many rows (feature, sample) may decode together."""
    longest = max(len(sample.prompt) for sample in samples) + max_new_tokens
    return generation.rows_that_fit(run.lm, longest, run.preset.intervention.cache_gb)


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
    """Neighbours with the same features that are computed together: `rows` rows (feature, sample), or one part."""
    for features, same in groupby(parts, key=itemgetter(0)):
        yield from even_chunks(list(same), max(1, rows // len(features)))
