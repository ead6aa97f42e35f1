"""Figure 3: how strongly the top task feature fires in every arm, and whether that goes with the score."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from igds_utils.analysis.distributions import winsorize
from igds_utils.display import Metric, arm_title, correlation, task_title
from igds_utils.plots.style import (
    COLUMN,
    INK,
    MUTED,
    PAGE,
    Mark,
    name_marks,
    new_figure,
    selector_colour,
)  # fmt: skip


def activation_distributions(
    activations: dict[str, pd.DataFrame],
    compared: dict[str, pd.DataFrame],
    metrics: dict[str, Metric],
    features: dict[str, str],
) -> Figure:
    """Figure 3: a ridge per arm and training seed with its median, the arm's score at the right; one panel per task.

    `activations[task]` = `distributions.arm_activations`, `compared[task]` = `distributions.compare`, `features[task]`
    names the feature. Values are winsorized at the 1st and 99th percentile of each ridge; the dashed line is the
    median of the untrained model.
    """
    rows = max(len(table) for table in compared.values())
    width = PAGE if len(compared) > 1 else COLUMN + 1
    figure, axes = new_figure(width, 0.9 + 0.34 * rows, columns=len(compared))
    figure.get_layout_engine().set(w_pad=0.06)
    for axis, (task, table) in zip(axes[0], compared.items(), strict=True):
        ordered = table.sort_values("score", ascending=False).reset_index(drop=True)
        by_arm = dict(list(activations[task].groupby("arm")))
        for row, arm in ordered.iterrows():
            for _, values in by_arm[arm["arm"]].groupby("seed")["activation"]:
                _ridge(axis, values, row, selector_colour(arm["selector"]))
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


def _ridge(axis: Axes, values: pd.Series, row: int, colour: str) -> None:
    """The density of values above the line y = row (0.8 high at its peak), and a mark at the median."""
    clipped, median = winsorize(values), values.median()
    if np.ptp(clipped) > 0:
        grid = np.linspace(clipped.min(), clipped.max(), 200)
        density = gaussian_kde(clipped)(grid)
        height = row + 0.3 - 0.8 * density / density.max()
        axis.fill_between(grid, row + 0.3, height, color=colour, alpha=0.45, linewidth=0)
        axis.plot(grid, height, color=colour, linewidth=0.8)
    axis.plot([median, median], [row + 0.36, row - 0.5], color=INK, linewidth=1.4, solid_capstyle="butt")


def _short_title(arm: str, table: pd.DataFrame) -> str:
    """The arm's name; its ratio only where arms of several ratios are drawn."""
    return arm_title(arm) if table["ratio"].nunique() > 1 else arm_title(arm.partition("@")[0])


def activation_against_score(
    compared: dict[str, pd.DataFrame], rho: dict[str, dict], metrics: dict[str, Metric]
) -> Figure:
    """Median activation of the task feature against score: one point per arm, with the interval of its score.

    A horizontal bar joins the medians of an arm's training seeds. `rho[task]` = `distributions.correlation`; its value
    over all arms stands below the panel's title.
    """
    width = PAGE if len(compared) > 1 else COLUMN + 0.6
    figure, axes = new_figure(width, 2.6, columns=len(compared))
    for axis, (task, table) in zip(axes[0], compared.items(), strict=True):
        factor, marks = metrics[task].factor, []
        for arm in table.to_dict("records"):
            colour, score = selector_colour(arm["selector"]), arm["score"] * factor
            bar = {"color": colour, "linewidth": 0.9, "alpha": 0.6, "zorder": 1}
            axis.plot([min(arm["medians"]), max(arm["medians"])], [score, score], **bar)
            if pd.notna(arm["low"]) and pd.notna(arm["high"]):
                axis.plot([arm["median"]] * 2, [arm["low"] * factor, arm["high"] * factor], **bar)
            axis.scatter(arm["median"], score, s=22, color=colour, zorder=3)
            marks.append(Mark(arm["median"], score, _short_title(arm["arm"], table), colour))
        axis.set_title(task_title(task), pad=16)
        axis.text(0, 1.03, correlation(rho[task]["all"]), transform=axis.transAxes, fontsize=7)
        axis.set(xlabel="median activation at p", ylabel=metrics[task].label)
        axis.margins(0.1, 0.08)
        name_marks(axis, marks)
    return figure
