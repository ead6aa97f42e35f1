"""Activation of the top task feature in the untrained model and in every arm (Figure 3), from stored products.

activations = distributions.arm_activations(run, "math")
table = distributions.compare(activations, run.read("math/summary.json"))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from igds_utils.core.arms import WHOLE, arms
from igds_utils.core.experiment import Run
from igds_utils.data.stats import paired_difference, spearman
from igds_utils.display import missing


def arm_activations(run: Run, task: str) -> pd.DataFrame:
    """a_i(x, p) of the top task feature on the fixed pool prompts, in every arm that compares selectors.

    Columns: arm (as in summary.json, without the seed), seed, sample_id, activation. The prompts are the same for all
    arms, never an arm's own selection. Read from arms/<arm>/activations.parquet.
    """
    top, tables = run.task_features(task)[0], []
    for arm in arms(run.config(task)):
        if arm.is_check:
            continue
        found = run.read(f"{task}/arms/{arm.name}/activations.parquet")
        found = found[(found["layer"] == top.layer) & (found["feature"] == top.index)]
        if found.empty:
            raise ValueError(
                f"{task}/arms/{arm.name}/activations.parquet does not hold {top.name}: run 04_sft again"
            )
        name = arm.selector if arm.selector in ("original", *WHOLE) else f"{arm.selector}@{arm.ratio:g}"
        tables.append(found.assign(arm=name, seed=arm.seed)[["arm", "seed", "sample_id", "activation"]])
    return pd.concat(tables, ignore_index=True)


def winsorize(values, share: float = 0.01) -> np.ndarray:
    """Values (n,) with the lowest and the highest `share` moved in to the quantiles `share` and 1 - `share`."""
    x = np.asarray(values, dtype=float)
    return np.clip(x, *np.quantile(x, [share, 1 - share]))


def compare(
    activations: pd.DataFrame,
    summary: list[dict[str, Any]],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per arm: its median activation, how far it moved, and its score (Figure 3 in numbers).

    activations: as `arm_activations` gives them; summary: records of `summaries.summarise`. Columns: arm, selector,
    ratio, main, score, low, high (as there), medians (one per training seed), median (their mean), moved, moved_low,
    moved_high (mean paired difference to the untrained model on the same prompts, its interval over prompts and, where
    there are several, trainings; nan for that model itself), judged (whether there are several).
    """
    by_arm = {
        arm: table.pivot(index="sample_id", columns="seed", values="activation")
        for arm, table in activations.groupby("arm")
    }
    rows = []
    for record in summary:
        values = by_arm[record["arm"]]  # (prompts, seeds)
        row = {key: record[key] for key in ("arm", "selector", "ratio", "main", "score", "low", "high")}
        row |= {"medians": values.median().tolist(), "median": float(values.median().mean())}
        if record["arm"] != "original":
            moved = paired_difference(values, by_arm["original"].iloc[:, 0], confidence, resamples, seed)
            row |= {"moved": moved.mean, "moved_low": moved.low, "moved_high": moved.high}
            row["judged"] = moved.judged
        rows.append(row)
    return pd.DataFrame(rows)


def correlation(
    table: pd.DataFrame, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Spearman's correlation of median activation and score over the arms of `compare`: `stats.Correlation` as dicts.

    `all` as in the paper, which counts the untrained model as one arm; `trained` without it.
    """
    parts, options = {"all": table, "trained": table[table["selector"] != "original"]}, (confidence, resamples, seed)
    found = {name: spearman(part["median"], part["score"], *options)._asdict() for name, part in parts.items()}
    return {name: {k: None if missing(v) else v for k, v in rho.items()} for name, rho in found.items()}
