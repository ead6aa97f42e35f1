"""What the finished arms of a run show, from stored products: the task feature in each of them (Figure 3), alerts over
a series of models, and what selecting their data cost (Table 4).

    activations = finished.arm_activations(run, "math")
    table = finished.compare(activations, run.read("math/summary.json"))
    watched = finished.watch(finished.series_of_arms(run, "math"), feature="l12_p4126")
"""

from typing import Any

import numpy as np
import pandas as pd

from igds_utils import plan, selectors
from igds_utils.core.arms import WHOLE, arms
from igds_utils.core.experiment import Run
from igds_utils.data.stats import interval, paired_difference, spearman
from igds_utils.display import Metric, arm_title, missing, number

SCORE = "score"
BAND = 0.9  # share of a model's activations that the band holds


# ---- the task feature in every arm -----------------------------------------------------------------------


def arm_activations(run: Run, task: str) -> pd.DataFrame:
    """a_i(x, p) of the top task feature on the fixed pool prompts, in every arm that compares selectors.

    Columns: arm (as in summary.json, without the seed), seed, sample_id, activation. The prompts are the same for all
    arms, never an arm's own selection. Read from arms/<arm>/activations.parquet.
    """
    top, tables = run.task_features(task)[0], []
    for arm in arms(run.config(task)):
        if arm.is_check:
            continue
        path = f"{task}/arms/{arm.name}/activations.parquet"
        found = run.read(path).query("layer == @top.layer and feature == @top.index")
        if found.empty:
            raise ValueError(f"{path} does not hold {top.name}: run 04_sft again")
        name = arm.selector if arm.selector in ("original", *WHOLE) else f"{arm.selector}@{arm.ratio:g}"
        tables.append(found.assign(arm=name, seed=arm.seed)[["arm", "seed", "sample_id", "activation"]])
    return pd.concat(tables, ignore_index=True)


def winsorize(values, share: float = 0.01) -> np.ndarray:
    """Values (n,) with the lowest and the highest `share` moved in to the quantiles `share` and 1 - `share`."""
    x = np.asarray(values, dtype=float)
    return np.clip(x, *np.quantile(x, [share, 1 - share]))


def compare(
    activations: pd.DataFrame,
    summary: list[dict[str, Any]],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per arm: its median activation, how far it moved, and its score (Figure 3 in numbers).

    activations: as `arm_activations` gives them; summary: records of `evaluation.summarise`. Columns: arm, selector,
    ratio, main, score, low, high (as there), medians (one per training seed), median (their mean), moved, moved_low,
    moved_high (mean paired difference to the untrained model on the same prompts, its interval over prompts and, where
    there are several, trainings; nan for that model itself), judged (whether there are several).
    """
    wide = activations.pivot(index="sample_id", columns=["arm", "seed"], values="activation")
    rows = []
    for record in summary:
        values = wide[record["arm"]].dropna(axis=0)  # (prompts, seeds)
        row = {key: record[key] for key in ("arm", "selector", "ratio", "main", "score", "low", "high")}
        row |= {"medians": values.median().tolist(), "median": float(values.median().mean())}
        if record["arm"] != "original":
            moved = paired_difference(values, wide["original"].iloc[:, 0], confidence, resamples, seed)
            row |= {"moved": moved.mean, "moved_low": moved.low, "moved_high": moved.high}
            row["judged"] = moved.judged
        rows.append(row)
    return pd.DataFrame(rows)


def correlation(
    table: pd.DataFrame, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Spearman's correlation of median activation and score over the arms of `compare`: `stats.Correlation` as dicts.

    `all` as in the paper, which counts the untrained model as one arm; `trained` without it.
    """
    parts, options = {"all": table, "trained": table[table["selector"] != "original"]}, (confidence, resamples, seed)
    found = {name: spearman(part["median"], part["score"], *options)._asdict() for name, part in parts.items()}
    return {name: {k: None if missing(v) else v for k, v in rho.items()} for name, rho in found.items()}


# ---- watching a series of models -------------------------------------------------------------------------


def series_of_arms(run: Run, task: str) -> pd.DataFrame:
    """The arms of a run as a series, the untrained model first: whole test set, all fixed prompts, every seed."""
    top = run.task_features(task)[0].name
    read = arm_activations(run, task).rename(columns={"activation": "value"}).assign(measure=top)
    scored = run.read(f"{task}/evaluation.parquet")
    scored["arm"] = scored["arm"].str.replace(r"-s\d+$", "", regex=True)
    scored = scored[scored["arm"].isin(read["arm"])].rename(columns={"score": "value"}).assign(measure=SCORE)
    keys = ["arm", "measure", "sample_id", "seed"]
    both = pd.concat([read, scored])[[*keys, "value"]].groupby(keys, sort=False, as_index=False).mean()
    both["arm"] = pd.Categorical(both["arm"], both["arm"].unique())
    both = both.sort_values("arm", kind="stable", ignore_index=True)
    return both.assign(point=both["arm"].astype(str).map(arm_title)).drop(columns="arm")


def watch(
    series: pd.DataFrame,
    feature: str,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    start: int = 0,
) -> pd.DataFrame:
    """One row per point of a series: its score and activation, and whether either raises an alert.

    series: a row per model, quantity and sample: point (a model or checkpoint, in order), measure ("score" or the name
    of a task feature), sample_id, value, and seed where a model was trained with several.

    The rule. *Score*: the paired difference to the best point so far, on the same test items, lies below zero with
    its whole interval; with many points some do by chance, since each is one more test. *Activation*: the median over
    the prompts (the mean of the medians of several seeds) leaves the band that held the middle 90 % of the activations
    at point number `start`. Columns: point, score, low, high, n, lost, lost_low, lost_high (against the best so far;
    nan for the first), activation, band_low, band_high (nan before `start`), score_alert, activation_alert.
    Raises `ValueError` where a point lacks the score or the feature.
    """
    if "seed" not in series:
        series = series.assign(seed=0)
    rows, best, band = [], None, (np.nan, np.nan)
    for place, (point, table) in enumerate(series.groupby("point", sort=False)):
        values = {
            name: part.pivot_table(index="sample_id", columns="seed", values="value")
            for name, part in table.groupby("measure")
        }
        if missing := {SCORE, feature} - set(values):
            raise ValueError(f"series: {point} has no {missing.pop()}; it holds {', '.join(values)}")
        score, activation = values[SCORE], values[feature]  # (samples, seeds)
        model = score if score.shape[1] > 1 else score.iloc[:, 0]  # one model is watched as it stands
        if place == start:
            band = tuple(activation.stack().quantile([(1 - BAND) / 2, (1 + BAND) / 2]))
        mean, low, high = interval(score.mean(axis=1), confidence, resamples, seed)
        row = {"point": point, "score": mean, "low": low, "high": high, "n": len(score)}
        if best is not None:
            lost = paired_difference(model, best, confidence, resamples, seed)
            row |= {"lost": lost.mean, "lost_low": lost.low, "lost_high": lost.high}
        middle = float(activation.median().mean())
        row |= {"activation": middle, "band_low": band[0], "band_high": band[1]}
        row["score_alert"] = bool(row.get("lost_high", 0.0) < 0)
        row["activation_alert"] = middle < band[0] or middle > band[1]
        rows.append(row)
        best = model if best is None or mean > best.to_numpy().mean() else best
    return pd.DataFrame(rows)


def report(watched: pd.DataFrame, metric: Metric) -> str:
    """The alerts of `watch` in words, one line each; or that there is none."""
    lines = []
    for row in watched.to_dict("records"):
        if row["score_alert"]:
            lost = metric.show_interval(-row["lost"], -row["lost_high"], -row["lost_low"])
            lines.append(f"{row['point']}: the score is {lost} {metric.unit} below the highest score so far")
        if row["activation_alert"]:
            side = "below" if row["activation"] < row["band_low"] else "above"
            middle, low, high = (number(row[name], 2) for name in ("activation", "band_low", "band_high"))
            lines.append(f"{row['point']}: the feature's median {middle} is {side} its band ({low} to {high})")
    return "\n".join(lines) or f"no alert in {len(watched)} models"


# ---- the cost of selection -------------------------------------------------------------------------------


def selection_costs(run: Run, task: str) -> pd.DataFrame:
    """What it took each selector to score and rank the pool, one row each (Table 4).

    Columns: selector; seconds, from the records of the stored products; tokens that the model read
    (`plan.measurement_tokens`); operations (`plan.measurement_operations`), nan where the preset states no shape of the
    model. A selector is charged in full for every measurement that it asks for, also where it shares it with another.
    Identification of the task features is not part of it, as in the paper.
    """
    from igds_utils.selection.pool import open_pool

    config, shape, rows = run.config(task), run.preset.chosen.shape, []
    blocks = max(feature.layer for feature in run.task_features(task)) + 1
    read, epochs = (config.prompt_tokens, config.target_tokens), run.preset.selection.less.epochs
    pool = open_pool(run, task, config.seeds[0])
    for name in config.selectors:
        kind = selectors.get(name)
        products = {pool.measured(measured).product for measured in kind.measurements} - {""}
        ranking = f"{name}-s{config.seeds[0]}" if kind.seeded else name
        products.add(f"{task}/scores/{ranking}.parquet")
        row = {"selector": name, "seconds": sum(run.store.seconds(product) for product in products)}
        tokens = {
            measured: config.sizes.pool * plan.measurement_tokens(measured, *read, epochs)
            for measured in kind.measurements
        }
        row["tokens"] = sum(tokens.values())
        if shape is not None:
            costs = [plan.measurement_operations(measured, n, shape, blocks) for measured, n in tokens.items()]
            row["operations"] = sum(costs)
        rows.append(row)
    return pd.DataFrame(rows, columns=["selector", "seconds", "tokens", "operations"])
