"""Activations at the critical position, for IGDS and its controls.

IGDS reads its own few layers in a pass by itself, so that its cost is known, and so does IGDS without recall; one more
pass serves all other controls. These answer what IGDS would be worth without one of its parts: other features that fire
as often, all recalled features (no causal filter), random candidates (no recall), more features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch

from igds_utils.engine import activations
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.sae import FeatureSet
from igds_utils.identification import effects, intervention, recall
from igds_utils.selection.needs.samples import Measured, Pool

PROMPTS = 2048  # of one part: they are short
CONTROL_PROMPTS = 8192  # some SAEs are read anew for every part, and controls read those of all layers
DEPTH = 0.6  # of the model, where `prior_cosines` reads
MOST = 5  # features of the longest IGDS variant
CONTROLS = {"ranked_activations", "recalled_activations", "matched_activations"}


def task_feature_activations(pool: Pool) -> Measured:
    """a_i(x, p) of the task features, (N, k), read up to the highest of their layers."""
    return _read_alone(pool, "task_feature_activations", pool.run.task_features(pool.task))


def unrecalled_activations(pool: Pool) -> Measured:
    """a_i(x, p) of the features that the causal filter keeps of random ones, drawn without regard to recall: (N, k).

    As many are drawn as there are candidates; the filter is the same and runs here where it has not. A feature that
    is kept may be silent at p: then it gives every sample the score 0.
    """
    run, task, k = pool.run, pool.task, pool.run.preset.intervention.k
    facts = run.read(f"{task}/recall.json")
    drawn = recall.random_features(facts, facts["n_candidates"], pool.seed)
    _, ranked = effects.causal_filter(run, task, drawn, label=f"_random-s{pool.seed}")
    features = intervention.selected_features(ranked, k)
    return _read_alone(pool, f"unrecalled_activations-s{pool.seed}", features)


def _read_alone(pool: Pool, name: str, features: list[Feature]) -> Measured:
    """Activations of a few features, read in a pass of their own up to the highest of their layers."""
    samples = pool.samples
    reader = cache(lambda: activations.FeatureReader(pool.run.saes, features))

    def build(part: Sequence[int]) -> pd.DataFrame:
        found = reader().read(_residuals(pool, features, part))
        return pd.DataFrame(found.numpy(), columns=[feature.name for feature in features])

    names = [feature.name for feature in features]
    table = samples.in_parts(name, build, PROMPTS, features=names, **samples.identified_from())
    return _measured(pool, table, features, samples.path(name))


def prior_cosines(pool: Pool) -> Measured:
    """Cosine of each sample's residual stream at p to the mean of D_prior's, (N, 1), at one layer."""
    run, samples = pool.run, pool.samples
    layer = min(run.saes.layers, key=lambda own: abs(own + 1 - DEPTH * run.lm_config.num_hidden_layers))

    def read(texts: Sequence[str]) -> torch.Tensor:
        return activations.critical_residuals(run.lm, texts, [layer], run.preset.batch_tokens)[layer]

    mean = cache(lambda: read(run.prompts(pool.task, "prior")).mean(dim=0))  # (d,)

    def build(part: Sequence[int]) -> pd.DataFrame:
        return pd.DataFrame({"cosine": torch.cosine_similarity(read(samples.at(part).prompts), mean()[None])})

    inputs = samples.identified_from(layer=layer, prior=run.data_version(pool.task, "prior"))
    table = samples.in_parts("prior_cosines", build, PROMPTS, **inputs)
    return Measured(table.to_numpy(), samples.path("prior_cosines"), {"layer": layer})


def ranked_activations(pool: Pool) -> Measured:
    """a_i(x, p) of the candidates with the largest causal effects, best first: (N, at most 5)."""
    return _read(pool, _ranked(pool))


def recalled_activations(pool: Pool) -> Measured:
    """a_i(x, p) of all features that frequency recall found: (N, |F_cand|)."""
    return _read(pool, _recalled(pool))


def matched_activations(pool: Pool) -> Measured:
    """a_i(x, p) of random features of the same layers that fire as often on D_prior as the task features: (N, k)."""
    return _read(pool, _matched(pool, pool.seed))


# ---- which features --------------------------------------------------------------------------------------


def _ranked(pool: Pool) -> list[Feature]:
    best = pool.run.read(f"{pool.task}/task_features.json")["features"][:MOST]
    return features_of(pd.DataFrame(best))


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


# ---- reading them ----------------------------------------------------------------------------------------


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
    """What the controls read at p, one column each, for all seeds of the task: a table of N rows."""
    run, samples = pool.run, pool.samples
    seeds = sorted({*run.config(pool.task).seeds, pool.seed})
    drawn = [one for seed in seeds for one in _matched(pool, seed)]
    features = sorted({*run.task_features(pool.task), *_ranked(pool), *_recalled(pool), *drawn})
    names = [feature.name for feature in features]
    reader = cache(lambda: activations.FeatureReader(run.saes, features))

    def build(part: Sequence[int]) -> pd.DataFrame:
        return pd.DataFrame(reader().read(_residuals(pool, features, part)).numpy(), columns=names)

    inputs = samples.identified_from(reads=names)
    table = samples.in_parts("critical_reads", build, CONTROL_PROMPTS, **inputs)
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
