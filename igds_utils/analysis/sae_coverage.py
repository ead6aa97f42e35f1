"""Dependence on SAE coverage: what identification finds if only some layers have an SAE, from stored effects.

The paper suspects that partial coverage (seven layers of Qwen3-8B) costs IGDS part of its gain. Candidates know their
layer, so identification can be repeated on any part of the layers without running a model.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from igds_utils.analysis.stability import EffectMatrix, effect_matrix, winners
from igds_utils.display import Metric

CONFIRMED = ["confirmation_delta", "confirmation_low", "confirmation_high"]
BLOCKS = 4  # the layers are taken in so many blocks, so that a deep model gives a table that can be read


def windows(layers: list[int]) -> list[list[int]]:
    """Runs of neighbouring layers: single blocks (single layers where there are at most four), pairs, ..., all."""
    blocks = [list(map(int, b)) for b in np.array_split(sorted(layers), min(BLOCKS, len(layers)))]
    return [
        sum(blocks[start : start + length], [])
        for length in range(1, len(blocks) + 1)
        for start in range(len(blocks) - length + 1)
    ]


def identify_on_layers(
    effects: pd.DataFrame,
    recalled: pd.DataFrame,
    ranked: pd.DataFrame,
    layers: list[int],
    top: int = 5,
    splits: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Identification repeated on every window of layers: one row each.

    effects: of the validation set (`intervention.amplified_scores`); recalled: `recall.frequency_recall`; ranked:
    `intervention.rank_features` or the features of task_features.json; layers: those that have an SAE. Columns:
    layers (list), n_layers, recalled, tested, feature (the window's best), delta, delta_low, delta_high, held_out,
    confirmation_delta, confirmation_low, confirmation_high and top_kept (share of the `top` best of all layers that lie
    in the window).

    The best of many noisy effects is too good by chance, and more so the more candidates there are. So `held_out`
    chooses the feature on a random half of the samples and measures it on the other half, on average over `splits`
    halvings; with one candidate nothing is chosen, and nothing held out. `confirmation_delta` is the effect on the
    confirmation set, where the feature was measured on it. What does not exist is missing.
    """
    matrix, ranked = effect_matrix(effects, recalled), pd.DataFrame(ranked)
    halves = _halves(matrix.delta.shape[1], splits, seed)
    best_of_all = set(ranked["name"].head(top))
    candidates = recalled[recalled["candidate"]]
    rows = []
    for window in windows(layers):
        inside = ranked[ranked["layer"].isin(window)]
        row = {
            "layers": window,
            "n_layers": len(window),
            "recalled": int(candidates["layer"].isin(window).sum()),
            "tested": len(inside),
            "top_kept": len(best_of_all & set(inside["name"])) / len(best_of_all),
        }
        if len(inside):
            row |= inside.iloc[0].reindex(["delta", "delta_low", "delta_high", *CONFIRMED]).to_dict()
            row |= {"feature": inside["name"].iloc[0], "held_out": _held_out(matrix, window, halves)}
        rows.append(row)
    return pd.DataFrame(rows)


def _halves(n: int, splits: int, seed: int) -> np.ndarray:
    """Random halves of n samples: (splits, n), True where a sample helps to choose."""
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (splits, 1)), axis=1)
    return order < n // 2


def _held_out(matrix: EffectMatrix, window: list[int], halves: np.ndarray) -> float:
    """Mean effect, on the samples that had no part in choosing it, of the best of a window's features."""
    rows = np.isin(matrix.layers, window)
    if rows.sum() < 2:  # no other could have been chosen
        return np.nan
    delta, loglik, size = matrix.delta[rows], matrix.loglik[rows], halves[0].sum()
    best = winners(halves @ delta.T / size, halves @ loglik.T / size)  # (splits,)
    measured = ~halves @ delta.T / (halves.shape[1] - size)  # (splits, C)
    return float(measured[np.arange(len(best)), best].mean())


def story(found: pd.DataFrame, metric: Metric) -> str:
    """Whether fewer layers would have cost a task its feature, in words (`identify_on_layers`)."""
    whole, smaller = found.iloc[-1], found.iloc[:-1]
    same = int((smaller["feature"] == whole["feature"]).sum())
    again = metric.show_interval(*whole[CONFIRMED], signed=True)
    return (
        f"With all layers the best feature is {whole['feature']}, {metric.show(whole['held_out'], signed=True)} "
        f"{metric.unit} on held-out samples and {again} on the confirmation samples; {same} of {len(smaller)} smaller "
        f"windows find the same one."
    )
