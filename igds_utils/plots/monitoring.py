"""A series of models over time: task score above, task-feature activation below, alerts marked."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from igds_utils.display import Metric
from igds_utils.plots.style import ACCENT, AGAIN, GRID, INK, MUTED, PAGE, new_figure


def monitor(watched: pd.DataFrame, metric: Metric, feature: str, label: str) -> Figure:
    """Score with its interval, and median activation of `feature` with the band it is held against, over a series.

    `watched` = `monitoring.watch`; `label` names the horizontal axis. Points that raised an alert are crossed.
    """
    figure, axes = new_figure(PAGE * 0.75, 3.6, rows=2, sharex=True)
    upper, lower = axes[:, 0]
    x = np.arange(len(watched))
    score = watched["score"] * metric.factor
    upper.vlines(
        x, watched["low"] * metric.factor, watched["high"] * metric.factor, color=ACCENT, linewidth=1
    )
    upper.plot(x, score, color=ACCENT, marker="o", markersize=4)
    upper.set_ylabel(metric.label)
    known = watched["band_low"].notna().to_numpy()  # from the point on whose activations make the band
    lower.fill_between(
        x[known], watched["band_low"][known], watched["band_high"][known], color=GRID, alpha=0.7, linewidth=0
    )
    lower.plot(x, watched["activation"], color=INK, marker="o", markersize=4)
    lower.set_ylabel(f"median of {feature}")
    first = watched["point"][known].iloc[0]
    lower.annotate(
        f"band of {first}", (x[-1], watched["band_high"].iloc[-1]), xytext=(0, 2), textcoords="offset points",
        ha="right", va="bottom", fontsize=7, color=MUTED,
    )  # fmt: skip
    for axis, values, alert in (
        (upper, score, watched["score_alert"]),
        (lower, watched["activation"], watched["activation_alert"]),
    ):
        hit = alert.to_numpy(bool)
        axis.scatter(x[hit], values[hit], s=70, marker="x", color=AGAIN, linewidth=1.8, zorder=4)
        axis.margins(x=0.06, y=0.12)
    alerts = int(watched["score_alert"].sum() + watched["activation_alert"].sum())
    upper.set_title(f"× {alerts} alert{'s' if alerts != 1 else ''}", color=AGAIN if alerts else MUTED)
    long = max(map(len, watched["point"])) > 8
    lower.set_xticks(x, watched["point"], rotation=30 if long else 0, ha="right" if long else "center")
    lower.set_xlabel(label)
    return figure
