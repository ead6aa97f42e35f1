"""What finished arms show, from stored products: the task feature in each of them (Figure 3),
alerts over a series of models, and what selecting their data cost (Table 4).
"""

from typing import Any

import numpy as np
import pandas as pd

from igds_utils import plan, selectors
from igds_utils.core.arms import arms
from igds_utils.core.experiment import Run
from igds_utils.data.stats import interval, paired_difference, spearman
from igds_utils.display import arm_title, missing, without_seed

SCORE = "score"
BAND = 0.9  # share of a model's activations that the band holds


def arm_activations(run: Run, task: str) -> pd.DataFrame:
    """a_i(x, p) of the top task feature on the fixed pool prompts, in all arms but the checks.

    Columns: arm (as in summary.json, without the seed), seed, sample_id, activation. Read from
    arms/<arm>/activations.parquet.
    """
    top, tables = run.task_features(task)[0], []
    for arm in arms(run.config(task)):
        if arm.is_check:
            continue
        path = f"{task}/arms/{arm.name}/activations.parquet"
        found = run.read(path).query(f"layer == {top.layer} and feature == {top.index}")
        tables.append(found.assign(arm=without_seed(arm.name), seed=arm.seed))
    return pd.concat(tables, ignore_index=True)[["arm", "seed", "sample_id", "activation"]]


def compare(
    activations: pd.DataFrame, summary: list[dict[str, Any]], *options: float
) -> pd.DataFrame:
    """One row per arm: its median activation, how far it moved, and its score (Figure 3).

    activations: `arm_activations`; summary, options: as of `evaluation.summarise`. Columns: arm,
    selector, ratio, main, score, low, high (as there), medians (one per training seed), median
    (their mean), moved, moved_low, moved_high (paired difference to the untrained model).
    """
    wide = activations.pivot(index="sample_id", columns=["arm", "seed"], values="activation")
    rows = []
    for record in summary:
        values = wide[record["arm"]].dropna(axis=0)  # (prompts, seeds)
        medians = values.median()
        kept = ("arm", "selector", "ratio", "main", "score", "low", "high")
        row = {key: record[key] for key in kept} | {"medians": medians.tolist()}
        row["median"] = float(medians.mean())
        if record["arm"] != "original":
            base = wide["original"].iloc[:, 0]
            moved = paired_difference(values, base, *options)
            row |= {"moved": moved.mean, "moved_low": moved.low, "moved_high": moved.high}
        rows.append(row)
    return pd.DataFrame(rows)


def correlation(table: pd.DataFrame, *options: float) -> dict[str, dict[str, Any]]:
    """Spearman's correlation of median activation and score over the arms of `compare`.

    `all` counts the untrained model as one arm, as in the paper; `trained` leaves it out. Each
    is a `stats.Correlation` as a dict, None for nan.
    """
    found = {}
    for name, part in {"all": table, "trained": table.query("selector != 'original'")}.items():
        rho = spearman(part["median"], part["score"], *options)._asdict()
        found[name] = {key: None if missing(value) else value for key, value in rho.items()}
    return found


def series_of_arms(run: Run, task: str) -> pd.DataFrame:
    """The arms of a run as a series, the untrained model first; all seeds, prompts, test items."""
    top = run.task_features(task)[0].name
    read = arm_activations(run, task).rename(columns={"activation": "value"}).assign(measure=top)
    scored = run.read(f"{task}/evaluation.parquet")
    scored["arm"] = scored["arm"].map(without_seed)
    scored = scored[scored["arm"].isin(read["arm"])].rename(columns={"score": "value"})
    keys = ["arm", "measure", "sample_id", "seed"]
    both = pd.concat([read, scored.assign(measure=SCORE)])
    both["arm"] = pd.Categorical(both["arm"], both["arm"].unique())
    both = both.groupby(keys, observed=True, as_index=False)["value"].mean()
    return both.assign(point=both["arm"].astype(str).map(arm_title)).drop(columns="arm")


def watch(series: pd.DataFrame, feature: str, *options: float, start: int = 0) -> pd.DataFrame:
    """One row per point of a series: its score and activation, and whether either alerts.

    series: a row per model, quantity, sample and seed: point (a model or checkpoint, in order),
    measure ("score" or the name of a task feature), sample_id, seed, value.

    The rule. *Score*: the paired difference to the best point so far lies below zero with its
    whole interval; with many points some do by chance. *Activation*: the median over prompts
    (mean of the seeds' medians) leaves the band that held the middle 90 % at point number
    `start`. Columns: point, score, low, high, n, lost, lost_low, lost_high (against the best so
    far), activation, band_low, band_high (nan before `start`), score_alert, activation_alert.
    """
    rows, best, band = [], None, (np.nan, np.nan)
    for place, (point, table) in enumerate(series.groupby("point", sort=False)):
        wide = table.pivot_table("value", ["measure", "sample_id"], "seed")
        score, activation = wide.loc[SCORE], wide.loc[feature]  # (samples, seeds)
        model = score if score.shape[1] > 1 else score.iloc[:, 0]  # one is taken as it stands
        if place == start:
            band = tuple(activation.stack().quantile([(1 - BAND) / 2, (1 + BAND) / 2]))
        mean, low, high = interval(score.mean(axis=1), *options)
        row = {"point": point, "score": mean, "low": low, "high": high, "n": len(score)}
        if best is not None:
            lost = paired_difference(model, best, *options)
            row |= {"lost": lost.mean, "lost_low": lost.low, "lost_high": lost.high}
        middle = float(activation.median().mean())
        row |= {"activation": middle, "band_low": band[0], "band_high": band[1]}
        row["score_alert"] = bool(row.get("lost_high", 0.0) < 0)
        row["activation_alert"] = middle < band[0] or middle > band[1]
        rows.append(row)
        best = model if best is None or mean > best.to_numpy().mean() else best
    return pd.DataFrame(rows)


def selection_costs(run: Run, task: str) -> pd.DataFrame:
    """What it took each selector to score and rank the pool, one row each (Table 4).

    Columns: selector; seconds, of the stored products; tokens that the model read; operations
    (`plan`), nan where the preset states no shape of the model. A measurement that several share
    is charged to each in full; identification is not part of it, as in the paper.
    """
    from igds_utils.selection.pool import open_pool

    config, shape, rows = run.config(task), run.preset.chosen.shape, []
    blocks = max(feature.layer for feature in run.task_features(task)) + 1
    lengths = config.prompt_tokens, config.target_tokens, run.preset.selection.less.epochs
    pool = open_pool(run, task, config.seeds[0])
    for name in config.selectors:
        kind = selectors.get(name)
        products = {pool.measured(measured).product for measured in kind.measurements} - {""}
        ranking = f"{name}-s{config.seeds[0]}" if kind.seeded else name
        products.add(f"{task}/scores/{ranking}.parquet")
        read = {
            measured: config.sizes.pool * plan.measurement_tokens(measured, *lengths)
            for measured in kind.measurements
        }
        costs = [plan.measurement_operations(*one, shape, blocks) for one in read.items() if shape]
        seconds = sum(run.store.seconds(product) for product in products)
        rows.append((name, seconds, sum(read.values()), sum(costs) if shape else np.nan))
    return pd.DataFrame(rows, columns=["selector", "seconds", "tokens", "operations"])
