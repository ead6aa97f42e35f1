"""Table 5 as a picture, and how identification depends on the layers that have an SAE."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from igds_utils.display import Metric, layer_names, task_title
from igds_utils.plots.style import (
    ACCENT,
    AGAIN,
    COLUMN,
    GRID,
    INK,
    MUTED,
    PAGE,
    beside_line,
    interval_line,
    new_figure,
)


def rank_agreement(
    best: dict[str, list[str]], shared: set[str], paper: dict[str, list[str]] | None = None
) -> Figure:
    """Ranks of the best features on each source; those that all share beyond chance are joined in colour.

    `best[source]` = feature names, best first; `shared` = `stability.beyond_chance`; `paper` is the same as `best` from
    Table 5, drawn as a second panel.
    """
    panels = {"This run": (best, shared)}
    if paper:
        panels["Paper, Gemma-2-2B"] = (paper, set.intersection(*map(set, paper.values())))
    rows = max(len(names) for columns, _ in panels.values() for names in columns.values())
    figure, axes = new_figure(
        PAGE if len(panels) == 2 else COLUMN, 0.75 + 0.3 * rows, columns=len(panels), sharey=True
    )
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        _ranks(axis, *panel)
        axis.set_title(title)
    axes[0, 0].set(ylabel="rank by causal effect", ylim=(rows + 0.5, 0.5), yticks=range(1, rows + 1))
    return figure


def _ranks(axis: Axes, columns: dict[str, list[str]], shared: set[str]) -> None:
    place = {
        (source, name): (x, rank)
        for x, (source, names) in enumerate(columns.items())
        for rank, name in enumerate(names, start=1)
    }
    sources = list(columns)
    for left, right in zip(sources[:-1], sources[1:], strict=True):
        for name in sorted(set(columns[left]) & set(columns[right])):
            (x0, y0), (x1, y1) = place[left, name], place[right, name]
            colour, width = (ACCENT, 1.4) if name in shared else (MUTED, 0.8)
            axis.plot([x0 + 0.34, x1 - 0.34], [y0, y1], color=colour, linewidth=width)
    for (_, name), (x, rank) in place.items():
        style = {"color": ACCENT, "fontweight": "bold"} if name in shared else {"color": INK}
        axis.text(x, rank, name, ha="center", va="center", fontsize=7, **style)
    axis.set_xticks(range(len(sources)), sources)
    axis.set_xlim(-0.5, len(sources) - 0.5)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def sae_coverage(found: dict[str, pd.DataFrame], metrics: dict[str, Metric]) -> Figure:
    """Effect of the best feature if only a window of layers had SAEs: one row a window, one panel a task.

    `found[task]` = `sae_coverage.identify_on_layers`. Ring and line: the effect and its interval on the samples that
    chose the feature; dot: on samples that did not; diamond: on the confirmation set, where it was measured there.
    """
    figure, axes = new_figure(PAGE if len(found) > 1 else COLUMN + 0.6, 2.7, columns=len(found), sharey=True)
    for axis, (task, table) in zip(axes[0], found.items(), strict=True):
        metric, last = metrics[task], len(table) - 1
        axis.axvline(0, color=GRID, linewidth=0.8)
        for row, window in enumerate(table.to_dict("records")):
            if not window["tested"]:
                beside_line(
                    axis, 0.5, row, "none tested", "x", ha="center", va="center", color=MUTED, fontsize=7
                )
                continue
            colour = ACCENT if row == last else MUTED
            interval_line(axis, window["delta_low"], window["delta_high"], row, metric, colour, 0.9)
            ring = {"facecolor": "white", "edgecolor": colour, "zorder": 3}
            axis.scatter(window["delta"] * metric.factor, row, s=22, **ring)
            axis.scatter(window["held_out"] * metric.factor, row, s=20, color=colour, zorder=4)
            if pd.notna(again := window["confirmation_delta"]):
                axis.scatter(again * metric.factor, row, s=18, marker="D", color=AGAIN, zorder=5)
        axis.set_yticks(range(len(table)), [layer_names(window) for window in table["layers"]])
        axis.set(title=task_title(task), xlabel=f"effect δ ({metric.unit})", ylim=(last + 0.6, -0.6))
        axis.tick_params(axis="y", length=0)
        axis.margins(x=0.08)
    axes[0, 0].get_yticklabels()[-1].set(color=ACCENT, fontweight="bold")
    axes[0, 0].set_ylabel("layers that have an SAE")
    note = (
        "ring: on the samples that chose the feature, with interval; dot: held out; diamond: confirmation set"
    )
    figure.supxlabel(note, fontsize=7, color=MUTED)
    return figure
