"""What identification found: recall, causal effects, and Figures 5 to 7."""

from collections.abc import Collection
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from igds_utils.data.stats import spearman
from igds_utils.display import LOGLIK, Metric, correlation, task_title
from igds_utils.plots import style

NO_CANDIDATE = "no candidate reached the causal filter"
# what features are ranked by -> its column, those of the confirmation set, and how the axis names it
EFFECTS = {
    "score": ("delta", ("confirmation_delta", "confirmation_low", "confirmation_high"), "causal effect δ"),
    "loglik": (
        "delta_loglik", ("confirmation_loglik", "confirmation_loglik_low", "confirmation_loglik_high"),
        "change of the target's log-likelihood",
    ),
}  # fmt: skip


def recall_frequency(recall: pd.DataFrame, facts: dict) -> Figure:
    """How many features fire on more than a share of the prior prompts, with tau; candidates per layer.

    `recall` is recall.parquet (features of frequency > 0), `facts` is recall.json.
    """
    figure, axes = style.new_figure(style.PAGE, 2.4, columns=2, width_ratios=(3, 2))
    left, right = axes[0]
    sns.ecdfplot(recall, x="frequency", stat="count", complementary=True, ax=left)
    left.axvline(facts["tau"], label=f"τ = {facts['tau']:g}", **style.DASHED)
    left.legend()
    left.set(xlabel=f"fire on more than this share of the {facts['n_prior']} prompts", ylabel="features", yscale="log")
    left.xaxis.set_major_formatter(PercentFormatter(1))
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    share = f"{facts['basis_points']:.2f} ‱"
    left.set_title(f"{facts['n_candidates']:,} of {facts['n_features_total']:,} features recalled ({share})")
    layers = list(facts["layers"])
    counts = recall.query("candidate")["layer"].value_counts().reindex(layers, fill_value=0)
    sns.barplot(x=layers, y=counts.to_numpy(), color=style.ACCENT, saturation=1, ax=right)
    for dimension in (right.xaxis, right.yaxis):
        dimension.set_major_locator(MaxNLocator(13, integer=True))
    right.set(xlabel="layer (residual stream after the block)", ylabel="candidates", title="Candidates per layer")
    return figure


def causal_effects(
    features: list[dict] | pd.DataFrame, selected: list[str], metric: Metric, by: str = "score"
) -> Figure:
    """Causal effect of every candidate on D_val with its interval, best on top (the ranking behind Table 1).

    `features` are those of task_features.json, in rank order, and `by` what they are ranked by ("score", "loglik").
    Selected ones are highlighted; a diamond is the effect measured again on the confirmation set. Above 40 candidates
    names give way to ranks.
    """
    column, again, title = EFFECTS[by]
    metric = metric if by == "score" else LOGLIK
    frame = pd.DataFrame(features)
    if frame.empty:
        return style.empty_figure(NO_CANDIDATE)
    n, named = len(frame), len(frame) <= 40
    frame.index = np.arange(n) + (0 if named else 1)
    chosen = frame["name"].isin(selected)
    figure, axes = style.new_figure(style.PAGE * 0.75, 1.1 + 0.17 * n if named else 5.0)
    axis, names = axes[0, 0], (column, f"{column}_low", f"{column}_high")
    axis.axvline(0, color=style.MUTED, linewidth=0.8)
    rest, best, draw = frame[~chosen], frame[chosen], partial(style.dots, axis, factor=metric.factor)
    draw(rest, rest.index, names, style.PALE, s=14 if named else 3, facecolor=style.MUTED, label="candidate")
    draw(best, best.index, names, s=30, label=f"chosen: {', '.join(best['name'])}")
    if again[0] in frame:
        known = frame[frame[again[0]].notna()]
        below = known.index + (0.35 if named else 0.02 * n)
        draw(known, below, again, style.AGAIN, marker="D", label="the same, confirmation set")
    if named:
        style.name_rows(axis, frame["name"], selected)
    else:
        axis.set(ylabel="rank of the candidate", ylim=(1.04 * n, -0.04 * n))
    axis.set(xlabel=f"{title} on the validation set ({metric.unit})")
    axis.grid(axis="x")
    return style.with_legend(figure)


def placebo_effects(
    features: list[dict] | pd.DataFrame, placebos: dict[str, dict], selected: list[str], metric: Metric, by: str
) -> Figure:
    """Effects of the candidates, the chosen ones marked, and of placebos (`evidence.of_filter`), a row a kind."""
    column, _, title = EFFECTS[by]
    metric = metric if by == "score" else LOGLIK
    frame = pd.DataFrame(features).dropna(subset=column)
    kinds = {"candidates": frame[column]} | {kind: found["effects"] for kind, found in placebos.items()}
    effects = pd.concat({kind: metric.factor * pd.Series(found) for kind, found in kinds.items()}, names=["kind"])
    figure, axes = style.new_figure(style.PAGE * 0.75, 0.9 + 0.35 * len(kinds))
    axis = axes[0, 0]
    look = {"jitter": False, "size": 4, "alpha": 0.6, "color": style.MUTED}
    sns.stripplot(effects.reset_index(name="effect"), x="effect", y="kind", ax=axis, **look)
    best = frame[frame["name"].isin(selected)]
    style.dots(axis, best, np.zeros(len(best)), (column,), factor=metric.factor, s=36, label="chosen")
    axis.axvline(0, color=style.GRID, linewidth=0.8, zorder=0)
    style.name_rows(axis, list(kinds))
    axis.set(xlabel=f"{title} on the validation set ({metric.unit})", ylabel="")
    return style.with_legend(figure)


def dose_response(table: pd.DataFrame, metric: Metric) -> Figure:
    """`evidence.dose_response`: log-likelihood, score, length and repetition of the answers against the scale."""
    panels = {
        "delta_loglik": ("change of log-likelihood", 1.0), "delta": (f"δ ({metric.unit})", metric.factor),
        "tokens": ("tokens of an answer", 1.0), "repetition": ("repeated 4-grams (%)", 100.0),
    }  # fmt: skip
    figure, axes = style.new_figure(style.PAGE, 2.2, columns=len(panels))
    for axis, (column, (label, factor)) in zip(axes[0], panels.items(), strict=True):
        for clamped, colour in ((False, style.ACCENT), (True, style.AGAIN)):
            mine = table[(table["clamped"] == clamped) & table[column].notna()]
            names = [name for name in (column, f"{column}_low", f"{column}_high") if name in table]
            label_of = "clamped" if clamped else "added"
            axis.plot(mine["scale"], factor * mine[column], color=colour, linewidth=1)
            style.dots(axis, mine, mine["scale"], names, colour, factor, upright=True, label=label_of)
        axis.set(xlabel="scale", ylabel=label)
    return style.with_legend(figure)


def effect_agreement(
    features: list[dict] | pd.DataFrame, selected: list[str], metric: Metric, resamples: int = 2000, seed: int = 0
) -> Figure:
    """Do the two views of an effect agree? delta of the score against the change of the target's log-likelihood."""
    frame = pd.DataFrame(features).reindex(columns=["name", "delta", "delta_loglik"]).dropna()
    if frame.empty:
        return style.empty_figure(NO_CANDIDATE)
    figure, axes = style.new_figure(style.COLUMN, 2.8)
    frame["delta"] *= metric.factor
    _against(axes[0, 0], frame, "delta_loglik", "delta", selected, resamples, seed)
    axes[0, 0].set(xlabel="change of target log-likelihood (nats / token)", ylabel=f"causal effect δ ({metric.unit})")
    return style.with_legend(figure)


def recognition(table: pd.DataFrame, metric: Metric, resamples: int = 2000, seed: int = 0) -> Figure:
    """Do causal effects find the features that recognise sound prompts? AUC of every recalled feature against them.

    `table` is quality/features.parquet. The effect on the score has a panel where three features or more generated.
    """
    effects = {"delta_loglik": "change of log-likelihood\n(nats a token)"}
    if table["delta"].notna().sum() > 2:
        effects["delta"] = f"causal effect δ\n({metric.unit})"
    table, chosen = table.assign(delta=metric.factor * table["delta"]), table.loc[table["selected"], "name"]
    figure, axes = style.new_figure(style.COLUMN * max(1.2, len(effects)), 2.8, columns=len(effects), sharey=True)
    for axis, (column, label) in zip(axes[0], effects.items(), strict=True):
        _against(axis, table.dropna(subset=column), column, "auc", chosen, resamples, seed)
        axis.axhline(0.5, label="chance", **style.DASHED)
        axis.set_xlabel(label)
    axes[0, 0].set_ylabel("AUC, clean against corrupted prompts")
    return style.with_legend(figure)


def _against(axis, frame: pd.DataFrame, x: str, y: str, selected: Collection[str], resamples: int, seed: int) -> None:
    """Column y of features against column x, with the rank correlation of the two."""
    chosen = frame["name"].isin(selected)
    rest, best = frame[~chosen], frame[chosen]
    style.dots(axis, rest, rest[x], (y,), style.MUTED, upright=True, s=16, label="feature")
    style.dots(axis, best, best[x], (y,), upright=True, s=36, label=f"chosen: {', '.join(best['name'])}")
    rho = spearman(frame[x], frame[y], resamples=resamples, seed=seed, permute=True)
    axis.set_title(correlation(rho._asdict()))
    axis.grid()


def feature_map(recalled: dict[str, pd.DataFrame], found: dict[str, dict], layers: list[int]) -> Figure:
    """Figure 5: layer against feature index (log axis) of every recalled feature, one panel a task.

    `recalled[task]` = recall.parquet, `found[task]` = task_features.json; a ring marks the task features.
    """
    figure, axes = style.task_panels(recalled, 2.7, sharex=True, sharey=True)
    for axis, (task, table) in zip(axes, recalled.items(), strict=True):
        here, chosen = table.query("candidate"), pd.DataFrame(found[task]["features"])
        chosen = chosen[chosen["name"].isin(found[task]["selected"])]
        axis.scatter(here["feature"] + 1, here["layer"], s=10, alpha=0.5, linewidth=0, label="recalled")
        ring = {"s": 70, "facecolor": "none", "edgecolor": style.AGAIN, "linewidth": 1.5, "label": "task feature"}
        axis.scatter(chosen["feature"] + 1, chosen["layer"], **ring)
        axis.set_title(f"{task_title(task)}: {len(here)} recalled\n{', '.join(chosen['name'])}")
        axis.set(xscale="log", xlabel="feature index + 1 (log scale)", ylim=(min(layers) - 1, max(layers) + 1))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.grid(axis="y")
    axes[0].set(ylabel="layer", yticks=layers[:: -(-len(layers) // 13)])
    return style.with_legend(figure)


def rising_words(shifts: dict[str, pd.DataFrame], features: dict[str, str], most: int = 10) -> Figure:
    """Figure 6: the words whose rate rises most when a task's top feature is amplified, one panel a task.

    `shifts[task]` = `semantics.lexical_shift`; bars are differences of smoothed log-odds in standard errors; beside a
    word stand its counts in the original and the amplified outputs. Words that rise beyond chance stand first; the
    others are pale.
    """
    shown = {task: table[table["z"] > 0].head(most) for task, table in shifts.items()}
    if not any(len(table) for table in shown.values()):
        return style.empty_figure("no word becomes more frequent under amplification")
    looks = {"beyond chance": style.ACCENT, "no more than chance allows": style.PALE}
    figure, axes = style.task_panels(shown, 0.9 + 0.2 * most, sharex=True)
    for axis, (task, table) in zip(axes, shown.items(), strict=True):
        for (label, colour), here in zip(looks.items(), (table["rises"], ~table["rises"]), strict=True):
            axis.barh(np.flatnonzero(here), table["z"][here], height=0.7, color=colour, label=label)
        style.name_rows(axis, [f"{row.word}  {row.original} → {row.amplified}" for row in table.itertuples()])
        axis.set(title=f"{task_title(task)}\n{features[task]}", xlabel="rise (std. errors)", ylim=(most - 0.5, -0.5))
    return style.with_legend(figure)


def feature_topology(best: dict[str, pd.DataFrame], layers: list[int], paper: list[str] | None = None) -> Figure:
    """Figure 7: the best candidate of every layer by name, one column a task; the chosen one with a star.

    `best[task]`: layer, name, delta, selected; colours: effects, relative to the task's largest. `paper`: names that
    the paper's figure shows for math, drawn beside ours where the model is the paper's, without effects.
    """
    columns = {task_title(task): table.set_index("layer") for task, table in best.items()}
    if paper:
        theirs = pd.DataFrame({"name": paper, "delta": 0.0, "selected": False})
        columns["Math (paper)"] = theirs.set_index(theirs["name"].str.extract(r"l(\d+)_", expand=False).astype(int))
    order = sorted({*layers, *(layer for table in columns.values() for layer in table.index)}, reverse=True)
    effects = {title: table["delta"] / (table["delta"].abs().max() or 1) for title, table in columns.items()}
    names = {title: table["name"] + np.where(table["selected"], " ★", "") for title, table in columns.items()}
    figure, axes = style.new_figure(style.PAGE, 0.9 + max(0.9, 0.17 * len(order)))
    sns.heatmap(
        pd.DataFrame(effects, index=order), annot=pd.DataFrame(names, index=order).fillna(""), fmt="", vmin=-1, vmax=1,
        cmap=style.DIVERGING, linewidths=0.4, annot_kws={"fontsize": 7}, ax=axes[0, 0],
        cbar_kws={"label": "δ / largest δ of the task", "shrink": 0.8},
    )  # fmt: skip
    axes[0, 0].set(ylabel="layer")
    axes[0, 0].tick_params(length=0, rotation=0)
    return figure
