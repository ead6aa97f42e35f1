"""Which features a pool is read for at p: those of IGDS and of its controls, or those that a user names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.engine import activations
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.sae import directions
from igds_utils.identification import effects, recall
from igds_utils.selection.measurements import PROMPTS, Measured, measurement

if TYPE_CHECKING:
    from igds_utils.selection.pool import Pool, Samples

CONTROL_PROMPTS = 8192  # of one part: some SAEs are read anew for every part, and controls read those of all layers
MOST = 5  # features of the longest IGDS variant


@measurement("prompts")
def task_feature_activations(pool: Pool) -> Measured:
    """a_i(x, p) of the task features, in a pass by itself, so that its cost is known: (N, k)."""
    return _activations(pool, pool.task_features, "task_feature_activations")


@measurement("prompts")
def unrecalled_activations(pool: Pool) -> Measured:
    """a_i(x, p) of the features that the causal filter keeps of random ones, without recall: (N, k).

    A feature that is kept may be silent at p: then it gives every sample the score 0.
    """
    run, seed = pool.run, pool.seed
    facts = run.read(f"{pool.task}/recall.json")
    drawn = recall.random_features(facts, facts["n_candidates"], seed)  # as many as there are candidates
    _, ranking = effects.causal_filter(run, pool.task, drawn, label=f"_random-s{seed}")
    found = features_of(ranking.head(run.preset.intervention.k))
    return _activations(pool, found, f"unrecalled_activations-s{seed}")


@measurement("prompts")
def matched_activations(pool: Pool) -> Measured:
    """a_i(x, p) of random features that fire as often on D_prior, in the layers of the task features: (N, k)."""
    return _activations(pool, matched(pool, pool.seed))


@measurement("prompts")
def ranked_activations(pool: Pool) -> Measured:
    """a_i(x, p) of the candidates with the largest causal effects, best first: (N, at most 5)."""
    return _activations(pool, ranked(pool.run, pool.task))


@measurement("prompts")
def recalled_activations(pool: Pool) -> Measured:
    """a_i(x, p) of all features that frequency recall found: (N, |F_cand|)."""
    return _activations(pool, recalled(pool.run, pool.task))


def _activations(pool: Pool, found: list[Feature], alone: str = "") -> Measured:
    """a_i(x, p) of some features in the preset's units: (N, features).

    alone: the product of a pass for these features. The controls share one pass, for all seeds of the task, a column
    a feature.
    """
    run, read = pool.run, found
    if not alone:
        seeds = {*run.config(pool.task).seeds, pool.seed}
        every = {*pool.task_features, *ranked(run, pool.task), *recalled(run, pool.task)}
        read = sorted(every.union(*(matched(pool, seed) for seed in seeds)))
    layers, names = sorted({one.layer for one in read}), [one.name for one in read]
    kept: dict = {}  # what is read of the SAEs

    def build(part: Samples) -> pd.DataFrame:
        values = activations.feature_activations(part.residuals(layers), run.saes, read, kept)
        return pd.DataFrame(values.numpy(), columns=names)

    own = [one.name for one in found]
    return pool.stored(
        alone or "critical_reads",
        build,
        pool.identified_from | {"features": names},
        {"features": own, "units": run.preset.scoring.units},
        size=PROMPTS if alone else CONTROL_PROMPTS,
        values=lambda table: in_units(run, table[own].to_numpy(), found),
    )


def ranked(run: Run, task: str) -> list[Feature]:
    """The candidates with the largest causal effects, best first."""
    return features_of(pd.DataFrame(run.read(f"{task}/task_features.json")["features"][:MOST]))


def recalled(run: Run, task: str) -> list[Feature]:
    """All features that frequency recall found."""
    return recall.candidates(run.read(f"{task}/recall.parquet"))


def matched(pool: Pool, seed: int) -> list[Feature]:
    """For each task feature one of those whose frequency on D_prior is nearest, in its layer, drawn at random."""
    table = pool.run.read(f"{pool.task}/recall.parquet")
    draw, found = np.random.default_rng([seed, 1]), []
    for feature in pool.task_features:
        here = table[table["layer"] == feature.layer].set_index("feature")["frequency"]
        apart = (here - here[feature.index]).abs()
        taken = [one.index for one in (*pool.task_features, *found) if one.layer == feature.layer]
        apart = apart.drop(taken, errors="ignore")
        if apart.empty:
            raise ValueError(
                f"no feature of layer {feature.layer} but {feature.name} fires on {pool.task} prompts"
            )
        nearest = apart.index[apart == apart.min()]
        found.append(Feature(feature.layer, int(draw.choice(np.sort(nearest)))))
    return found


def at_critical(run: Run, prompts: Sequence[str], found: Sequence[Feature]) -> np.ndarray:
    """a_i(x, p) of some features for each rendered prompt: (N, features); passes stop at their highest layer."""
    layers = sorted({feature.layer for feature in found})
    residual = activations.critical_residuals(run.lm, prompts, layers, run.preset.batch_tokens)
    return activations.feature_activations(residual, run.saes, found).numpy()


def in_units(run: Run, values: np.ndarray, found: Sequence[Feature]) -> np.ndarray:
    """Activations (N, features) in the units in which the preset counts them (`scoring.units`)."""
    return values * feature_norms(run, found) if run.preset.scoring.units == "residual" else values


def feature_norms(run: Run, found: Sequence[Feature]) -> np.ndarray:
    """||d_i|| of features, in residual units: (k,)."""
    norms = {}
    for one in sorted(found):  # one SAE is in memory at a time
        sae = run.saes[one.layer]
        norms[one] = directions(sae, torch.tensor([one.index], device=sae.W_dec.device)).norm().item()
    return np.array([norms[one] for one in found])


# ---- named by a user -------------------------------------------------------------------------------------


def task_features(run: Run, task: str, text: str = "") -> list[Feature]:
    """Features by name, joined by commas, or those that a task_features.json selected; by default the run's own.

    Raises `ConfigError` for what is no feature, or none that the model's SAEs have.
    """
    names, file = [name.strip() for name in text.split(",")], Path(text)
    if not text:
        file = run.store.root / f"{task}/task_features.json"
        if not file.exists():
            raise ConfigError(
                f"no task features of {task} are stored in {run.store.root}: run notebooks 1 and 2 (make reproduce "
                f"TASKS={task} PRESET={run.preset.name}), or name features as l<layer>_p<index>"
            )
    if file.suffix == ".json":
        try:
            names = json.loads(file.read_text(encoding="utf-8-sig"))["selected"]
        except OSError:
            raise ConfigError(f"there is no file {text}: correct the path of the task features") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{file} is no task_features.json: it must hold a list `selected` of names l<layer>_p<index>"
            ) from None
    if not names:
        raise ConfigError(f"{file} selects no feature: name some as l<layer>_p<index>")
    found = []
    for name in names:
        try:
            feature = Feature.parse(name)
        except ValueError:
            raise ConfigError(f"{name!r} is no feature: write l<layer>_p<index>") from None
        if feature.layer not in run.saes.layers:
            layers = ", ".join(map(str, run.saes.layers))
            raise ConfigError(f"feature {name}: layer {feature.layer} has no SAE; there are {layers}")
        if feature.index >= (size := run.saes.d_sae):
            raise ConfigError(f"feature {name}: the SAE has {size} features, numbered from 0: correct the index")
        found.append(feature)
    return found
