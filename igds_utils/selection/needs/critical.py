"""Activations at the critical position, for IGDS and its controls: one pass over the prompts serves all of them.

The controls answer what IGDS would be worth without one of its parts: other features that fire as often, random
directions in place of features, all recalled features (no causal filter), random candidates (no recall), more features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from igds_utils.engine import activations
from igds_utils.engine.sae import Feature, FeatureSet
from igds_utils.identification import recall
from igds_utils.selection.needs.samples import Measured, Pool

# Every part reads the SAE of every layer anew, and prompts are short: larger parts than elsewhere.
PROMPTS = 2048
MOST = 5  # features of the longest IGDS variant
CONTROLS = {
    "ranked_activations",
    "recalled_activations",
    "matched_activations",
    "unrecalled_activations",
    "direction_reads",
}


def task_feature_activations(pool: Pool) -> Measured:
    """a_i(x, p) of the task features: (N, k). Without controls in sight their own layers are all that is read."""
    features = pool.run.task_features(pool.task)
    if _shared(pool):
        return _read(pool, features)
    samples = pool.samples

    def build(part: Sequence[int]) -> pd.DataFrame:
        residual = _residuals(pool, features, part)
        found = activations.feature_activations(residual, pool.run.saes, features)
        return pd.DataFrame(found.numpy(), columns=[feature.name for feature in features])

    names = [feature.name for feature in features]
    table = samples.in_parts(
        "task_feature_activations", build, PROMPTS, features=names, **samples.identified_from()
    )
    return _measured(pool, table, features, samples.path("task_feature_activations"))


def ranked_activations(pool: Pool) -> Measured:
    """a_i(x, p) of the candidates with the largest causal effects, best first: (N, at most 5)."""
    return _read(pool, _ranked(pool))


def recalled_activations(pool: Pool) -> Measured:
    """a_i(x, p) of all features that frequency recall found: (N, |F_cand|)."""
    return _read(pool, _recalled(pool))


def matched_activations(pool: Pool) -> Measured:
    """a_i(x, p) of random features of the same layers that fire as often on D_prior as the task features: (N, k)."""
    return _read(pool, _matched(pool, pool.seed))


def unrecalled_activations(pool: Pool) -> Measured:
    """a_i(x, p) of as many random features as were recalled, drawn from those that fire below tau: (N, |F_cand|)."""
    return _read(pool, _unrecalled(pool, pool.seed))


def direction_reads(pool: Pool) -> Measured:
    """r_i . h(p) along random directions r_i, each as long as its task feature's encoder row: (N, k)."""
    reads, names = pool.measured("critical_reads"), [one.name for one in _directions(pool, pool.seed)]
    return Measured(reads.values[names].to_numpy(), reads.product, {"seed": pool.seed})


# ---- which features --------------------------------------------------------------------------------------


def _ranked(pool: Pool) -> list[Feature]:
    best = pool.run.read(f"{pool.task}/task_features.json")["features"][:MOST]
    return [Feature(int(row["layer"]), int(row["feature"])) for row in best]


def _recalled(pool: Pool) -> list[Feature]:
    return recall.candidates(pool.run.read(f"{pool.task}/recall.parquet"))


def _matched(pool: Pool, seed: int) -> list[Feature]:
    """For each task feature one of those whose frequency is nearest to its own, in its layer, drawn at random."""
    table = pool.run.read(f"{pool.task}/recall.parquet")
    draw, wanted, found = np.random.default_rng([seed, 1]), pool.run.task_features(pool.task), []
    for feature in wanted:
        here = table[table["layer"] == feature.layer].set_index("feature")["frequency"]
        apart = (here - here[feature.index]).abs()
        free = [i for i in apart.index if Feature(feature.layer, int(i)) not in {*wanted, *found}]
        if not free:
            raise ValueError(
                f"no feature of layer {feature.layer} but {feature.name} fires on {pool.task} prompts"
            )
        nearest = apart[free][apart[free] <= apart[free].min()].index
        found.append(Feature(feature.layer, int(draw.choice(np.sort(nearest)))))
    return found


def _unrecalled(pool: Pool, seed: int) -> list[Feature]:
    """As many features as were recalled (fewer where there are not so many), drawn from those that fire but too rarely.

    One that never fires would add nothing to any score.
    """
    table = pool.run.read(f"{pool.task}/recall.parquet")
    rare = [Feature(int(row.layer), int(row.feature)) for row in table[~table["candidate"]].itertuples()]
    if not rare:
        raise ValueError(
            f"every feature that fires on {pool.task} prompts was recalled: none is left to draw from"
        )
    places = np.random.default_rng([seed, 2]).permutation(len(rare))
    return [rare[place] for place in places[: len(_recalled(pool))]]


class Direction(NamedTuple):
    """A random unit vector, standing in for a task feature."""

    name: str
    feature: Feature
    unit: torch.Tensor  # (d,)


def _directions(pool: Pool, seed: int) -> list[Direction]:
    made = []
    for number, feature in enumerate(pool.run.task_features(pool.task)):
        draw = torch.Generator().manual_seed(1000 * seed + number)
        vector = torch.randn(pool.run.lm.width, generator=draw)
        made.append(Direction(f"direction_{number}-s{seed}", feature, vector / vector.norm()))
    return made


# ---- reading them ----------------------------------------------------------------------------------------


def _shared(pool: Pool) -> bool:
    from igds_utils import selectors

    return any(set(selectors.get(name).needs) & CONTROLS for name in pool.selectors)


def _read(pool: Pool, features: list[Feature]) -> Measured:
    reads = pool.measured("critical_reads")
    return _measured(pool, reads.values, features, reads.product)


def _measured(pool: Pool, table: pd.DataFrame, features: list[Feature], path: str) -> Measured:
    """Columns of a table of reads, in the units in which the preset counts features."""
    values = table[[feature.name for feature in features]].to_numpy()
    if (units := pool.run.preset.scoring.units) == "residual":
        values = values * feature_norms(pool.run, features)
    return Measured(values, path, {"features": [feature.name for feature in features], "units": units})


def critical_reads(pool: Pool) -> Measured:
    """What IGDS and every control read at p, one column each, for all seeds of the task: a table of N rows."""
    run, samples = pool.run, pool.samples
    seeds = sorted({*run.config(pool.task).seeds, pool.seed})
    drawn = [one for seed in seeds for one in _matched(pool, seed) + _unrecalled(pool, seed)]
    features = sorted({*run.task_features(pool.task), *_ranked(pool), *_recalled(pool), *drawn})
    directions = [one for seed in seeds for one in _directions(pool, seed)]

    def build(part: Sequence[int]) -> pd.DataFrame:
        residual = _residuals(pool, features, part)
        found = activations.feature_activations(residual, run.saes, features)
        reads = dict(zip([feature.name for feature in features], found.numpy().T, strict=True))
        for one in directions:
            sae = run.saes[one.feature.layer]
            length = float(sae.W_enc[:, one.feature.index].detach().norm())
            reads[one.name] = (residual[one.feature.layer] @ one.unit * length).numpy()
        return pd.DataFrame(reads)

    names = [feature.name for feature in features] + [one.name for one in directions]
    table = samples.in_parts("critical_reads", build, PROMPTS, reads=names, **samples.identified_from())
    return Measured(table, samples.path("critical_reads"), {})


def _residuals(pool: Pool, features: Sequence[Feature], part: Sequence[int]) -> dict[int, torch.Tensor]:
    layers = sorted({feature.layer for feature in features})
    texts = pool.samples.at(part).prompts
    return activations.critical_residuals(pool.run.lm, texts, layers, pool.run.preset.batch_tokens)


def feature_norms(run, features: Sequence[Feature]) -> np.ndarray:
    """||d_i|| of features, in residual units: (k,)."""
    norms = {}
    for layer in sorted({feature.layer for feature in features}):
        here = [feature for feature in features if feature.layer == layer]
        one = FeatureSet(run.saes[layer], [feature.index for feature in here])
        norms |= dict(zip(here, one.directions.norm(dim=-1).tolist(), strict=True))
    return np.array([norms[feature] for feature in features])
