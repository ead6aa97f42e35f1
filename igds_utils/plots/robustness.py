"""Figure 4: score against the share of the pool that was kept; and what selection costs against what it saves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from igds_utils.display import SELECTORS, Metric, selector_title, task_title
from igds_utils.plots.style import (
    COLUMN,
    INK,
    MUTED,
    PAGE,
    Mark,
    dashed,
    name_marks,
    new_figure,
    selector_colour,
)

RATIOS = (0.2, 0.5, 0.8)  # the paper's


def score_against_ratio(summary: dict[str, list[dict]], metrics: dict[str, Metric]) -> Figure:
    """Figure 4: score of every selector at every ratio with its interval, Full as a line; one panel per task.

    `summary[task]` = records of `summaries.summarise`. Ratios of the paper at which nothing was trained say so.
    Ablations of IGDS (`igds_...`) belong to Table 3 and are left out.
    """
    tables = {task: pd.DataFrame(records) for task, records in summary.items()}
    chosen = {
        task: table[table["ratio"].notna() & ~table["selector"].str.startswith("igds_")]
        for task, table in tables.items()
    }
    panels, most = len(tables), max(rows["selector"].nunique() for rows in chosen.values())
    if most > len(SELECTORS):  # too many for narrow panels
        figure, axes = new_figure(PAGE, 0.3 + 2.4 * panels, rows=panels)
    else:
        figure, axes = new_figure(PAGE if panels > 1 else COLUMN + 0.6, 2.7, columns=panels)
    for axis, (task, table) in zip(axes.flat, tables.items(), strict=True):
        metric, seen = metrics[task], set(chosen[task]["ratio"])
        ratios = sorted({*RATIOS, *seen})
        marks = _selector_lines(axis, chosen[task], ratios, metric)
        shares = [f"{100 * ratio:g} %" + "\nnot run" * (ratio not in seen) for ratio in ratios]
        axis.set_xticks(range(len(ratios)), shares)
        axis.set(title=task_title(task), xlabel="share of the pool kept", ylabel=metric.label)
        axis.set_xlim(-0.5, right := len(ratios) - 0.6)
        for full in table.loc[table["selector"] == "full", "score"] * metric.factor:
            axis.axhline(full, **dashed())
            marks.append(Mark(right, full, "Full", INK))
        name_marks(axis, marks)
    return figure


def _selector_lines(axis: Axes, chosen: pd.DataFrame, ratios: list[float], metric: Metric) -> list[Mark]:
    """A line per selector, side by side at every ratio (evenly spaced, whatever their values); where each ends."""
    names = [s for s in SELECTORS if s in set(chosen["selector"])]
    names += sorted(set(chosen["selector"]) - set(names))
    step, marks = min(0.12, 0.7 / max(1, len(names))), []
    for place, name in enumerate(names):
        line = chosen[chosen["selector"] == name].sort_values("ratio")
        x = line["ratio"].map(ratios.index).to_numpy() + step * (place - (len(names) - 1) / 2)
        score, low, high = line[["score", "low", "high"]].to_numpy(float).T * metric.factor
        colour = selector_colour(name)
        axis.plot(x, score, color=colour, marker="o", markersize=4, linewidth=1.6 if name == "igds" else 1)
        axis.vlines(x, low, high, color=colour, linewidth=0.9)
        marks.append(Mark(x[-1], score[-1], selector_title(name), colour))
    return marks


def break_even(curve: pd.DataFrame) -> Figure:
    """Net saving, as a share of what training on the whole pool costs, against pool size: a line per selector.

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
            ends.append(Mark(line["pool"].iloc[-1], net[-1], selector_title(selector), colour))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_major_locator(LogLocator(numticks=4))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="y")
    name_marks(axis, ends)
    return figure
