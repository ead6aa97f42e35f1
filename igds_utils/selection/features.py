"""Which features a pool is read for: those of IGDS and of its controls, or those that a user names."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.engine import activations
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.sae import FeatureSet
from igds_utils.identification import effects, intervention, recall

MOST = 5  # features of the longest IGDS variant


def ranked(run: Run, task: str) -> list[Feature]:
    """The candidates with the largest causal effects, best first."""
    return features_of(pd.DataFrame(run.read(f"{task}/task_features.json")["features"][:MOST]))


def recalled(run: Run, task: str) -> list[Feature]:
    """All features that frequency recall found."""
    return recall.candidates(run.read(f"{task}/recall.parquet"))


def matched(run: Run, task: str, wanted: Sequence[Feature], seed: int) -> list[Feature]:
    """For each feature one of those whose frequency on D_prior is nearest to its own, in its layer, drawn at random."""
    table = run.read(f"{task}/recall.parquet")
    draw, found = np.random.default_rng([seed, 1]), []
    for feature in wanted:
        here = table[table["layer"] == feature.layer].set_index("feature")["frequency"]
        apart = (here - here[feature.index]).abs()
        free = [i for i in apart.index if Feature(feature.layer, int(i)) not in {*wanted, *found}]
        if not free:
            raise ValueError(
                f"no feature of layer {feature.layer} but {feature.name} fires on {task} prompts"
            )
        nearest = apart[free][apart[free] <= apart[free].min()].index
        found.append(Feature(feature.layer, int(draw.choice(np.sort(nearest)))))
    return found


def unrecalled(run: Run, task: str, seed: int) -> list[Feature]:
    """The features that the causal filter keeps of random ones, drawn without regard to recall.

    As many are drawn as there are candidates; the filter is the same and runs here where it has not.
    """
    facts = run.read(f"{task}/recall.json")
    drawn = recall.random_features(facts, facts["n_candidates"], seed)
    _, ranking = effects.causal_filter(run, task, drawn, label=f"_random-s{seed}")
    return intervention.selected_features(ranking, run.preset.intervention.k)


def at_critical(run: Run, prompts: Sequence[str], found: Sequence[Feature]) -> np.ndarray:
    """a_i(x, p) of some features for each rendered prompt: (N, features); passes stop at their highest layer."""
    layers = sorted({feature.layer for feature in found})
    residual = activations.critical_residuals(run.lm, prompts, layers, run.preset.batch_tokens)
    return activations.feature_activations(residual, run.saes, found).numpy()


def in_units(run: Run, values: np.ndarray, found: Sequence[Feature]) -> np.ndarray:
    """Activations (N, features) in the units in which the preset counts them (`scoring.units`)."""
    return values * feature_norms(run, found) if run.preset.scoring.units == "residual" else values


def feature_norms(run: Run, features: Sequence[Feature]) -> np.ndarray:
    """||d_i|| of features, in residual units: (k,)."""
    norms = {}
    for layer in sorted({feature.layer for feature in features}):
        here = [feature for feature in features if feature.layer == layer]
        one = FeatureSet(run.saes[layer], [feature.index for feature in here])
        norms |= dict(zip(here, one.directions.norm(dim=-1).tolist(), strict=True))
    return np.array([norms[feature] for feature in features])


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
    return [_checked(run, name) for name in names]


def _checked(run: Run, name: str) -> Feature:
    try:
        feature = Feature.parse(name)
    except ValueError:
        raise ConfigError(f"{name!r} is no feature: write l<layer>_p<index>") from None
    if feature.layer not in run.saes.layers:
        layers = ", ".join(map(str, run.saes.layers))
        raise ConfigError(f"feature {name}: layer {feature.layer} has no SAE; there are {layers}")
    if feature.index >= run.saes.d_sae:
        raise ConfigError(
            f"feature {name}: the SAE has {run.saes.d_sae} features, numbered from 0: correct the index"
        )
    return feature
