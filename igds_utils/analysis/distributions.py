"""Activation of the top task feature in the untrained model and in every arm (Figure 3), from stored products.

activations = distributions.arm_activations(run, "math")
table = distributions.compare(activations, run.read("math/summary.json"))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from igds_utils.core.arms import arms
from igds_utils.core.experiment import Run
from igds_utils.data.stats import paired_difference, spearman
from igds_utils.display import Metric, number, selector_title


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
        name = arm.selector if arm.selector in ("original", "full") else f"{arm.selector}@{arm.ratio:g}"
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
    """One row an arm, seeds pooled: its median activation, how far it moved, and its score (Figure 3 in numbers).

    activations: as `arm_activations` gives them; summary: records of `stats.summarise`. Columns: arm, selector, ratio,
    median, moved, moved_low, moved_high (mean paired difference to the untrained model on the same prompts; nan
    for that model itself), above (whether the whole interval lies above 0), score, low, high.
    """
    by_arm = {arm: table.set_index("sample_id")["activation"] for arm, table in activations.groupby("arm")}
    rows = []
    for record in summary:
        values = by_arm[record["arm"]]
        row = {key: record[key] for key in ("arm", "selector", "ratio", "score", "low", "high")}
        row["median"] = float(values.median())
        if record["arm"] != "original":
            moved = paired_difference(values, by_arm["original"], confidence, resamples, seed)
            row |= {"moved": moved.mean, "moved_low": moved.low, "moved_high": moved.high}
            row["above"] = bool(moved.low > 0)
        rows.append(row)
    return pd.DataFrame(rows)


def correlation(
    table: pd.DataFrame, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Spearman's correlation of median activation and score over the arms of `compare`, with its interval.

    `all` as in the paper, which counts the untrained model as one arm; `trained` without it. Each is (rho, low, high)
    with nan where there are too few arms; `n` is the number of arms. The arms are what is resampled.
    """
    trained = table[table["selector"] != "original"]
    found: dict[str, Any] = {"n": len(table)}
    for name, part in (("all", table), ("trained", trained)):
        found[name] = list(spearman(part["median"], part["score"], confidence, resamples, seed))
    return found


def story(table: pd.DataFrame, rho: dict[str, Any], metric: Metric, feature: str) -> str:
    """What Figure 3 shows for one task, in three sentences made from `compare` and `correlation`."""
    trained = table[table["selector"] != "original"]
    base = table.loc[table["selector"] == "original", "median"]
    highest = trained.loc[trained["median"].idxmax()]
    best = table.loc[table["score"].idxmax()]
    above, below = int(trained["above"].sum()), int((trained["moved_high"] < 0).sum())
    sentences = [
        f"{feature} fires at {number(base.iloc[0], 2)} in the median of the untrained model; of {len(trained)} trained "
        f"arms {above} lie above it and {below} below it on the same prompts (intervals that leave out 0)",
        f"among them {_title(highest)} has the highest median ({number(highest['median'], 2)}), and "
        f"{_title(best)} has the best score of all ({metric.show(best['score'])})",
        f"rank correlation of median and score over {rho['n']} arms: {_rho(rho['all'])}; over the trained ones: "
        f"{_rho(rho['trained'])}",
    ]
    return ". ".join(text[0].upper() + text[1:] if i else text for i, text in enumerate(sentences)) + "."


def _title(row: pd.Series) -> str:
    share = "" if row["ratio"] is None or pd.isna(row["ratio"]) else f" {100 * row['ratio']:g} %"
    return f"{selector_title(row['selector'])}{share}"


def _rho(rho: list[float]) -> str:
    if np.isnan(rho[0]):
        return "not defined (too few arms, or all equal)"
    verdict = "" if rho[1] > 0 or rho[2] < 0 else ", which covers zero"
    return f"{number(rho[0], 2)} [{number(rho[1], 2)}, {number(rho[2], 2)}]{verdict}"
