"""What selectors choose, and what training on it gave: scores, losses, Figures 3 and 4, monitoring."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from igds_utils import display
from igds_utils.display import Metric
from igds_utils.plots import style

RATIOS = (0.2, 0.5, 0.8)  # the paper's
SIDES = {"target": "Corrupted targets", "prompt": "Corrupted prompts"}


def main_result(summary: dict[str, list[dict]], metrics: dict[str, Metric]) -> Figure:
    """Score of every arm with its interval, one panel a task, Full as a line (the figure of Table 2).

    `summary[task]` = records of `evaluation.summarise`; those of the curve are left out. An arm that was not run on a
    task has an empty row there.
    """
    kept = {task: pd.DataFrame(display.at_main_ratio(records).values()) for task, records in summary.items()}
    arms = style.in_order(pd.concat(kept.values())["selector"])
    figure, axes = style.task_panels(kept, 0.95 + 0.22 * len(arms), sharey=True)
    for axis, (task, table) in zip(axes, kept.items(), strict=True):
        metric, colours = metrics[task], table["selector"].map(style.selector_colour)
        style.dots(axis, table, table["selector"].map(arms.index), colour=colours, factor=metric.factor, s=26)
        for full in table.loc[table["selector"] == "full", "score"] * metric.factor:
            axis.axvline(full, label="score of Full", **style.DASHED)
        style.name_rows(axis, [display.selector_title(s) for s in arms], [display.selector_title("igds")])
        axis.set_xlabel(metric.label)
        axis.grid(axis="x")
    return style.with_legend(figure)


def training_loss(logs: dict[str, pd.DataFrame]) -> Figure:
    """Training loss (nats per target token) against optimizer step, one line per arm; `logs[arm]` is its log.parquet.

    Logs of 100 steps or more are drawn as a running mean over a fiftieth of them. Seeds of an arm share its look.
    """
    figure, axes = style.new_figure(style.PAGE * 0.75, 3.0)
    lines, looks = [], {}
    for arm, log in logs.items():
        log = log.dropna(subset=["loss"])
        mean = log["loss"].rolling(max(1, len(log) // 50), min_periods=1).mean()
        looks[title := display.arm_title(display.without_seed(arm))] = style.selector_colour(display.selector_of(arm))
        lines.append(pd.DataFrame({"step": log["step"], "loss": mean, "line": arm, "arm": title}))
    by_arm = {"hue": "arm", "palette": looks, "style": "arm", "units": "line", "estimator": None}
    sns.lineplot(pd.concat(lines), x="step", y="loss", ax=axes[0, 0], **by_arm)
    long = ", running mean" * (max(map(len, lines)) >= 100)
    axes[0, 0].set(xlabel="optimizer step", ylabel=f"training loss (nats / token{long})")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].grid(axis="y")
    return style.with_legend(figure)


def activation_distributions(
    activations: dict[str, pd.DataFrame], compared: dict[str, pd.DataFrame], metrics: dict[str, Metric],
    features: dict[str, str],
) -> Figure:  # fmt: skip
    """Figure 3: density per arm and training seed with its median, highest score on top; one panel per task.

    `activations[task]` = `finished.arm_activations`, `compared[task]` = `finished.compare`, `features[task]`
    names the feature. Values are winsorized at the 1st and 99th percentile of each density; the dashed line is the
    median of the untrained model, the number beside an arm its score.
    """
    rows = max(len(table) for table in compared.values())
    figure, axes = style.task_panels(compared, 1.1 + 0.3 * rows)
    for axis, (task, table) in zip(axes, compared.items(), strict=True):
        table = table.sort_values("score", ascending=False)
        look = {"x": "activation", "y": "arm", "order": table["arm"], "ax": axis}
        colours = dict(zip(table["arm"], table["selector"].map(style.selector_colour), strict=True))
        clipped = activations[task].copy()
        by_seed = clipped.groupby(["arm", "seed"])["activation"]
        clipped["activation"] = by_seed.transform(lambda a: a.clip(*a.quantile([0.01, 0.99])))
        shape = {"inner": None, "density_norm": "width", "width": 0.9, "cut": 0, "linewidth": 0.6, "saturation": 1}
        for _, of_seed in clipped.groupby("seed"):
            sns.violinplot(of_seed, hue="arm", palette=colours, alpha=0.45, legend=False, **look, **shape)
        medians = activations[task].groupby(["arm", "seed"], as_index=False)["activation"].median()
        mark = {"color": style.INK, "marker": "|", "size": 11, "linewidth": 1.4, "jitter": False, "zorder": 4}
        sns.stripplot(medians, label="median of a training seed", **look, **mark)
        base = table.loc[table["selector"] == "original", "median"].iloc[0]
        axis.axvline(base, label="median of the untrained model", **style.DASHED)
        named = table["arm"] if table["ratio"].nunique() > 1 else table["selector"]  # one ratio goes without saying
        style.name_rows(axis, named.map(display.arm_title) + "  " + table["score"].map(metrics[task].show))
        axis.set(xlabel=f"activation of\n{features[task]} at p", ylabel="", ylim=(rows - 0.5, -0.5))
    axes[0].set_ylabel("arm and its score")
    return style.with_legend(figure)


def score_against_ratio(summary: dict[str, list[dict]], metrics: dict[str, Metric]) -> Figure:
    """Figure 4: score of every selector at every ratio with its interval, Full as a line; one panel per task.

    `summary[task]` = records of `evaluation.summarise`. Ratios of the paper at which nothing was trained say so.
    Ablations of IGDS (`igds_...`) belong to Table 3 and are left out.
    """
    figure, axes = style.new_figure(style.PAGE, 1.3 + 2.2 * len(summary), rows=len(summary))
    for axis, (task, records) in zip(axes[:, 0], summary.items(), strict=True):
        metric, whole = metrics[task], pd.DataFrame(records)
        table = whole[whole["ratio"].notna() & ~whole["selector"].str.startswith("igds_")]
        seen, names = set(table["ratio"]), style.in_order(table["selector"])
        ratios = sorted({*RATIOS, *seen})
        step = min(0.12, 0.7 / max(1, len(names)))  # selectors stand side by side at every ratio
        for place, name in enumerate(names):
            line, colour = table[table["selector"] == name].sort_values("ratio"), style.selector_colour(name)
            at = line["ratio"].map(ratios.index).to_numpy() + step * (place - (len(names) - 1) / 2)
            look = {"marker": style.SELECTOR_MARKERS.get(name, "o"), "label": display.selector_title(name)}
            style.dots(axis, line, at, colour=colour, factor=metric.factor, upright=True, **look)
            axis.plot(at, line["score"] * metric.factor, color=colour, linewidth=0.9)
        for full in whole.loc[whole["selector"] == "full", "score"] * metric.factor:
            axis.axhline(full, label="Full", **style.DASHED)
        axis.set_xticks(range(len(ratios)), [f"{100 * r:g} %" + "\nnot run" * (r not in seen) for r in ratios])
        axis.set(title=display.task_title(task), xlabel="share of the pool kept", ylabel=metric.label)
        axis.set_xlim(-0.5, len(ratios) - 0.5)
    return style.with_legend(figure)


def monitor(watched: pd.DataFrame, metric: Metric, feature: str, label: str) -> Figure:
    """Score with its interval, and median activation of `feature` with the band it is held against, over a series.

    `watched` = `finished.watch`; `label` names the horizontal axis. Points that raised an alert are crossed.
    """
    figure, axes = style.new_figure(style.PAGE * 0.75, 3.7, rows=2, sharex=True)
    (upper, lower), x = axes[:, 0], np.arange(len(watched))
    known = watched[watched["band_low"].notna()]  # from the point on whose activations make the band
    band = x[-len(known) :], known["band_low"], known["band_high"]
    lower.fill_between(*band, color=style.GRID, linewidth=0, label=f"band of {known['point'].iloc[0]}")
    style.dots(upper, watched, x, factor=metric.factor, upright=True)
    for axis, name, factor in ((upper, "score", metric.factor), (lower, "activation", 1)):
        values, alert = watched[name] * factor, watched[f"{name}_alert"].to_numpy(bool)
        axis.plot(x, values, color=style.ACCENT, marker="o", markersize=4)
        cross = {"s": 70, "marker": "x", "color": style.AGAIN, "linewidth": 1.8, "zorder": 4, "label": "alert"}
        axis.scatter(x[alert], values[alert], **cross)
    upper.set_ylabel(metric.label.replace(", ", ",\n"))
    lower.set(ylabel=f"median of {feature}", xlabel=label)
    lower.set_xticks(x, watched["point"], rotation=30, ha="right")
    return style.with_legend(figure)


def score_distributions(rankings: dict[str, pd.DataFrame], n_selected: int) -> Figure:
    """Scores of the pool, one panel a selector: those of the `n_selected` best ranks over those left out.

    A procedure's selection need not lie at one end of its scores.
    """
    columns = min(3, len(rankings))
    rows = -(-len(rankings) // columns)
    figure, axes = style.new_figure(style.PAGE, 0.5 + 1.5 * rows, rows, columns)
    look = {"stacked": True, "color": [style.PALE, style.ACCENT], "label": ["left out", f"the {n_selected:,} selected"]}
    for axis in axes.flat[len(rankings) :]:
        axis.set_axis_off()
    for axis, (selector, table) in zip(axes.flat, rankings.items(), strict=False):
        score, kept = table["score"].to_numpy(float), (table["rank"] <= n_selected).to_numpy()
        axis.hist([score[~kept], score[kept]], bins="sqrt", **look)
        axis.set(title=display.selector_title(selector), xlabel="score")
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.xaxis.set_major_locator(MaxNLocator(4))
    figure.supylabel("pool samples", fontsize=8)
    return style.with_legend(figure)


def ladder(table: pd.DataFrame) -> Figure:
    """AUC of every score that the rule judges with its interval, and of its single layers as pale dots.

    `table` is quality/ladder.parquet; the line of random directions reaches one SD over draws to either side.
    """
    fixed = table[table["fixed"]]
    spread = pd.DataFrame({"low": fixed["auc"] - fixed["sd"], "high": fixed["auc"] + fixed["sd"]})
    fixed = fixed.fillna(spread)
    rungs, rest = list(fixed["rung"]), table[~table["fixed"]]
    figure, axes = style.new_figure(style.PAGE * 0.75, 1.0 + 0.22 * len(rungs))
    axis = axes[0, 0]
    axis.axvline(0.5, label="chance", **style.DASHED)
    style.dots(axis, rest, rest["rung"].map(rungs.index), ("auc",), style.PALE, s=12, label="at one other layer")
    colours = [style.ACCENT] + [style.MUTED] * (len(rungs) - 1)
    style.dots(axis, fixed, range(len(rungs)), ("auc", "low", "high"), colours)
    style.name_rows(axis, rungs, rungs[:1])
    axis.set(xlabel="AUC, clean against corrupted prompts", xlim=(-0.02, 1.02))
    axis.grid(axis="x")
    return style.with_legend(figure)


def precision_dots(precision: pd.DataFrame, ratio: float) -> Figure:
    """Share of clean samples in every selection at a ratio, target side and prompt side apart, with intervals.

    `precision` is quality/precision.parquet. Selectors are in the order of both sides together, best on top; the
    dashed line is what a random selection would have.
    """
    rows = precision[np.isclose(precision["ratio"], ratio)]
    both = rows[rows["side"] == "both"].sort_values("precision", ascending=False, kind="stable")
    order = list(both["selector"])
    colours = [style.selector_colour(selector) if selector in display.SELECTORS else style.MUTED for selector in order]
    figure, axes = style.new_figure(style.PAGE, 1.0 + 0.17 * len(order), columns=2, sharex=True, sharey=True)
    for axis, (side, title) in zip(axes[0], SIDES.items(), strict=True):
        found = rows[rows["side"] == side].set_index("selector").loc[order]
        axis.axvline(found["chance"].iloc[0], label="chance", **style.DASHED)
        style.dots(axis, found, range(len(order)), ("precision", "low", "high"), colours)
        style.name_rows(axis, [display.selector_title(selector) for selector in order], display.SELECTORS.values())
        axis.set(title=title, xlabel="clean share of the selection")
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.grid(axis="x")
    return style.with_legend(figure)
