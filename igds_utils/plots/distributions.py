"""Figure 3: how strongly the top task feature fires in every arm, and whether that goes with the score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from igds_utils.analysis.distributions import winsorize
from igds_utils.display import Metric, arm_title, number, task_title
from igds_utils.plots.style import (
    COLUMN,
    HALO,
    INK,
    MUTED,
    PAGE,
    new_figure,
    selector_colour,
)  # fmt: skip


def activation_distributions(
    activations: dict[str, pd.DataFrame],
    compared: dict[str, pd.DataFrame],
    metrics: dict[str, Metric],
    features: dict[str, str],
) -> Figure:
    """Figure 3: a ridge an arm with its median, its score at the right edge; one panel a task.

    `activations[task]` = `distributions.arm_activations`, `compared[task]` = `distributions.compare`, `features[task]`
    names the feature. Values are winsorized at the 1st and 99th percentile of each arm; the dashed line is the
    median of the untrained model.
    """
    rows = max(len(table) for table in compared.values())
    width = PAGE if len(compared) > 1 else COLUMN + 1
    figure, axes = new_figure(width, 0.9 + 0.34 * rows, columns=len(compared))
    figure.get_layout_engine().set(w_pad=0.06)
    for axis, (task, table) in zip(axes[0], compared.items(), strict=True):
        ordered = table.sort_values("score", ascending=False).reset_index(drop=True)
        by_arm = dict(list(activations[task].groupby("arm")["activation"]))
        for row, arm in ordered.iterrows():
            _ridge(axis, winsorize(by_arm[arm["arm"]]), row, selector_colour(arm["selector"]), arm["median"])
            axis.text(
                1.02, row, metrics[task].show(arm["score"]), transform=axis.get_yaxis_transform(),
                va="center", fontsize=7, fontweight="bold" if arm["selector"] == "igds" else "normal",
            )  # fmt: skip
        axis.text(1.02, -0.75, "score", transform=axis.get_yaxis_transform(), fontsize=7, color=MUTED)
        base = ordered.loc[ordered["selector"] == "original", "median"]
        axis.axvline(base.iloc[0], color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
        axis.set_yticks(range(len(ordered)), [_short_title(arm, ordered) for arm in ordered["arm"]])
        axis.set(title=task_title(task), xlabel=f"activation of {features[task]} at p")
        axis.set_ylim(rows - 0.55, -1.0)  # one scale, so that ridges are as high in every panel
        axis.tick_params(axis="y", length=0)
    return figure


def _ridge(axis: Axes, values: np.ndarray, row: int, colour: str, median: float) -> None:
    """The density of values above the line y = row (0.8 high at its peak), and a mark at the median."""
    if np.ptp(values) > 0:
        grid = np.linspace(values.min(), values.max(), 200)
        density = gaussian_kde(values)(grid)
        height = row + 0.3 - 0.8 * density / density.max()
        axis.fill_between(grid, row + 0.3, height, color=colour, alpha=0.55, linewidth=0)
        axis.plot(grid, height, color=colour, linewidth=0.8)
    axis.plot([median, median], [row + 0.36, row - 0.5], color=INK, linewidth=1.4, solid_capstyle="butt")


def _short_title(arm: str, table: pd.DataFrame) -> str:
    """The arm's name; its ratio only where arms of several ratios are drawn."""
    return arm_title(arm) if table["ratio"].nunique() > 1 else arm_title(arm.partition("@")[0])


def activation_against_score(
    compared: dict[str, pd.DataFrame], rho: dict[str, dict], metrics: dict[str, Metric]
) -> Figure:
    """Median activation of the task feature against score, one point an arm, with the score's interval.

    `rho[task]` = `distributions.correlation`; its value over all arms is the panel's second line.
    """
    width = PAGE if len(compared) > 1 else COLUMN + 0.6
    figure, axes = new_figure(width, 2.6, columns=len(compared))
    for axis, (task, table) in zip(axes[0], compared.items(), strict=True):
        factor = metrics[task].factor
        for arm in table.to_dict("records"):
            colour = selector_colour(arm["selector"])
            if pd.notna(arm["low"]) and pd.notna(arm["high"]):
                bounds = [arm["low"] * factor, arm["high"] * factor]
                axis.plot([arm["median"]] * 2, bounds, color=colour, linewidth=1, alpha=0.6)
            axis.scatter(arm["median"], arm["score"] * factor, s=22, color=colour, zorder=3)
        mean, low, high = rho[task]["all"]
        shown = "no rank correlation"
        if not np.isnan(mean):
            shown = f"ρ = {number(mean, 2)} [{number(low, 2)}, {number(high, 2)}]"
        axis.set_title(f"{task_title(task)}\n{shown}")
        axis.set(xlabel="median activation at p", ylabel=metrics[task].label)
        axis.margins(0.16, 0.08)
    figure.draw_without_rendering()  # settles the layout, so that labels can be placed in points
    for axis, (task, table) in zip(axes[0], compared.items(), strict=True):
        factor = metrics[task].factor
        points = [
            Named(arm["median"], arm["score"] * factor, _short_title(arm["arm"], table),
                  selector_colour(arm["selector"]), arm["low"] * factor, arm["high"] * factor)
            for arm in table.astype({"low": float, "high": float}).to_dict("records")
        ]  # fmt: skip
        label_points(axis, points)
    return figure


class Named(NamedTuple):
    """A point with a name, and the ends of its interval (nan where it is unknown)."""

    x: float
    y: float
    name: str
    colour: str
    low: float
    high: float


def label_points(axis: Axes, points: list[Named], size: float = 7) -> None:
    """Name each point at the first place beside it or its interval that touches no other name, point or interval.

    The layout of the figure must have settled. Where no place is free of intervals, one that is free of names and
    points will do; where there is none either, the name stands to the right.
    """
    scale = axis.figure.dpi / 72
    frame = axis.get_window_extent()
    marks = [_extents(axis, point, size * scale) for point in points]
    taken: list[Box] = []
    for point, (dot, bar) in zip(points, marks, strict=True):
        px, py = axis.transData.transform((point.x, point.y))
        width, height, gap = 0.62 * size * len(point.name) * scale, 1.1 * size * scale, 4 * scale
        up, down = (bar[3] - py) / scale + 3, (bar[1] - py) / scale - 3
        boxes = {
            (dx, dy, ha, va): _box(px, py, width, height, gap, ha, va, dy * scale)
            for dx, dy, ha, va in [
                (5, 0, "left", "center"), (-5, 0, "right", "center"),
                (0, up, "center", "bottom"), (0, down, "center", "top"),
                (4, 5, "left", "bottom"), (-4, 5, "right", "bottom"), (4, -5, "left", "top"), (-4, -5, "right", "top"),
            ]
        }  # fmt: skip
        inside = {p: box for p, box in boxes.items() if _inside(box, frame)}
        others = [mark for mark in marks if mark[0] != dot]
        clear = [p for p, box in inside.items() if not _touches(box, taken + [dot for dot, _ in others])]
        best = [p for p in clear if not _touches(boxes[p], [bar for _, bar in marks])]
        dx, dy, ha, va = chosen = next(iter(best + clear), next(iter(boxes)))
        taken.append(boxes[chosen])
        axis.annotate(
            point.name, (point.x, point.y), xytext=(dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=size,
            color=point.colour, path_effects=HALO, zorder=4,
        ).set_in_layout(False)  # fmt: skip


Box = tuple[float, float, float, float]  # left, low, right, high, in pixels


def _extents(axis: Axes, point: Named, size: float) -> tuple[Box, Box]:
    """What a point and its interval cover; an interval that is unknown covers the point."""
    x, y = axis.transData.transform((point.x, point.y))
    low, high = (
        y if np.isnan(end) else axis.transData.transform((point.x, end))[1] for end in (point.low, point.high)
    )
    near = 0.4 * size  # a dot has a size
    return (x - near, y - near, x + near, y + near), (x - 1, low, x + 1, high)


def _box(x, y, width, height, gap, ha, va, dy) -> Box:
    """What a name covers that is aligned so to a place beside (x, y)."""
    beside = gap if va == "center" else 0
    left = {"left": x + beside, "right": x - width - beside, "center": x - width / 2}[ha]
    low = {"center": y - height / 2, "bottom": y + dy, "top": y + dy - height}[va]
    return left, low, left + width, low + height


def _inside(box: Box, frame) -> bool:
    return box[0] >= frame.x0 and box[2] <= frame.x1 and box[1] >= frame.y0 and box[3] <= frame.y1


def _touches(box: Box, others: list[Box]) -> bool:
    left, low, right, high = box
    return any(left < r and right > x and low < h and high > b for x, b, r, h in others)
