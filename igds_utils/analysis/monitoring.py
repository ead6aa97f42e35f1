"""Watching a series of models: does the task score hold, and does the task feature still fire as it did?

A series is one table with a row per model, quantity and sample: point, measure, sample_id, value, and seed where a
model was trained with several. `point` names a model or checkpoint, in order; `measure` is "score" or the name of a
task feature. `of_arms` makes the rows of the finished arms of a run.

    watched = monitoring.watch(monitoring.of_arms(run, "math"), feature="l12_p4126")
    print(monitoring.report(watched, metric))
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from igds_utils.analysis.distributions import arm_activations
from igds_utils.core.experiment import Run
from igds_utils.data.stats import interval, paired_difference
from igds_utils.display import Metric, arm_title, number

SCORE = "score"
BAND = 0.9  # share of a model's activations that the band holds


def of_arms(run: Run, task: str) -> pd.DataFrame:
    """The arms of a run as a series, the untrained model first: whole test set, all fixed prompts, every seed."""
    top = run.task_features(task)[0].name
    read = arm_activations(run, task).rename(columns={"activation": "value"}).assign(measure=top)
    scored = run.read(f"{task}/evaluation.parquet")
    scored["arm"] = scored["arm"].str.replace(r"-s\d+$", "", regex=True)
    scored = scored[scored["arm"].isin(read["arm"])].rename(columns={"score": "value"}).assign(measure=SCORE)
    keys = ["arm", "measure", "sample_id", "seed"]
    both = pd.concat([read, scored])[[*keys, "value"]].groupby(keys, sort=False, as_index=False).mean()
    order = {arm: number for number, arm in enumerate(dict.fromkeys(both["arm"]))}
    both = both.sort_values("arm", key=lambda arms: arms.map(order), kind="stable", ignore_index=True)
    return both.assign(point=both["arm"].map(arm_title)).drop(columns="arm")


def watch(
    series: pd.DataFrame,
    feature: str,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    start: int = 0,
) -> pd.DataFrame:
    """One row per point of a series: its score and activation, and whether either raises an alert.

    The rule. *Score*: the paired difference to the best point so far, on the same test items, lies below zero with
    its whole interval; with many points some do by chance, since each is one more test. *Activation*: the median over
    the prompts (the mean of the medians of several seeds) leaves the band that held the middle 90 % of the activations
    at point number `start`. Columns: point, score, low, high, n, lost, lost_low, lost_high (against the best so far;
    nan for the first), activation, band_low, band_high (nan before `start`), score_alert, activation_alert.
    Raises `ValueError` where a point lacks the score or the feature.
    """
    if "seed" not in series:
        series = series.assign(seed=0)
    rows, best, band = [], None, (np.nan, np.nan)
    for place, (point, table) in enumerate(series.groupby("point", sort=False)):
        values = {
            name: part.pivot_table(index="sample_id", columns="seed", values="value")
            for name, part in table.groupby("measure")
        }
        if missing := {SCORE, feature} - set(values):
            raise ValueError(f"series: {point} has no {missing.pop()}; it holds {', '.join(values)}")
        score, activation = values[SCORE], values[feature]  # (samples, seeds)
        model = score if score.shape[1] > 1 else score.iloc[:, 0]  # one model is watched as it stands
        if place == start:
            band = tuple(activation.stack().quantile([(1 - BAND) / 2, (1 + BAND) / 2]))
        mean, low, high = interval(score.mean(axis=1), confidence, resamples, seed)
        row = {"point": point, "score": mean, "low": low, "high": high, "n": len(score)}
        if best is not None:
            lost = paired_difference(model, best, confidence, resamples, seed)
            row |= {"lost": lost.mean, "lost_low": lost.low, "lost_high": lost.high}
        middle = float(activation.median().mean())
        row |= {"activation": middle, "band_low": band[0], "band_high": band[1]}
        row["score_alert"] = bool(row.get("lost_high", 0.0) < 0)
        row["activation_alert"] = middle < band[0] or middle > band[1]
        rows.append(row)
        best = model if best is None or mean > best.to_numpy().mean() else best
    return pd.DataFrame(rows)


def report(watched: pd.DataFrame, metric: Metric) -> str:
    """The alerts of `watch` in words, one line each; or that there is none."""
    lines = []
    for row in watched.to_dict("records"):
        if row["score_alert"]:
            lost = metric.show_interval(-row["lost"], -row["lost_high"], -row["lost_low"])
            lines.append(f"{row['point']}: the score is {lost} {metric.unit} below the highest score so far")
        if row["activation_alert"]:
            side = "below" if row["activation"] < row["band_low"] else "above"
            band = f"{number(row['band_low'], 2)} to {number(row['band_high'], 2)}"
            lines.append(
                f"{row['point']}: the feature's median {number(row['activation'], 2)} is {side} its band ({band})"
            )
    return "\n".join(lines) or f"no alert in {len(watched)} models"
