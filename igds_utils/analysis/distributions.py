"""Activation of the top task feature in the untrained model and in every arm (Figure 3), from stored products.

activations = distributions.arm_activations(run, "math")
table = distributions.compare(activations, run.read("math/summary.json"))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from igds_utils import display
from igds_utils.core.arms import WHOLE, arms
from igds_utils.core.experiment import Run
from igds_utils.data.stats import paired_difference, spearman
from igds_utils.display import Metric, missing, number, selector_title


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


def story(table: pd.DataFrame, rho: dict[str, dict[str, Any]], metric: Metric, feature: str) -> str:
    """What Figure 3 shows for one task, in a few sentences made from `compare` and `correlation`."""
    trained = table[table["selector"] != "original"]
    base = table.loc[table["selector"] == "original", "median"]
    highest = trained.loc[trained["median"].idxmax()]
    best = table.loc[table["score"].idxmax()]
    judged = trained[trained["judged"].astype(bool)]
    above, below = int((judged["moved_low"] > 0).sum()), int((judged["moved_high"] < 0).sum())
    moved = " to ".join(number(trained["moved"].agg(end), 2, signed=True) for end in ("min", "max"))
    counted = (
        f"; of {len(judged)} that were trained more than once, {above} lie above it and {below} below it "
        "(intervals that leave out 0)"
    )
    sentences = [
        f"{feature} fires at {number(base.iloc[0], 2)} in the median of the untrained model; on the same prompts the "
        f"{len(trained)} trained arms move by {moved} in the mean{counted if len(judged) else ''}",
        f"Among them {_title(highest)} has the highest median ({number(highest['median'], 2)}), and "
        f"{_title(best)} has the highest score ({metric.show(best['score'])})",
        _luck(trained),
        f"Median and score over all arms: {display.correlation(rho['all'])}; over the trained ones: "
        f"{display.correlation(rho['trained'])}",
    ]
    return ". ".join(sentences) + "."


def _luck(trained: pd.DataFrame) -> str:
    """Whether the order of the medians could be luck of the training."""
    if trained["medians"].map(len).max() == 1:
        return "Every arm was trained once, so how far chance in training moves a median is not known"
    between, within = np.ptp(trained["median"]), trained["medians"].map(np.ptp).max()
    verdict = (
        "no more than trainings of one arm differ, so their order may be luck"
        if within >= between
        else "that is more than two trainings of one arm differ"
    )
    return (
        f"The medians of the trained arms lie within {number(between, 2)}, those of one arm trained with different "
        f"seeds up to {number(within, 2)} apart: {verdict}"
    )


def _title(row: pd.Series) -> str:
    share = "" if missing(row["ratio"]) else f" {100 * row['ratio']:g} %"
    return f"{selector_title(row['selector'])}{share}"
