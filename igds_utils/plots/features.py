"""Where task features lie and what they bring out: Figures 5, 6 and 7."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from igds_utils.display import task_title
from igds_utils.plots.style import AGAIN, GRID, HALO, MUTED, PAGE, empty_figure, new_figure

TASK_MARKS = {"math": ("#0072B2", "o"), "summarization": ("#D55E00", "s"), "translation": ("#009E73", "^")}
OTHER_MARK = ("#7A5195", "D")
PALE = "#c4c4c4"


def feature_map(recalled: dict[str, pd.DataFrame], found: dict[str, dict], layers: list[int]) -> Figure:
    """Figure 5: layer against feature index (log axis) of every recalled feature, one panel a task.

    `recalled[task]` = recall.parquet, `found[task]` = task_features.json; a ring marks the task features.
    """
    figure, axes = new_figure(PAGE, 2.4, columns=len(recalled), sharex=True, sharey=True)
    for axis, (task, table) in zip(axes[0], recalled.items(), strict=True):
        colour, mark = TASK_MARKS.get(task, OTHER_MARK)
        here = table[table["candidate"].astype(bool)]
        axis.scatter(
            here["feature"] + 1, here["layer"], s=9, color=colour, marker=mark, alpha=0.55, linewidth=0
        )
        for item in found[task]["features"]:
            if item["name"] in found[task]["selected"]:
                place = (item["feature"] + 1, item["layer"])
                axis.scatter(*place, s=70, facecolor="none", edgecolor=colour, linewidth=1.4)
                left, top = place[0] > 300, place[1] == max(layers)  # above the top layer stands the title
                axis.annotate(
                    item["name"], place, xytext=(-7 if left else 7, -7 if top else 7), textcoords="offset points",
                    ha="right" if left else "left", va="top" if top else "bottom", color=colour, fontweight="bold",
                    path_effects=HALO,
                )  # fmt: skip
        axis.set_title(f"{task_title(task)}: {len(here)} recalled")
        axis.set(xscale="log", xlabel="feature index + 1 (log scale)")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.grid(axis="y")
    _layer_axis(axes[0, 0], layers)
    return figure


def _layer_axis(axis, layers: list[int]) -> None:
    axis.set_ylabel("layer")
    axis.set_ylim(min(layers) - 1.5, max(layers) + 1.5)
    if len(layers) <= 12:
        axis.set_yticks(layers)
    else:
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))


def rising_words(shifts: dict[str, pd.DataFrame], features: dict[str, str], most: int = 10) -> Figure:
    """Figure 6: the words whose rate rises most when a task's top feature is amplified, one panel a task.

    `shifts[task]` = `semantics.lexical_shift`; bars are differences of smoothed log-odds in standard errors, with the
    counts in the original and in the amplified outputs. Words that rise beyond chance stand first; the others are pale.
    """
    shown = {task: table[table["z"] > 0].head(most) for task, table in shifts.items()}
    if not any(len(table) for table in shown.values()):
        return empty_figure("no word becomes more frequent under amplification")
    figure, axes = new_figure(PAGE, 0.8 + 0.2 * most, columns=len(shown), sharex=True)
    for axis, (task, table) in zip(axes[0], shown.items(), strict=True):
        colour, _ = TASK_MARKS.get(task, OTHER_MARK)
        colours = np.where(table["rises"], colour, PALE)
        bars = axis.barh(range(len(table)), table["z"], color=colours, height=0.7)
        axis.bar_label(
            bars,
            [f"{r.original} → {r.amplified}" for r in table.itertuples()],
            padding=2,
            fontsize=6.5,
            color=MUTED,
        )
        axis.set_yticks(range(len(table)), table["word"])
        axis.set_ylim(most - 0.4, -0.6)
        axis.margins(x=0.4)
        axis.set_title(f"{task_title(task)}\n{features[task]} amplified")
    figure.supxlabel("rise in standard errors (grey: no more than chance allows)", fontsize=8)
    return figure


def feature_topology(
    best: dict[str, pd.DataFrame], layers: list[int], paper: list[str] | None = None
) -> Figure:
    """Figure 7: the best candidate of every layer by name, one column a task; the chosen one in bold.

    `best[task]` = `semantics.topology`. `paper`: names that the paper's figure shows for math, drawn beside ours
    where the model is the paper's.
    """
    columns = list(best) + (["paper"] if paper else [])
    figure, axes = new_figure(PAGE, max(2.2, 0.9 + 0.17 * len(layers)))
    axis = axes[0, 0]
    for column, task in enumerate(columns):
        colour = AGAIN if task == "paper" else TASK_MARKS.get(task, OTHER_MARK)[0]
        axis.plot([column, column], [min(layers), max(layers)], color=GRID, linewidth=1.5, zorder=0)
        for name, layer, strong in _named(best.get(task), paper):
            axis.scatter(column, layer, s=34 if strong else 14, color=colour, zorder=3)
            axis.annotate(
                name, (column, layer), xytext=(6, 0), textcoords="offset points", va="center",
                fontweight="bold" if strong else "normal", color=colour if strong else MUTED,
            )  # fmt: skip
    axis.set_xticks(range(len(columns)), [*map(task_title, best), *["Math (paper)"] * bool(paper)])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(-0.3, len(columns) - 0.3)
    axis.tick_params(axis="x", length=0)
    axis.spines["bottom"].set_visible(False)
    _layer_axis(axis, layers)
    return figure


def _named(best: pd.DataFrame | None, paper: list[str] | None) -> list[tuple[str, int, bool]]:
    """(name, layer, whether it was chosen) of a column's features."""
    if best is None:
        return [(name, int(name[1:].split("_")[0]), False) for name in paper or []]
    rows = zip(best["name"], best["layer"], best["selected"], strict=True)
    return [(name, int(layer), bool(chosen)) for name, layer, chosen in rows]
