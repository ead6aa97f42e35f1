"""Figure 4: score against the share of the pool that was kept; and what selection costs against what it saves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from igds_utils.display import SELECTORS, Metric, selector_title, task_title
from igds_utils.plots.distributions import Named, label_points
from igds_utils.plots.style import (
    COLUMN,
    MUTED,
    PAGE,
    beside_line,
    dashed,
    label_ends,
    new_figure,
    selector_colour,
)

RATIOS = (0.2, 0.5, 0.8)  # the paper's
SPREAD = 0.022  # selectors of one ratio are drawn side by side, at most so far apart


def score_against_ratio(summary: dict[str, list[dict]], metrics: dict[str, Metric]) -> Figure:
    """Figure 4: score of every selector at every ratio with its interval, Full as a line; one panel a task.

    `summary[task]` = records of `stats.summarise`. Ratios of the paper at which nothing was trained say so. Ablations
    of IGDS (`igds_...`) belong to Table 3 and are left out.
    """
    tables = {task: pd.DataFrame(records) for task, records in summary.items()}
    chosen = {
        task: table[table["ratio"].notna() & ~table["selector"].str.startswith("igds_")]
        for task, table in tables.items()
    }
    most = max(table["selector"].nunique() for table in chosen.values())
    width, height = PAGE if len(summary) > 1 else COLUMN + 0.6, max(2.7, 0.8 + 0.19 * most)
    figure, axes = new_figure(width, height, columns=len(summary))
    beside = {}  # names beside the points, where there is one ratio; where there are more, at the lines' ends
    for axis, (task, selected) in zip(axes[0], chosen.items(), strict=True):
        metric, seen = metrics[task], sorted(selected["ratio"].unique())
        full = tables[task].loc[tables[task]["selector"] == "full", "score"] * metric.factor
        if len(full):
            axis.axhline(full.iloc[0], **dashed())
            beside_line(axis, 0.01, full.iloc[0], "Full", "x", va="bottom", fontsize=7)
        ticks = sorted({*RATIOS, *seen})
        axis.set_xticks(ticks)
        axis.set(title=task_title(task), xlabel="share of the pool kept", ylabel=metric.label)
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.set_xlim(min(ticks) - 0.1, max(ticks) + 0.12)
        not_run = {"rotation": 90, "ha": "center", "va": "center", "color": MUTED, "fontsize": 7}
        for ratio in set(ticks) - set(seen):
            beside_line(axis, ratio, 0.5, "not run", "y", **not_run)
        ends = _selector_lines(axis, selected, metric)
        if len(seen) > 1:
            label_ends(axis, [(point.x, point.y, point.name, point.colour) for point in ends])
        else:
            beside[axis] = [point._replace(name=selector_title(point.name)) for point in ends]
    figure.draw_without_rendering()  # settles the layout, so that names can be placed in points
    for axis, points in beside.items():
        label_points(axis, points)
    return figure


def _selector_lines(axis: Axes, selected: pd.DataFrame, metric: Metric) -> list[Named]:
    """A line a selector, side by side at every ratio; where each ends, by the selector's name."""
    names = [s for s in SELECTORS if s in set(selected["selector"])]
    names += sorted(set(selected["selector"]) - set(names))
    widest = SPREAD if selected["ratio"].nunique() > 1 else 2.5 * SPREAD  # one ratio has the panel to itself
    step, ends = min(widest, 0.4 / len(names)) if names else 0, []
    for place, name in enumerate(names):
        line = selected[selected["selector"] == name].sort_values("ratio")
        x, colour = line["ratio"] + step * (place - (len(names) - 1) / 2), selector_colour(name)
        score, low, high = (line[column] * metric.factor for column in ("score", "low", "high"))
        width = 1.6 if name == "igds" else 1
        axis.plot(x, score, color=colour, marker="o", markersize=4, linewidth=width)
        axis.vlines(x, low, high, color=colour, linewidth=0.9)
        last = (float(column.iloc[-1]) for column in (low, high))
        ends.append(Named(float(x.iloc[-1]), float(score.iloc[-1]), name, colour, *last))
    return ends


def break_even(curve: pd.DataFrame) -> Figure:
    """Net saving, as a share of what training on the whole pool costs, against pool size: a line a selector.

    `curve` = `benefit.curve` (selector, pool, net_share). A dot marks where a line starts to pay.
    """
    figure, axes = new_figure(COLUMN + 0.6, 2.4)
    axis, ends = axes[0, 0], []
    axis.set(xscale="log", ylim=(-1.05, 1.05), xlabel="pool samples (log scale)")
    axis.set_ylabel("net saving, of training on all")
    axis.axhline(0, color=MUTED, linewidth=0.8)
    for selector, line in curve.groupby("selector", sort=False):
        colour, net = selector_colour(selector), line["net_share"].to_numpy()
        axis.plot(line["pool"], net, color=colour)
        crossing = np.flatnonzero((net[:-1] < 0) & (net[1:] >= 0))
        if crossing.size:  # the share rises with log(pool) almost evenly between two neighbouring points
            pools, i = np.log(line["pool"].to_numpy()), crossing[0]
            axis.scatter(
                np.exp(np.interp(0, net[i : i + 2], pools[i : i + 2])), 0, s=18, color=colour, zorder=3
            )
        if abs(net[-1]) <= 1:
            ends.append((float(line["pool"].iloc[-1]), float(net[-1]), selector, colour))
    label_ends(axis, ends)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_major_locator(LogLocator(numticks=4))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="y")
    return figure
