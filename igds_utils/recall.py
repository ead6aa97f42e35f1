"""Frequency recall: the features that fire at the critical position on most of D_prior."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from igds_utils.sae import Feature, Saes


def frequency_recall(residual: dict[int, Tensor], saes: Saes, tau: float) -> pd.DataFrame:
    """Firing frequency of every feature that fires at least once, with `candidate` = frequency >= tau.

        F_cand = { i : (1 / |D_prior|) * sum_x 1[a_i(x, p) > 0] >= tau }

    residual: {layer: (N, d)} at the critical positions of D_prior (`activations.critical_residuals`).
    Columns: layer, feature, frequency, mean_activation (over all of D_prior), max_activation, candidate.
    """
    rows = []
    for layer in tqdm(saes.layers, desc="recall", unit="layer", leave=False, delay=2):
        with torch.inference_mode():
            a = saes[layer].encode(residual[layer].to(saes.device))  # (N, M)
            frequency, mean, peak = (a > 0).float().mean(0), a.mean(0), a.max(0).values
        alive = frequency.nonzero().squeeze(-1)
        rows.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "feature": alive.cpu().numpy(),
                    "frequency": frequency[alive].double().cpu().numpy(),
                    "mean_activation": mean[alive].double().cpu().numpy(),
                    "max_activation": peak[alive].double().cpu().numpy(),
                }
            )
        )
    saes.drop()  # up to 2 GB that what comes next can use
    found = pd.concat(rows, ignore_index=True)
    # a frequency of exactly tau counts; half a sample guards against rounding of the mean
    half = 0.5 / len(next(iter(residual.values())))
    found["candidate"] = found["frequency"] > tau - half * 1e-3
    return found


def candidates(recalled: pd.DataFrame, most: int | None = None) -> list[Feature]:
    """The candidates in the order frequency, mean activation (both falling), layer, index; at most `most`."""
    kept = recalled[recalled["candidate"]].sort_values(
        ["frequency", "mean_activation", "layer", "feature"], ascending=[False, False, True, True]
    )
    return [Feature(int(row.layer), int(row.feature)) for row in kept.head(most or len(kept)).itertuples()]


def recall_summary(recalled: pd.DataFrame, n_features: int, n_prior: int, tau: float, entered: int) -> dict:
    """Counts for Table 1: candidates, and their share of all features in basis points."""
    n_candidates = int(recalled["candidate"].sum())
    return {
        "n_features_total": n_features,
        "n_prior": n_prior,
        "tau": tau,
        "n_candidates": n_candidates,
        "n_cut": n_candidates - entered,
        "basis_points": 1e4 * n_candidates / n_features,
        "layers": sorted(int(layer) for layer in recalled["layer"].unique()),
    }
