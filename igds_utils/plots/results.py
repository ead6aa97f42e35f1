"""What each stage found: recall, causal effects, scores, training and the main result."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from igds_utils.data.stats import spearman
from igds_utils.display import (
    SELECTORS,
    Metric,
    arm_title,
    at_main_ratio,
    correlation,
    selector_of,
    selector_title,
    task_title,
)
from igds_utils.plots.style import (
    ACCENT,
    AGAIN,
    COLUMN,
    GRID,
    HALO,
    INK,
    MUTED,
    PAGE,
    Mark,
    beside_line,
    dashed,
    empty_figure,
    interval_line,
    name_marks,
    new_figure,
    selector_colour,
)  # fmt: skip


def recall_frequency(recall: pd.DataFrame, facts: dict) -> Figure:
    """How often each feature fires at the critical position: sorted frequencies with tau, candidates per layer.

    `recall` is recall.parquet (features of frequency > 0), `facts` is recall.json.
    """
    figure, axes = new_figure(PAGE, 2.5, columns=2, width_ratios=(3, 2))
    left, right = axes[0]
    frequency = np.sort(recall["frequency"].to_numpy(float))[::-1]
    rank, n = np.arange(1, frequency.size + 1), facts["n_candidates"]
    left.fill_between(rank[:n], frequency[:n], facts["tau"], color=ACCENT, alpha=0.25, linewidth=0)
    left.plot(rank, frequency, color=ACCENT)
    left.axhline(facts["tau"], **dashed())
    beside_line(left, 0.99, facts["tau"] + 0.015, f"τ = {facts['tau']:g}", "x", ha="right", va="bottom")
    left.set(xscale="log", xlabel="features by rank (log scale)", ylim=(0, 1.04))
    left.set_ylabel(f"fires on, of {facts['n_prior']} prompts")
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    left.xaxis.set_minor_locator(NullLocator())
    share = f"{facts['basis_points']:.2f} ‱"
    left.set_title(f"{n:,} of {facts['n_features_total']:,} features recalled ({share})")
    layers = list(facts["layers"])
    candidates = recall[recall["candidate"].astype(bool)]
    counts = candidates["layer"].value_counts().reindex(layers, fill_value=0)
    positions = np.arange(len(layers))
    bars = right.bar(positions, counts, color=ACCENT, width=0.7)
    step = max(1, -(-len(layers) // 10))
    right.set_xticks(positions[::step], [str(layer) for layer in layers[::step]])
    if len(layers) <= 12:
        right.bar_label(bars, padding=1, fontsize=7.5)
    right.set(xlabel="layer (residual stream after the block)", ylabel="candidates")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.margins(y=0.12)
    right.set_title("Candidates per layer")
    return figure


def causal_effects(features: list[dict] | pd.DataFrame, selected: list[str], metric: Metric) -> Figure:
    """Causal effect delta of every candidate on D_val with its interval, best on top (the ranking behind Table 1).

    `features` are those of task_features.json, in rank order. Selected ones are highlighted; a diamond is the
    effect measured again on the confirmation set. Above 40 candidates names give way to ranks.
    """
    frame = pd.DataFrame(features).reset_index(drop=True)
    if frame.empty:
        return empty_figure("no candidate reached the causal filter")
    named = len(frame) <= 40
    figure, axes = new_figure(PAGE * 0.75, max(1.6, 0.75 + 0.19 * len(frame)) if named else 5.0)
    axis, rank = axes[0, 0], np.arange(1, len(frame) + 1)
    chosen = frame["name"].isin(selected).to_numpy()
    axis.axvline(0, color=MUTED, linewidth=0.8)
    if not named:
        low, high = frame["delta_low"] * metric.factor, frame["delta_high"] * metric.factor
        axis.fill_betweenx(rank, low, high, color=GRID, linewidth=0)
    for row, (_, item) in zip(rank, frame.iterrows(), strict=True):
        if named or chosen[row - 1]:
            colour, width = (ACCENT, 1.8) if chosen[row - 1] else (MUTED, 0.9)
            interval_line(axis, item["delta_low"], item["delta_high"], row, metric, colour, width)
    sizes, colours = np.where(chosen, 30, 12 if named else 2), np.where(chosen, ACCENT, MUTED)
    axis.scatter(frame["delta"] * metric.factor, rank, s=sizes, c=colours, zorder=3)
    below = 0.33 if named else 0.02 * len(frame)
    again = frame[frame["confirmation_delta"].notna()] if "confirmation_delta" in frame else frame.iloc[:0]
    for row, item in again.iterrows():
        height = row + 1 + below
        interval_line(axis, item["confirmation_low"], item["confirmation_high"], height, metric, AGAIN, 1.2)
        effect = item["confirmation_delta"] * metric.factor
        axis.scatter(effect, height, s=20, marker="D", color=AGAIN, zorder=3)
    if len(again):
        axis.set_title("◆ confirmation set", color=AGAIN, loc="right", fontweight="normal")
    if named:
        axis.set_yticks(rank, frame["name"])
        for label, bold in zip(axis.get_yticklabels(), chosen, strict=True):
            label.set(fontweight="bold" if bold else "normal", color=ACCENT if bold else INK)
    else:
        axis.set_ylabel("candidates by rank")
        axis.set_title(", ".join(frame["name"][chosen]), color=ACCENT)
    axis.set(xlabel=f"causal effect δ on the validation set ({metric.unit})")
    axis.set_ylim(len(frame) + (0.6 if named else 0.02 * len(frame)), 0.4 if named else 1 - 0.03 * len(frame))
    axis.grid(axis="x")
    return figure


def effect_agreement(
    features: list[dict] | pd.DataFrame,
    selected: list[str],
    metric: Metric,
    resamples: int = 2000,
    seed: int = 0,
) -> Figure:
    """Do the two views of an effect agree? delta of the score against the change of the target's log-likelihood."""
    frame = pd.DataFrame(features)
    if frame.empty:
        return empty_figure("no candidate reached the causal filter")
    figure, axes = new_figure(COLUMN, 2.6)
    axis, chosen = axes[0, 0], frame["name"].isin(selected).to_numpy()
    axis.axhline(0, color=GRID, linewidth=0.8)
    axis.axvline(0, color=GRID, linewidth=0.8)
    sizes, colours = np.where(chosen, 34, 14), np.where(chosen, ACCENT, MUTED)
    axis.scatter(
        frame["delta_loglik"], frame["delta"] * metric.factor, s=sizes, c=colours, alpha=0.9, linewidth=0
    )
    axis.margins(0.12)
    middle = np.mean(axis.get_xlim())
    for _, item in frame[chosen].iterrows():  # the label grows towards the middle, so it stays inside
        right = item["delta_loglik"] > middle
        place = {"xytext": (-6 if right else 6, 0), "ha": "right" if right else "left", "va": "center"}
        point = (item["delta_loglik"], item["delta"] * metric.factor)
        axis.annotate(item["name"], point, textcoords="offset points", color=ACCENT, **place)
    rho = spearman(frame["delta_loglik"], frame["delta"], resamples=resamples, seed=seed)
    axis.set_title(correlation(rho._asdict()))
    axis.set_xlabel("change of target log-likelihood (nats / token)")
    axis.set_ylabel(f"causal effect δ ({metric.unit})")
    return figure


def main_result(summary: dict[str, list[dict]], metrics: dict[str, Metric]) -> Figure:
    """Score of every arm with its interval, one panel a task, Full as a line (the figure of Table 2).

    `summary[task]` = records of `summaries.summarise`; those of the curve are left out.
    """
    kept = {task: at_main_ratio(records) for task, records in summary.items()}
    seen = {selector for records in kept.values() for selector in records}
    arms = [s for s in SELECTORS if s in seen] + sorted(seen - set(SELECTORS))
    width = PAGE if len(kept) > 1 else COLUMN + 0.6
    figure, axes = new_figure(width, 0.85 + 0.27 * len(arms), columns=len(kept), sharey=True)
    figure.get_layout_engine().set(w_pad=0.1)
    for axis, (task, records) in zip(axes[0], kept.items(), strict=True):
        show = metrics[task]
        if "full" in records:
            full = records["full"]["score"] * show.factor
            axis.axvline(full, **dashed(0.8))
            beside_line(axis, full, 1.0, " Full", "y", va="top", fontsize=7)
        for row, selector in enumerate(arms):
            record = records.get(selector)
            if record is None:
                beside_line(axis, 0.02, row, "not run", "x", va="center", color=MUTED, fontsize=7)
                continue
            score, colour, ours = record["score"] * show.factor, selector_colour(selector), selector == "igds"
            interval_line(axis, record["low"], record["high"], row, show, colour, 1.8)
            axis.scatter(score, row, s=30 if ours else 20, color=colour, zorder=3)
            place = {
                "xytext": (0, 3.5),
                "textcoords": "offset points",
                "ha": "center",
                "va": "bottom",
                "fontsize": 7,
            }
            weight = "bold" if ours else "normal"
            axis.annotate(
                show.show(record["score"]), (score, row), path_effects=HALO, fontweight=weight, **place
            )
        axis.set_yticks(range(len(arms)), [selector_title(s) for s in arms])
        axis.set(title=task_title(task), xlabel=show.label, ylim=(len(arms) - 0.5, -0.75))
        axis.grid(axis="x")
        axis.margins(x=0.08)
        axis.tick_params(axis="y", length=0)
    return figure


def training_loss(logs: dict[str, pd.DataFrame]) -> Figure:
    """Training loss (nats per target token) against optimizer step, one line per arm; `logs[arm]` is its log.parquet.

    Long logs are drawn as a running mean over a fiftieth of their steps above the faint raw curve.
    """
    figure, axes = new_figure(PAGE * 0.75, max(2.6, 0.6 + 0.13 * len(logs)))
    axis, ends = axes[0, 0], []
    for arm, log in logs.items():
        log = log.dropna(subset=["loss"])
        colour, loss = selector_colour(selector_of(arm)), log["loss"].to_numpy(float)
        if len(log) > 50:
            axis.plot(log["step"], loss, color=colour, alpha=0.2, linewidth=0.6)
            loss = log["loss"].rolling(max(2, len(log) // 50), min_periods=1).mean().to_numpy()
        axis.plot(log["step"], loss, color=colour, marker="o" if len(log) <= 12 else "", markersize=3)
        ends.append(Mark(log["step"].iloc[-1], loss[-1], arm_title(arm), colour))
    axis.set(xlabel="optimizer step", ylabel="training loss (nats / token)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y")
    name_marks(axis, ends)
    return figure
