"""The features a pool is read for at p: those of IGDS and its controls, or a user's."""

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd

from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.engine import activations
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.sae import FeatureSet
from igds_utils.identification import effects, recall
from igds_utils.selection.measurements import PROMPTS, Measured, measurement

CONTROL_PROMPTS = 8192  # of one part that reads the SAEs of all layers
MOST = 5  # features of the longest IGDS variant


@measurement("prompts")
def task_feature_activations(pool) -> Measured:
    """a_i(x, p) of the task features, whose pass is timed by itself: (N, k)."""
    return _activations(pool, pool.task_features, "task_feature_activations")


@measurement("prompts")
def unrecalled_activations(pool) -> Measured:
    """a_i(x, p) of what the causal filter keeps of random features: (N, k)."""
    run, seed = pool.run, pool.seed
    facts = run.read(f"{pool.task}/recall.json")
    drawn = recall.random_features(facts, facts["n_candidates"], seed)
    _, ranking = effects.causal_filter(run, pool.task, drawn, label=f"_random-s{seed}")
    found = features_of(ranking.head(run.preset.intervention.k))
    return _activations(pool, found, f"unrecalled_activations-s{seed}")


@measurement("prompts")
def matched_activations(pool) -> Measured:
    """a_i(x, p) of random features that fire as often on D_prior: (N, k)."""
    return _activations(pool, matched(pool), f"matched_activations-s{pool.seed}")


@measurement("prompts")
def ranked_activations(pool) -> Measured:
    """a_i(x, p) of the best candidates in their order: (N, at most 5)."""
    rows = pool.run.read(f"{pool.task}/task_features.json")["features"]
    return _activations(pool, features_of(pd.DataFrame(rows[:MOST])))


@measurement("prompts")
def recalled_activations(pool) -> Measured:
    """a_i(x, p) of all features that frequency recall found: (N, |F_cand|)."""
    return _activations(pool, recalled(pool))


def _activations(pool, found: list[Feature], alone: str = "") -> Measured:
    """a_i(x, p) in the preset's units, (N, features): `alone`, or of all recalled ones' pass."""
    run, read = pool.run, found if alone else recalled(pool)
    layers, own = sorted({one.layer for one in read}), [one.name for one in found]
    names, kept = [one.name for one in read], {}  # kept: what is read of the SAEs

    def build(part) -> pd.DataFrame:
        residual = part.residuals(layers)
        values = activations.feature_activations(residual, run.saes, read, kept)
        return pd.DataFrame(values.numpy(), columns=names)

    def values(table: pd.DataFrame) -> np.ndarray:
        return in_units(run, table[own].to_numpy(), found)

    inputs = pool.identified_from | {"features": names}
    about = {"features": own, "units": run.preset.scoring.units}
    product, size = (alone, PROMPTS) if alone else ("critical_reads", CONTROL_PROMPTS)
    return pool.stored(product, build, inputs, about, size, values)


def recalled(pool) -> list[Feature]:
    """All features that frequency recall found."""
    return recall.candidates(pool.run.read(f"{pool.task}/recall.parquet"))


def matched(pool) -> list[Feature]:
    """For each task feature a random one of nearest frequency on D_prior, in its layer."""
    table = pool.run.read(f"{pool.task}/recall.parquet").set_index(["layer", "feature"])
    draw, taken = np.random.default_rng([pool.seed, 1]), list(pool.task_features)
    for layer, index in map(astuple, pool.task_features):
        here = table["frequency"][layer]
        others = here.drop([one.index for one in taken if one.layer == layer])
        apart = (others - here[index]).abs()
        nearest = np.sort(apart.index[apart == apart.min()])
        taken.append(Feature(layer, int(draw.choice(nearest))))
    return taken[len(pool.task_features) :]


def in_units(run: Run, values: np.ndarray, found: Sequence[Feature]) -> np.ndarray:
    """Activations (N, features) in the units of the preset (`scoring.units`)."""
    residual = run.preset.scoring.units == "residual"
    return values * feature_norms(run, found) if residual else values


def feature_norms(run: Run, found: Sequence[Feature]) -> np.ndarray:
    """||d_i|| of features, in residual units: (k,)."""
    norms = {}
    for one in sorted(found):  # one SAE is in memory at a time
        norms[one] = FeatureSet(run.saes[one.layer], [one.index]).directions.norm().item()
    return np.array([norms[one] for one in found])


def task_features(run: Run, task: str, text: str = "") -> list[Feature]:
    """Features by names, joined by commas, or of a task_features.json (the run's own)."""
    file, names = Path(text or run.store.root / f"{task}/task_features.json"), text.split(",")
    try:
        if file.suffix == ".json":
            names = json.loads(file.read_text(encoding="utf-8-sig"))["selected"] or [""]
        found = [Feature.parse(name.strip()) for name in names]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        mend = "run notebooks 1 and 2, or name features as l<layer>_p<index>"
        raise ConfigError(f"no task features of {task} are stored in {file}: {mend}") from None
    for one in found:
        said, layers = f"feature {one.name}: ", ", ".join(map(str, run.saes.layers))
        if one.layer not in run.saes.layers:
            raise ConfigError(f"{said}layer {one.layer} has no SAE; there are {layers}")
        if not 0 <= one.index < run.saes.d_sae:
            raise ConfigError(f"{said}the SAE has {run.saes.d_sae} features, from 0 on")
    return found
