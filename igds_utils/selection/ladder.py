"""What it takes to recognise sound prompts: scores that use less and less of IGDS.

The rule, written before any result: every score takes the highest values first and is judged on
clean samples against those with a corrupted prompt. Scores that sum features sum them over all
layers with an SAE; scores of one layer are judged at `measurements.fixed_layer`, and their other
layers are shown, not chosen from. Duplicates, whose prompts are sound, are not judged. The best
recalled feature is found by the labels and is an oracle. No other score sees a label.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from igds_utils import selectors
from igds_utils.core.store import content_hash
from igds_utils.data.stats import spearman
from igds_utils.engine import activations
from igds_utils.engine.features import Feature, features_of
from igds_utils.identification.recall import fires_often
from igds_utils.selection import features, quality
from igds_utils.selection.measurements import fixed_layer
from igds_utils.selection.pool import Pool
from igds_utils.tasks.corruptions import rewritten

STABLE = ("igds", "igds_recalled", "prior_cosine")  # which score rewritten prompts too
DRAWS = 20  # random directions
RATIO = 0.5  # of the pool that is kept, for the clean share


def scores(pool: Pool, prior: dict[str, Pool], oracle: Feature | None = None) -> pd.DataFrame:
    """Every rung of the ladder; none but the oracle, a feature, knows of a label.

    prior: D_prior of every task; two rungs need several. Columns: rung; layer (none: sum); fixed,
    whether the rule judges it; values (N,), or (N, draws); how many features are summed;
    seconds of its passes over prompts and its own work.
    """
    run, h, own, rows = pool.run, pool.at_p, prior[pool.task], []
    mine, others = own.at_p, [other.at_p for other in prior.values() if other is not own]
    generator = torch.Generator().manual_seed(run.preset.seed)
    recalled = run.read(f"{pool.task}/recall.parquet")
    fires = recalled.groupby("layer")["frequency"].sum()  # L0

    def read(some: Sequence[Feature], layer: int) -> Tensor:
        here = [one for one in some if one.layer == layer]
        values = activations.feature_activations(h, run.saes, here).numpy()
        return torch.from_numpy(features.in_units(run, values, here))

    def unlearned(layer: int) -> Tensor:
        encode = random_sae(mine[layer], run.saes.d_sae, fires.get(layer, 0.0), generator)
        frequency = (encode(mine[layer]) > 0).double().mean(0)
        often = fires_often(frequency, len(mine[layer]), run.preset.recall.tau)
        return encode(h[layer])[:, often]

    def difference(layer: int) -> Tensor:
        rest = torch.cat([other[layer] for other in others])
        return h[layer] @ (mine[layer].mean(0) - rest.mean(0))

    def probe(layer: int) -> Tensor:
        rows = torch.cat([one[layer] for one in (mine, *others)])
        regression = LogisticRegression(max_iter=1000, class_weight="balanced")
        model = make_pipeline(StandardScaler(), regression)
        model.fit(rows, np.arange(len(rows)) < len(mine[layer]))
        return torch.from_numpy(model.decision_function(h[layer]))

    def cosine(layer: int) -> Tensor:
        return torch.cosine_similarity(h[layer], mine[layer].mean(0)[None])

    def drawn(layer: int) -> Tensor:
        return h[layer] @ torch.randn(h[layer].shape[1], DRAWS, generator=generator)

    def rung(name: str, build: Callable[[int], Tensor], reads=(), summed=False) -> None:
        passes, parts = sum(one.pass_seconds for one in (pool, *reads)), {}
        for layer in run.saes.layers:
            start = time.perf_counter()
            values, n = build(layer), 1
            if summed:
                values, n = values.sum(1), values.shape[1]
            parts[layer] = values.numpy(), n, time.perf_counter() - start
        if summed:
            total = [sum(each) for each in zip(*parts.values(), strict=True)]
            parts = {None: total} | parts
        for layer, (values, n, seconds) in parts.items():
            fixed = layer == (None if summed else fixed_layer(run))
            if n or fixed:
                rows.append((name, layer, fixed, values, n, passes + seconds))

    rung("task features", partial(read, pool.task_features), summed=True)
    rung("all recalled features", partial(read, features.recalled(pool)), summed=True)
    if oracle:
        rung("best recalled feature (oracle)", partial(read, [oracle]), summed=True)
    rung("random SAE, its recalled features", unlearned, [own], summed=True)
    if others:
        rung("mean difference to other tasks", difference, prior.values())
        rung("linear probe against other tasks", probe, prior.values())
    rung("cosine to the prior's mean", cosine, [own])
    rung("random directions", drawn)
    return pd.DataFrame(rows, columns="rung layer fixed values features seconds".split())


def random_sae(h: Tensor, n_features: int, l0: float, generator) -> Callable[[Tensor], Tensor]:
    """An encoder of random unit directions, (..., d) -> (..., n_features).

    a = x w above a threshold that exactly round(n l0) activations on h (n, d) exceed.
    """
    w = torch.randn(h.shape[1], n_features, generator=generator)
    w = torch.nn.functional.normalize(w, dim=0)
    threshold = (h @ w).flatten().topk(round(l0 * len(h)) + 1).values[-1].item()
    return lambda x: torch.nn.functional.threshold(x @ w, threshold, 0.0)


def auc(clean: np.ndarray, corrupted: np.ndarray, axis: int = -1) -> np.ndarray:
    """Share of pairs in which the clean one scores higher; ties count half."""
    both = clean.astype(float), corrupted.astype(float)
    wins = stats.mannwhitneyu(*both, axis=axis, method="asymptotic").statistic
    return wins / (clean.shape[axis] * corrupted.shape[axis])


def sides(known: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which samples are clean, and which have a corrupted prompt: (N,) bool."""
    prompt = (known["side"] == "prompt") & (known["corruption"] != "duplicate")
    return (known["corruption"] == quality.CLEAN).to_numpy(), prompt.to_numpy()


def judge(
    found: pd.DataFrame, known: pd.DataFrame, confidence=0.95, resamples=2000, seed=0
) -> pd.DataFrame:
    """How well every one of `scores` of the samples of `known` finds corrupted prompts.

    Further columns: auc, with an interval (low, high) where the rule judges it, or SD over
    draws; share, how clean the half is that it keeps; chance.
    """
    (clean, corrupted), rows = sides(known), []
    for score in found.itertuples():
        draws = score.values.reshape(len(known), -1).T  # (draws, N)
        ranked = [selectors.rank(row, known["sample_id"], "highest") for row in draws]
        kept = quality.precision(dict(enumerate(ranked)), known, RATIO).query("side == 'prompt'")
        areas = auc(draws[:, clean], draws[:, corrupted])
        share, chance = kept[["precision", "chance"]].mean()
        row = {"auc": areas.mean(), "share": share, "chance": chance}
        if len(draws) > 1:
            row["sd"] = areas.std(ddof=1)
        elif score.fixed and min(clean.sum(), corrupted.sum()) > 1:
            how = dict(n_resamples=resamples, batch=256, confidence_level=confidence)
            how |= dict(method="percentile", rng=np.random.default_rng(seed))
            test = stats.bootstrap((draws[0, clean], draws[0, corrupted]), auc, **how)
            row |= test.confidence_interval._asdict()
        rows.append(row)
    judged = pd.DataFrame(rows, columns=["auc", "low", "high", "sd", "share", "chance"])
    return found.drop(columns="values").astype({"layer": "Int64"}).join(judged)


def feature_table(pool: Pool, known: pd.DataFrame) -> pd.DataFrame:
    """Every recalled feature: what it does and what it recognises.

    Columns: name, layer, feature, selected; delta_loglik (largest first) and delta; auc of its
    activation at p; of clean prompts fires, the share where it does, and variation.
    """
    run, (clean, corrupted), read = pool.run, sides(known), pool.measured("recalled_activations")
    a, table = read.values.T, pd.DataFrame({"name": read.about["features"]})  # (F, N)
    table["auc"] = auc(a[:, clean], a[:, corrupted])
    table["fires"] = (a[:, clean] > 0).mean(1)
    table["variation"] = stats.variation(a[:, clean], axis=1)
    effects = pd.DataFrame(run.read(f"{pool.task}/task_features.json")["features"])
    effects = effects.reindex(columns=["name", "layer", "feature", "delta", "delta_loglik"])
    table = effects.merge(table, on="name", validate="one_to_one")
    table["selected"] = table["name"].isin([one.name for one in pool.task_features])
    return table.sort_values("delta_loglik", ascending=False, ignore_index=True)


def reliability(pool: Pool, known: pd.DataFrame) -> pd.DataFrame:
    """Is a score the same where names and numbers are others, but not the task?

    Columns: selector; n clean samples that were rewritten; rho of both scores (low, high); of
    all clean ones fires, the share above 0, and variation.
    """
    preset, rows = pool.run.preset, []
    sound = [pool.samples[i] for i in np.flatnonzero(sides(known)[0])]
    changed = [made for one in sound if (made := rewritten(one, preset.seed)) != one]
    folder = f"{pool.task}/quality/rewritten"
    other = Pool(pool.run, pool.task, changed, folder, pool.seed, one_pass=True)
    other.prior = pool.prior
    for name in STABLE:
        tables = [selectors.rank_pool(name, one).set_index("sample_id") for one in (pool, other)]
        own = tables[0].loc[[one.id for one in sound], "score"]
        pair = [table.loc[other.ids, "score"] for table in tables]
        found = spearman(*pair, preset.confidence, preset.bootstrap, preset.seed)
        facts = {"fires": (own > 0).mean(), "variation": stats.variation(own)}
        rows.append({"selector": name} | found._asdict() | facts)
    return pd.DataFrame(rows)


def report(pool: Pool, prior: dict[str, Pool]) -> dict[str, pd.DataFrame]:
    """Tables features, ladder and reliability, kept in <task>/quality/."""
    run, task, preset = pool.run, pool.task, pool.run.preset
    known = quality.labels(run.examples(task, "quality"))
    filtered = run.read(f"{task}/task_features.json")
    sure = dict(confidence=preset.confidence, resamples=preset.bootstrap, seed=preset.seed)
    inputs = pool.identified_from | sure | {
        "labels": content_hash(known.to_dict("list")),
        "units": preset.scoring.units,
        "features": content_hash([filtered["features"], filtered["selected"]]),
        "recalled": run.store.version(f"{task}/recall.parquet"),
        "priors": {name: run.data_version(name, "prior") for name in prior},
    }
    make, folder = partial(run.make, **inputs), f"{task}/quality"
    table = make(f"{folder}/features.parquet", lambda: feature_table(pool, known))
    best = features_of(table.nlargest(1, "auc"))
    rungs = make(
        f"{folder}/ladder.parquet", lambda: judge(scores(pool, prior, *best), known, **sure)
    )
    reliable = make(f"{folder}/reliability.parquet", lambda: reliability(pool, known))
    return {"features": table, "ladder": rungs, "reliability": reliable}
