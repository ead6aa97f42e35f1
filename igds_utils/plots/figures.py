"""What identification found, what selectors choose, and what training on it gave."""

from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from igds_utils import display
from igds_utils.data.stats import spearman
from igds_utils.display import Metric, ends, selector_title, task_title
from igds_utils.plots import style
from igds_utils.plots.style import ACCENT, DASHED, MUTED, PAGE, dots, task_panels, with_legend

MOST = 40  # candidates in a figure
RATIOS = (0.2, 0.5, 0.8)  # the paper's
SIDES = {"target": "Corrupted targets", "prompt": "Corrupted prompts"}


def causal_effects(features: list, selected: list, metric: Metric, by: str) -> Figure:
    """Causal effects of the 40 best candidates on D_val, and of the chosen ones again.

    features: those of task_features.json, in rank order; by: what they are ranked by.
    """
    show, names, again = display.effect_of(by, metric)
    frame = pd.DataFrame(features).head(MOST)
    chosen = frame["name"].isin(selected)
    looks = [
        (~chosen, 0, names, {"color": MUTED, "label": "candidate"}),
        (chosen, 0, names, {"label": f"chosen: {', '.join(selected)}"}),
        (chosen, 0.3, again, {"color": style.AGAIN, "fmt": "D", "label": "confirmation"}),
    ]
    figure, axes = style.new_figure(PAGE * 0.75, 1.1 + 0.17 * len(frame))
    axis = axes[0, 0]
    axis.axvline(0, color=MUTED, linewidth=0.8)
    for rows, shift, columns, look in looks:
        at = np.flatnonzero(rows) + shift
        dots(axis, frame[rows], at, columns, show.factor, **look)
    axis.set_xlabel(f"causal effect ({show.unit})")
    style.name_rows(axis, frame["name"])
    return with_legend(figure)


def placebo_effects(
    features: list, placebos: dict, selected: list, metric: Metric, by: str
) -> Figure:
    """Effects of candidates, validation set, and of placebos, confirmation set, a row a kind."""
    show, names, again = display.effect_of(by, metric)
    frame = pd.DataFrame(features).dropna(subset=names[0])
    kinds = {"candidates": show.factor * frame[names[0]]}
    for kind, found in placebos.items():
        kinds[kind] = show.factor * np.array(found["effects"])
    figure, axes = style.new_figure(PAGE * 0.75, 0.9 + 0.35 * len(kinds))
    axis, look = axes[0, 0], {"jitter": False, "alpha": 0.6, "color": MUTED}
    sns.stripplot(kinds, orient="h", ax=axis, **look)
    best = frame[frame["name"].isin(selected)]
    dots(axis, best, [0] * len(best), names[:1], show.factor, label="chosen")
    fresh = show.factor * best[again[0]].iloc[0]
    axis.axvline(fresh, color=style.AGAIN, label="chosen, on the confirmation set")
    axis.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
    axis.set_xlabel(f"causal effect ({show.unit})")
    return with_legend(figure)


def dose_response(table: pd.DataFrame, metric: Metric) -> Figure:
    """`evidence.dose_response`: likelihood, score, length and repetition against scale."""
    panels = {
        "delta_loglik": ("change of log-likelihood", 1.0),
        "delta": (f"δ ({metric.unit})", metric.factor),
        "tokens": ("tokens of an answer", 1.0),
        "repetition": ("repeated 4-grams (%)", 100.0),
    }
    kinds = {"added": ACCENT, "clamped": style.AGAIN}
    figure, axes = style.new_figure(PAGE, 2.2, columns=len(panels))
    for axis, (column, (label, factor)) in zip(axes[0], panels.items(), strict=True):
        names = [name for name in ends(column) if name in table]
        for clamped, (kind, colour) in enumerate(kinds.items()):
            mine = table[(table["clamped"] == clamped) & table[column].notna()]
            look = {"upright": True, "fmt": "o-", "color": colour, "label": kind}
            dots(axis, mine, mine["scale"], names, factor, **look)
        axis.set(xlabel="scale", ylabel=label)
    return with_legend(figure)


def recognition(
    table: pd.DataFrame, metric: Metric, resamples: int = 2000, seed: int = 0
) -> Figure:
    """AUC of every recalled feature for sound prompts against its causal effect.

    `table` is quality/features.parquet. The effect is that on the score where all features
    generated, else on the log-likelihood.
    """
    by = "score" if table["delta"].notna().all() else "loglik"
    show, names, _ = display.effect_of(by, metric)
    x = show.factor * table[names[0]]
    found = spearman(x, table["auc"], resamples=resamples, seed=seed, permute=True)
    figure, axes = style.new_figure(PAGE * 0.6, 2.8)
    axis = axes[0, 0]
    for chosen, mine in table.groupby("selected"):
        label = "task feature" if chosen else "feature"
        axis.plot(x[mine.index], mine["auc"], "o", label=label)
    axis.axhline(0.5, label="chance", **DASHED)
    axis.set(xlabel=f"causal effect ({show.unit})", ylabel="AUC for sound prompts")
    axis.set_title(display.correlation(found._asdict()))
    return with_legend(figure)


def feature_map(recalled: dict, found: dict, layers: list[int]) -> Figure:
    """Figure 5: layer against feature index (log axis) of every recalled feature.

    `recalled[task]` = recall.parquet, `found[task]` = task_features.json.
    """
    figure, panels = task_panels(recalled, 2.7, sharex=True, sharey=True)
    for axis, task, table in panels:
        here, selected = table.query("candidate"), found[task]["selected"]
        tested = pd.DataFrame(found[task]["features"])
        chosen = tested[tested["name"].isin(selected)]
        axis.plot(here["feature"] + 1, here["layer"], "o", alpha=0.5, label="recalled")
        ring = {"markersize": 9, "fillstyle": "none", "color": style.AGAIN}
        axis.plot(chosen["feature"] + 1, chosen["layer"], "o", label="chosen", **ring)
        axis.set_title(f"{task_title(task)}: {len(here)} recalled\n{', '.join(selected)}")
        axis.set(xscale="log", xlabel="feature index + 1 (log scale)")
    figure.axes[0].set(ylabel="layer", yticks=layers[:: -(-len(layers) // 13)])
    return with_legend(figure)


def rising_words(shifts: dict, features: dict[str, str], most: int = 10) -> Figure:
    """Figure 6: the words whose rate rises most when a task's top feature is amplified.

    `shifts[task]` = `semantics.lexical_shift`; bars are differences of smoothed log-odds,
    pale where no more than chance allows; beside a word stand its counts before and after.
    """
    figure, panels = task_panels(shifts, 0.9 + 0.2 * most, sharex=True)
    for axis, task, table in panels:
        shown = table[table["z"] > 0].head(most)
        colours = np.where(shown["rises"], ACCENT, style.PALE)
        axis.barh(range(len(shown)), shown["z"], color=colours)
        counts = shown["original"].astype(str) + " → " + shown["amplified"].astype(str)
        style.name_rows(axis, shown["word"] + "  " + counts, most)
        axis.set_title(f"{task_title(task)}\n{features[task]}")
        axis.set_xlabel("rise (std. errors)")
    return figure


def feature_topology(best: dict, layers: list[int], paper: list | None = None) -> Figure:
    """Figure 7: the best candidate of every layer by name, one column a task.

    `best[task]`: layer, name, delta, selected; a star marks the chosen one; colours are effects,
    relative to the largest of the task. paper: the names in its figure (math).
    """
    tables = {task_title(task): table.set_index("layer") for task, table in best.items()}
    if paper:
        of_layer = [int(name[1:].partition("_")[0]) for name in paper]
        theirs = {"name": paper, "delta": 0.0, "selected": False}
        tables["Math (paper)"] = pd.DataFrame(theirs, index=of_layer)
    known = {layer for table in tables.values() for layer in table.index}
    order = sorted(known | {*layers}, reverse=True)
    effects, names = pd.DataFrame(index=order), pd.DataFrame(index=order)
    for title, table in tables.items():
        effects[title] = table["delta"] / (table["delta"].abs().max() or 1)
        names[title] = table["name"] + np.where(table["selected"], " ★", "")
    figure, axes = style.new_figure(PAGE, 0.9 + max(0.9, 0.17 * len(order)))
    look = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r", "linewidths": 0.4}
    look |= {"annot": names.fillna(""), "fmt": "", "annot_kws": {"fontsize": 7}}
    bar = {"label": "δ / largest δ of the task", "shrink": 0.8}
    sns.heatmap(effects, cbar_kws=bar, ax=axes[0, 0], **look)
    axes[0, 0].set(ylabel="layer")
    axes[0, 0].tick_params(length=0, rotation=0)
    return figure


def main_result(summary: dict, metrics: dict) -> Figure:
    """Score of every arm at the main ratio with its interval, a panel a task.

    `summary[task]`: records of `evaluation.summarise`; `metrics[task]`: their display.
    """
    main = {task: display.at_main_ratio(records) for task, records in summary.items()}
    kept = {task: pd.DataFrame(arms.values()) for task, arms in main.items()}
    arms = style.in_order(pd.concat(kept.values())["selector"])
    figure, panels = task_panels(kept, 0.95 + 0.22 * len(arms), sharey=True)
    for axis, task, table in panels:
        factor, rows = metrics[task].factor, table["selector"].map(arms.index)
        dots(axis, table, rows, factor=factor)
        for full in table.loc[table["selector"] == "full", "score"] * factor:
            axis.axvline(full, label="score of Full", **DASHED)
        axis.set_xlabel(metrics[task].label)
    style.name_rows(figure.axes[0], map(selector_title, arms))
    return with_legend(figure)


def activation_distributions(
    activations: dict, compared: dict, metrics: dict, features: dict[str, str]
) -> Figure:
    """Figure 3: density per arm and training seed, highest score on top.

    `activations[task]` = `finished.arm_activations`, `compared[task]` = `finished.compare`.
    Values are winsorized at the 1st and 99th percentile; a mark is the median of a density,
    the number beside an arm its score.
    """
    rows = max(len(table) for table in compared.values())
    figure, panels = task_panels(compared, 1.1 + 0.3 * rows)
    for axis, task, table in panels:
        table = table.sort_values("score", ascending=False)
        groups = activations[task].groupby(["arm", "seed"])["activation"]
        winsorized = groups.transform(lambda a: a.clip(*a.quantile([0.01, 0.99])))
        clipped = activations[task].assign(activation=winsorized)
        look = {"x": "activation", "y": "arm", "order": table["arm"], "ax": axis}
        shape = {"inner": None, "density_norm": "width", "width": 0.9, "cut": 0}
        for _, of_seed in clipped.groupby("seed"):
            sns.violinplot(of_seed, color=ACCENT, alpha=0.4, **look, **shape)
        mark = {"color": style.INK, "marker": "|", "size": 11, "linewidth": 1.4}
        mark |= {"label": "median of a training seed", "jitter": False, "zorder": 4}
        medians = groups.median().reset_index()
        sns.stripplot(medians, legend=False, **look, **mark)
        base = table.loc[table["selector"] == "original", "median"].iloc[0]
        axis.axvline(base, label="median of the untrained model", **DASHED)
        scores = table["score"].map(metrics[task].show)
        style.name_rows(axis, table["arm"].map(display.arm_title) + "  " + scores, rows)
        axis.set(xlabel=f"activation of\n{features[task]} at p", ylabel="")
    return with_legend(figure)


def score_against_ratio(summary: dict, metrics: dict) -> Figure:
    """Figure 4: score of every selector at every ratio, Full as a line.

    Ablations of IGDS (`igds_...`) belong to Table 3 and are left out.
    """
    height = 1.3 + 2.2 * len(summary)
    figure, axes = style.new_figure(PAGE, height, rows=len(summary))
    for axis, (task, records) in zip(axes[:, 0], summary.items(), strict=True):
        metric, whole = metrics[task], pd.DataFrame(records)
        table = whole[whole["ratio"].notna() & ~whole["selector"].str.startswith("igds_")]
        seen, names = set(table["ratio"]), style.in_order(table["selector"])
        ratios = sorted({*RATIOS, *seen})
        shifts = np.linspace(-0.3, 0.3, len(names) + 2)[1:-1]  # side by side
        for name, shift, marker in zip(names, shifts, cycle("osD^vP*X"), strict=False):
            line = table[table["selector"] == name].sort_values("ratio")
            at = line["ratio"].map(ratios.index) + shift
            look = {"fmt": f"{marker}-", "color": None, "label": selector_title(name)}
            dots(axis, line, at, factor=metric.factor, upright=True, **look)
        for full in whole.loc[whole["selector"] == "full", "score"] * metric.factor:
            axis.axhline(full, label="Full", **DASHED)
        ticks = [f"{100 * r:g} %" + "\nnot run" * (r not in seen) for r in ratios]
        axis.set_xticks(range(len(ratios)), ticks)
        axis.set(title=task_title(task), xlabel="share of the pool kept", ylabel=metric.label)
    return with_legend(figure)


def ladder(table: pd.DataFrame) -> Figure:
    """AUC of every score that the rule judges, and of its single layers as pale dots.

    `table` is quality/ladder.parquet; the line of random directions is one SD long.
    """
    fixed, rest = table[table["fixed"]], table[~table["fixed"]]
    spread = {"low": fixed["auc"] - fixed["sd"], "high": fixed["auc"] + fixed["sd"]}
    fixed, rungs = fixed.fillna(pd.DataFrame(spread)), list(fixed["rung"])
    figure, axes = style.new_figure(PAGE * 0.75, 1.0 + 0.22 * len(rungs))
    axis, pale = axes[0, 0], {"color": style.PALE, "label": "at one other layer"}
    axis.axvline(0.5, label="chance", **DASHED)
    dots(axis, rest, rest["rung"].map(rungs.index), ["auc"], **pale)
    dots(axis, fixed, range(len(rungs)), ["auc", "low", "high"])
    style.name_rows(axis, rungs)
    axis.set(xlabel="AUC, clean against corrupted prompts", xlim=(-0.02, 1.02))
    return with_legend(figure)


def precision_dots(precision: pd.DataFrame, ratio: float) -> Figure:
    """Share of clean samples in every selection, target side and prompt side apart.

    `precision` is quality/precision.parquet. The cleanest selector of both sides is on top;
    the dashed line is a random selection.
    """
    rows = precision[np.isclose(precision["ratio"], ratio)]
    both = rows[rows["side"] == "both"]
    best = both.sort_values("precision", ascending=False, kind="stable")
    order = list(best["selector"])
    look = {"columns": 2, "sharex": True, "sharey": True}
    figure, axes = style.new_figure(PAGE, 1.0 + 0.17 * len(order), **look)
    for axis, (side, title) in zip(axes[0], SIDES.items(), strict=True):
        found = rows[rows["side"] == side]
        axis.axvline(found["chance"].iloc[0], label="chance", **DASHED)
        at = found["selector"].map(order.index)
        dots(axis, found, at, ["precision", "low", "high"])
        axis.set(title=title, xlabel="clean share of the selection")
        axis.xaxis.set_major_formatter(PercentFormatter(1))
    style.name_rows(axes[0, 0], map(selector_title, order))
    return with_legend(figure)
