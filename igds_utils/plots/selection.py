"""How selectors compare on a pool of known quality, and what their scores look like."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from igds_utils.display import SELECTORS, selector_title
from igds_utils.plots import style

SIDES = {"target": "Target-side defects", "prompt": "Prompt-side defects"}


def score_distributions(rankings: dict[str, pd.DataFrame], n_selected: int) -> Figure:
    """Scores of the pool, one panel a selector: those of the `n_selected` best ranks over those left out.

    A procedure's selection need not lie at one end of its scores.
    """
    titles = {selector: selector_title(selector) for selector in rankings}
    columns = min(4 if max(map(len, titles.values())) <= 15 else 3, len(rankings))
    rows = -(-len(rankings) // columns)
    figure, axes = style.new_figure(style.PAGE, 0.5 + 1.5 * rows, rows, columns)
    selected = f"the {n_selected:,} selected"
    for axis in axes.flat[len(rankings) :]:
        axis.set_axis_off()
    for axis, (selector, table) in zip(axes.flat, rankings.items(), strict=False):
        score, kept = table["score"].to_numpy(float), (table["rank"] <= n_selected).to_numpy()
        look = {"stacked": True, "color": [style.PALE, style.ACCENT], "label": ["left out", selected]}
        axis.hist([score[~kept], score[kept]], bins=min(30, max(8, int(np.sqrt(len(table)) * 2))), **look)
        axis.set(title=titles[selector], xlabel="score")
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.xaxis.set_major_locator(MaxNLocator(4))
    figure.supylabel("pool samples", fontsize=8)
    return style.with_legend(figure)


def precision_dots(precision: pd.DataFrame, ratio: float) -> Figure:
    """Share of clean samples in every selection at a ratio, target side and prompt side apart, with intervals.

    `precision` is quality/precision.parquet. Selectors are in the order of both sides together, best on top; the
    style.dashed line is what a random selection would have.
    """
    rows = precision[np.isclose(precision["ratio"], ratio)]
    if rows.empty:
        return style.empty_figure(f"no selection of {100 * ratio:g} % was judged")
    both = rows[rows["side"] == "both"].sort_values("precision", ascending=False, kind="stable")
    order = list(both["selector"])
    ours = np.array([selector in SELECTORS for selector in order])
    colours = [style.selector_colour(selector) if selector in SELECTORS else style.MUTED for selector in order]
    figure, axes = style.new_figure(style.PAGE, 1.0 + 0.17 * len(order), columns=2, sharex=True, sharey=True)
    for axis, (side, title) in zip(axes[0], SIDES.items(), strict=True):
        found = rows[rows["side"] == side].set_index("selector").loc[order]
        axis.axvline(found["chance"].iloc[0], label="chance", **style.dashed())
        style.dots(axis, found, range(len(order)), ("precision", "low", "high"), colours, s=np.where(ours, 26, 14))
        style.name_rows(axis, [selector_title(selector) for selector in order], SELECTORS.values())
        axis.set(title=title, xlabel="clean share of the selection")
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.grid(axis="x")
    return style.with_legend(figure)


def precision_curve(precision: pd.DataFrame) -> Figure:
    """Share of clean samples against the ratio: the paper's selectors in colour, all others as thin grey lines."""
    figure, axes = style.new_figure(style.PAGE, 2.9, columns=2, sharex=True, sharey=True)
    for axis, (side, title) in zip(axes[0], SIDES.items(), strict=True):
        of_side = precision[precision["side"] == side].dropna(subset="precision").sort_values("ratio")
        for name in sorted(style.in_order(of_side["selector"]), key=SELECTORS.__contains__):
            line, look = of_side[of_side["selector"] == name], {"color": style.PALE, "label": "others"}
            if name in SELECTORS:
                look = {"color": style.selector_colour(name), "label": selector_title(name)}
            axis.plot(line["ratio"], line["precision"], **look)
        chance = of_side.drop_duplicates("ratio")
        axis.plot(chance["ratio"], chance["chance"], **style.dashed() | {"zorder": 3, "label": "chance"})
        axis.set(title=title, xlabel="share of the pool selected")
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.grid(axis="y")
    axes[0, 0].set_ylabel("clean share of the selection")
    return style.with_legend(figure)


def overlap_heatmap(overlap: pd.DataFrame, ratio: float) -> Figure:
    """Jaccard index of every pair of selections of a ratio (overlap.parquet), selectors that agree side by side.

    The colours are centred at what two random selections share, r / (2 - r).
    """
    table = 100 * overlap.pivot(index="a", columns="b", values="jaccard")
    table = table.rename(index=selector_title, columns=selector_title)
    n, chance = len(table), 100 * ratio / (2 - ratio)
    if n > 2:  # the leaf order of an average-linkage tree
        distance = squareform(100 - table, checks=False)
        order = leaves_list(linkage(distance, "average", optimal_ordering=True))
        table = table.iloc[order, order]
    side = min(style.PAGE, 1.9 + 0.24 * n)
    figure, axes = style.new_figure(side + 0.3, side - 0.35)
    sns.heatmap(
        table.mask(np.triu(np.ones((n, n), bool))).iloc[1:, :-1], cmap="vlag", center=chance, vmin=0, vmax=100,
        square=True, linewidths=0.4, annot=n <= 30, fmt=".0f", annot_kws={"fontsize": 7 if n <= 12 else 5},
        cbar_kws={"label": f"samples in common (%), chance {chance:.0f}", "shrink": 0.6}, ax=axes[0, 0],
    )  # fmt: skip
    axes[0, 0].set(xlabel="", ylabel="")
    axes[0, 0].tick_params(length=0)
    axes[0, 0].tick_params(axis="y", rotation=0)
    style.embolden(axes[0, 0], SELECTORS.values())
    return figure


def defects_heatmap(defects: pd.DataFrame) -> Figure:
    """Share of every kind of defect that each selector keeps (defects.parquet); selectors that keep least on top.

    Colours: kept more often (orange) or less often (blue) than by chance, which the last row shows; without colour
    where the interval of the share covers chance. Shares of fewer than ten samples are shown as counts.
    """
    told = (defects["low"] > defects["chance"]) | (defects["high"] < defects["chance"])
    percent = (100 * defects["share"]).round().astype(int).astype(str)
    counts = defects["kept"].astype(str) + "/" + defects["n"].astype(str)
    sides = defects["side"].map(lambda side: f"{side}: " if side in SIDES else "")
    cells = defects.assign(
        excess=100 * (defects["share"] - defects["chance"]).where(told, 0.0),
        shown=percent.where(defects["n"] >= 10, counts),
        kind=sides + defects["defect"] + " (" + defects["n"].astype(str) + ")",
    )
    kinds = cells.drop_duplicates("kind").set_index("kind")
    order = cells[cells["side"] != ""].groupby("selector", sort=False)["share"].mean().sort_values(kind="stable").index
    table, shown = (
        cells.pivot(index="selector", columns="kind", values=value).loc[order, kinds.index].rename(selector_title)
        for value in ("excess", "shown")
    )
    table.loc["chance"], shown.loc["chance"] = 0.0, [f"{100 * chance:.0f} %" for chance in kinds["chance"]]
    figure, axes = style.new_figure(style.PAGE, 1.6 + 0.19 * len(table))
    axis = axes[0, 0]
    sns.heatmap(
        table, ax=axis, cmap=style.DIVERGING, vmin=-60, vmax=60, linewidths=0.4, annot=shown, fmt="",
        annot_kws={"fontsize": 6.5}, cbar_kws={"label": "points above chance", "shrink": 0.6},
    )  # fmt: skip
    for cell, excess in zip(axis.texts, table.to_numpy().flat, strict=True):
        cell.set_color(cell.get_color() if excess else style.MUTED)
    for edge in np.flatnonzero(kinds["side"].ne(kinds["side"].shift()))[1:]:
        axis.axvline(edge, color="white", linewidth=4)
    axis.set(xlabel="kept: samples of each kind (how many are in the pool), or % of ten or more", ylabel="")
    axis.tick_params(length=0)
    axis.set_xticks(axis.get_xticks(), axis.get_xticklabels(), rotation=35, ha="right")
    style.embolden(axis, SELECTORS.values())
    return figure
