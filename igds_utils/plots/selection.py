"""How selectors compare on a pool of known quality, and what their scores look like."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from igds_utils.display import SELECTORS, selector_title
from igds_utils.plots.style import (
    ACCENT,
    HALO,
    INK,
    MUTED,
    PAGE,
    Mark,
    beside_line,
    dashed,
    empty_figure,
    name_marks,
    new_figure,
    selector_colour,
)  # fmt: skip

SIDES = {"target": "Target-side defects", "prompt": "Prompt-side defects"}
OTHERS = "#b5b5b5"


def score_distributions(rankings: dict[str, pd.DataFrame], n_selected: int) -> Figure:
    """Scores of the pool, one panel a selector: those of the `n_selected` best ranks over those left out.

    A procedure's selection need not lie at one end of its scores.
    """
    columns = min(4, len(rankings))
    rows = -(-len(rankings) // columns)
    figure, axes = new_figure(PAGE, 0.4 + 1.35 * rows, rows, columns)
    for axis, (selector, table) in zip(axes.flat, rankings.items(), strict=False):
        values, kept = table["score"].to_numpy(float), (table["rank"] <= n_selected).to_numpy()
        edges = np.histogram_bin_edges(values, bins=min(30, max(8, int(np.sqrt(values.size) * 2))))
        colours = [OTHERS, selector_colour(selector)]
        axis.hist([values[~kept], values[kept]], bins=edges, stacked=True, color=colours, linewidth=0)
        axis.set_title(selector_title(selector))
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.xaxis.set_major_locator(MaxNLocator(4))
    for axis in axes.flat[len(rankings) :]:
        axis.axis("off")
    figure.supxlabel(f"score (coloured: the {n_selected:,} selected; grey: left out)", fontsize=8)
    figure.supylabel("pool samples", fontsize=8)
    return figure


def precision_dots(precision: pd.DataFrame, ratio: float) -> Figure:
    """Share of clean samples in every selection at a ratio, target side and prompt side apart, with intervals.

    `precision` is quality/precision.parquet. Selectors are in the order of both sides together, best on top; the
    dashed line is what a random selection would have.
    """
    rows = precision[np.isclose(precision["ratio"], ratio)]
    if rows.empty:
        return empty_figure(f"no selection of {100 * ratio:g} % was judged")
    order = rows[rows["side"] == "both"].sort_values("precision", ascending=False, kind="stable")["selector"]
    order = order.tolist()
    figure, axes = new_figure(PAGE, 0.8 + 0.17 * len(order), columns=2, sharex=True, sharey=True)
    for axis, (side, title) in zip(axes[0], SIDES.items(), strict=True):
        of_side = rows[rows["side"] == side].set_index("selector").loc[order]
        axis.axvline(of_side["chance"].iloc[0], **dashed())
        for row, (selector, found) in enumerate(of_side.iterrows()):
            ours = selector in SELECTORS
            colour = selector_colour(selector) if ours else MUTED
            axis.plot([found["low"], found["high"]], [row, row], color=colour, linewidth=1.8 if ours else 0.9)
            axis.scatter(found["precision"], row, s=26 if ours else 12, color=colour, zorder=3)
        axis.set(title=title, xlabel="clean share of the selection", ylim=(len(order) - 0.4, -1.3))
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.grid(axis="x")
        axis.tick_params(axis="y", length=0)
        beside_line(
            axis, of_side["chance"].iloc[0], 1.0, " chance", "y", va="top", ha="left", fontsize=7, color=MUTED
        )
    axes[0, 0].set_yticks(range(len(order)), [selector_title(selector) for selector in order])
    _stress(axes[0, 0].get_yticklabels(), order)
    return figure


def _stress(labels: list[Text], selectors: list[str]) -> None:
    """Bold names for the paper's own selectors."""
    for label, selector in zip(labels, selectors, strict=True):
        if selector in SELECTORS:
            label.set_fontweight("bold")


def precision_curve(precision: pd.DataFrame) -> Figure:
    """Share of clean samples against the ratio: the paper's selectors in colour, all others as thin grey lines."""
    figure, axes = new_figure(PAGE, 2.7, columns=2, sharex=True, sharey=True)
    names, left, starts = list(dict.fromkeys(precision["selector"])), float(precision["ratio"].min()), []
    for axis, (side, title) in zip(axes[0], SIDES.items(), strict=True):
        of_side = precision[precision["side"] == side]
        chance = of_side.drop_duplicates("ratio").sort_values("ratio")
        axis.plot(chance["ratio"], chance["chance"], **dashed(1.1) | {"zorder": 2})
        starts.append([Mark(left, chance["chance"].iloc[0], "chance", INK)])
        for selector in sorted(names, key=lambda name: name in SELECTORS):
            line = of_side[of_side["selector"] == selector].sort_values("ratio").dropna(subset="precision")
            ours = selector in SELECTORS
            colour, width = (selector_colour(selector), 1.6) if ours else ("#d4d4d4", 0.8)
            axis.plot(
                line["ratio"], line["precision"], color=colour, linewidth=width, zorder=3 if ours else 1
            )
            if ours:
                starts[-1].append(Mark(left, line["precision"].iloc[0], selector_title(selector), colour))
        axis.set(title=title, xlabel="share of the pool selected", xticks=[0.2, 0.4, 0.6, 0.8, 1.0])
        axis.set_xlim(left - 0.28, 1.04)
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.grid(axis="y")
    axes[0, 0].set_ylabel("clean share of the selection")
    for axis, marks in zip(axes[0], starts, strict=True):  # all lines meet on the right
        name_marks(axis, marks, at=0.17, ha="right")
    return figure


def overlap_heatmap(overlap: pd.DataFrame, ratio: float) -> Figure:
    """Jaccard index of every pair of selections of a ratio (overlap.parquet), selectors that agree side by side.

    The colours are centred at what two random selections share, r / (2 - r).
    """
    table = overlap.pivot(index="a", columns="b", values="jaccard")
    order = _by_likeness(table)
    n, chance = len(order), ratio / (2 - ratio)
    side = min(PAGE, 1.9 + 0.24 * n)
    figure, axes = new_figure(side + 0.3, side - 0.35)
    shown = 100 * table.loc[order, order].mask(np.triu(np.ones((n, n), bool))).iloc[1:, :-1]
    shown = shown.rename(index=selector_title, columns=selector_title)
    sns.heatmap(
        shown, ax=axes[0, 0], cmap="vlag", center=100 * chance, vmin=0, vmax=100, square=True, linewidths=0.4,
        annot=n <= 30, fmt=".0f", annot_kws={"fontsize": 7 if n <= 12 else 5},
        cbar_kws={"label": f"samples in common (%), chance {100 * chance:.0f}", "shrink": 0.6},
    )  # fmt: skip
    axes[0, 0].set(xlabel="", ylabel="")
    axes[0, 0].tick_params(length=0)
    axes[0, 0].tick_params(axis="y", rotation=0)
    _stress(axes[0, 0].get_yticklabels(), order[1:])
    _stress(axes[0, 0].get_xticklabels(), order[:-1])
    return figure


def _by_likeness(table: pd.DataFrame) -> list[str]:
    """Names in the leaf order of an average-linkage tree over 1 - Jaccard."""
    if len(table) < 3:
        return list(table.index)
    distance = np.clip(1 - (table.to_numpy() + table.to_numpy().T) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    leaves = leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))
    return [table.index[i] for i in leaves]


def defects_heatmap(defects: pd.DataFrame) -> Figure:
    """Share of every kind of defect that each selector keeps (defects.parquet); selectors that keep least on top.

    Colours: kept more often (orange) or less often (blue) than by chance, which the last row shows; without colour
    where the interval of the share covers chance. Shares of fewer than ten samples are shown as counts.
    """
    kinds = defects.drop_duplicates("defect").set_index("defect")
    told = (defects["low"] > defects["chance"]) | (defects["high"] < defects["chance"])
    percent = (100 * defects["share"]).round().astype(int).astype(str)
    counts = defects["kept"].astype(str) + "/" + defects["n"].astype(str)
    cells = defects.assign(
        excess=100 * (defects["share"] - defects["chance"]).where(told, 0.0),
        shown=percent.where(defects["n"] >= 10, counts),
    )
    shares, table, shown = (
        cells.pivot(index="selector", columns="defect", values=value)[kinds.index]
        for value in ("share", "excess", "shown")
    )
    order = shares[kinds.index[kinds["side"] != ""]].mean(axis=1).sort_values(kind="stable").index
    table, shown = table.loc[order], shown.loc[order]
    table.loc["chance"] = 0.0
    shown.loc["chance"] = [f"{100 * chance:.0f} %" for chance in kinds["chance"]]
    names = [f"{name} ({int(n)})" for name, n in kinds["n"].items()]
    figure, axes = new_figure(PAGE, 1.35 + 0.19 * len(table))
    axis, colours = axes[0, 0], sns.blend_palette([ACCENT, "#f7f7f7", "#D55E00"], as_cmap=True)
    sns.heatmap(
        table, ax=axis, cmap=colours, vmin=-60, vmax=60, center=0, linewidths=0.4,
        annot=shown, fmt="", annot_kws={"fontsize": 6.5},
        cbar_kws={"label": "points above chance", "shrink": 0.6},
    )  # fmt: skip
    for cell, excess in zip(axis.texts, table.to_numpy().flat, strict=True):
        if not excess:
            cell.set_color(MUTED)
    axis.set(
        xlabel="kept: samples of each kind (how many there are in the pool), or % of ten or more", ylabel=""
    )
    axis.set_xticklabels(names, rotation=35, ha="right")
    axis.set_yticklabels([selector_title(name) for name in table.index], rotation=0)
    _stress(axis.get_yticklabels(), list(table.index))
    sides = kinds["side"].tolist()
    for side, title in SIDES.items():
        if side in sides:
            first, count = sides.index(side), sides.count(side)
            axis.axvline(first, color="white", linewidth=4)
            middle = first + count / 2
            axis.text(middle, -0.3, title, ha="center", va="bottom", fontweight="bold", path_effects=HALO)
    axis.axhline(len(table) - 1, color="white", linewidth=4)
    axis.tick_params(length=0)
    return figure
