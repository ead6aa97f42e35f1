"""What it takes to recognise sound prompts: a ladder of scores that use less and less of IGDS, judged without training.

The rule, written before any result: every score takes the highest values first and is judged on clean samples against
those with a corrupted prompt. Scores that sum features sum them over all layers with an SAE; scores of one layer are
judged at `measurements.fixed_layer`, and their other layers are shown, not chosen from. Duplicates, whose prompts are
sound, are not judged. The best recalled feature is found by the labels and is an oracle. No other score sees a label.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from igds_utils import selectors
from igds_utils.core.arms import selection_size
from igds_utils.core.store import content_hash
from igds_utils.data.stats import spearman
from igds_utils.engine import activations
from igds_utils.engine.features import Feature, features_of
from igds_utils.identification.intervention import QUANTITIES
from igds_utils.identification.recall import fires_often
from igds_utils.selection import features, quality
from igds_utils.selection.measurements import fixed_layer
from igds_utils.selection.pool import Pool
from igds_utils.tasks.corruptions import rewritten

STABLE = ("igds", "igds_recalled", "prior_cosine")  # selectors that score rewritten prompts too
DRAWS = 20  # random directions
RATIO = 0.5  # of the pool that is kept, for the clean share


class Score(NamedTuple):
    """One rung: a score of every sample of a pool, or several draws of one."""

    rung: str
    layer: int | None  # None: summed over all layers
    values: np.ndarray  # (N,), or (N, draws)
    features: int  # how many are summed; 1 of a direction
    seconds: float  # of what it takes alone: its passes over prompts, up to the last SAE's layer, and its own work
    fixed: bool  # whether the rule judges it; others are shown beside it


# ---- scores, which see no label --------------------------------------------------------------------------


def scores(pool: Pool, prior: dict[str, Pool], oracle: Feature | None = None) -> list[Score]:
    """Every rung of the ladder for a pool, from one pass over it and one over each task's prior set.

    prior: D_prior of every task of the run. Directions that need other tasks (mean difference, linear probe) are left
    out where the run has one. oracle: a feature that is read as a rung of its own.
    """
    run, task, h, own = pool.run, pool.task, pool.at_p, prior[pool.task]
    mine, others = own.at_p, [other.at_p for name, other in prior.items() if name != task]
    generator = torch.Generator().manual_seed(run.preset.seed)
    fires = run.read(f"{task}/recall.parquet").groupby("layer")["frequency"].sum()  # L0 at p

    def read(some: Sequence[Feature]) -> Callable[[int], Tensor]:
        def at(layer: int) -> Tensor:
            if not (here := [feature for feature in some if feature.layer == layer]):
                return h[layer][:, :0]
            values = activations.feature_activations(h, run.saes, here).numpy()
            return torch.from_numpy(features.in_units(run, values, here))

        return at

    def unlearned(layer: int) -> Tensor:
        encode = random_sae(mine[layer], run.saes.d_sae, fires.get(layer, 0.0), generator)
        frequency = pd.Series((encode(mine[layer]) > 0).double().mean(0).numpy())
        kept = np.flatnonzero(fires_often(frequency, len(mine[layer]), run.preset.recall.tau))
        return encode(h[layer])[:, kept]

    def difference(layer: int) -> Tensor:
        rest = torch.cat([other[layer] for other in others])
        return h[layer] @ (mine[layer].mean(0) - rest.mean(0))

    def probe(layer: int) -> Tensor:
        rows = torch.cat([read[layer] for read in (mine, *others)]).numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
        model.fit(rows, np.arange(len(rows)) < len(mine[layer]))
        return torch.from_numpy(model.decision_function(h[layer].numpy()))

    def cosine(layer: int) -> Tensor:
        return torch.cosine_similarity(h[layer], mine[layer].mean(0)[None])

    def directions(layer: int) -> Tensor:
        return h[layer] @ torch.randn(h[layer].shape[1], DRAWS, generator=generator)

    def rung(name: str, build: Callable[[int], Tensor], reads: Iterable[Pool] = (), summed: bool = False):
        """build: the score at a layer, (N,) or (N, draws), or what is summed there, (N, features)."""
        passes, of_layer = sum(samples.pass_seconds for samples in (pool, *reads)), []
        for layer in run.saes.layers:
            start = time.perf_counter()
            values = build(layer)
            used, values = (values.shape[1], values.sum(1)) if summed else (1, values)
            seconds, fixed = passes + time.perf_counter() - start, layer == fixed_layer(run) and not summed
            of_layer.append(Score(name, layer, values.cpu().numpy(), used, seconds, fixed))
        if summed:
            total, used = sum(each.values for each in of_layer), sum(each.features for each in of_layer)
            seconds = passes + sum(each.seconds - passes for each in of_layer)
            yield Score(name, None, total, used, seconds, True)
        yield from (each for each in of_layer if each.features)

    found = [
        *rung("task features", read(pool.task_features), summed=True),
        *rung("all recalled features", read(features.recalled(run, task)), summed=True),
    ]
    if oracle:
        found += rung("best recalled feature (oracle)", read([oracle]), summed=True)
    found += rung("random SAE, its recalled features", unlearned, [own], summed=True)
    if others:
        found += rung("mean difference to other tasks", difference, prior.values())
        found += rung("linear probe against other tasks", probe, prior.values())
    found += rung("cosine to the prior's mean", cosine, [own])
    return found + [*rung("random directions", directions)]


def random_sae(h: Tensor, n_features: int, l0: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """An encoder of random unit directions, (..., d) -> (..., n_features), as sparse on h (n, d) as a trained one.

    a = x w where that lies above one threshold, which exactly round(n l0) of all activations on h exceed.
    """
    directions = torch.nn.functional.normalize(torch.randn(h.shape[1], n_features, generator=generator), dim=0)
    threshold = (h @ directions).flatten().topk(round(l0 * len(h)) + 1).values[-1]
    return lambda x: torch.nn.functional.threshold(x @ directions, threshold.item(), 0.0)


# ---- held against the labels -----------------------------------------------------------------------------


def auc(clean: np.ndarray, corrupted: np.ndarray, axis: int = -1) -> np.ndarray:
    """Share of pairs (clean, corrupted) in which the clean sample scores higher; ties count half."""
    both = clean.astype(float), corrupted.astype(float)
    wins = stats.mannwhitneyu(*both, axis=axis, method="asymptotic").statistic
    return wins / (clean.shape[axis] * corrupted.shape[axis])


def sides(known: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which samples (rows of `quality.labels`) are clean, and which have a corrupted prompt, duplicates apart: bool."""
    prompt = (known["side"] == "prompt") & (known["corruption"] != "duplicate")
    return (known["corruption"] == quality.CLEAN).to_numpy(), prompt.to_numpy()


def judge(
    found: list[Score], known: pd.DataFrame, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """How well every score of the samples of `known` (rows of `quality.labels`, in order) finds corrupted prompts.

    A row a score: rung, layer, fixed, features; auc, of one that the rule judges with its interval over samples (low,
    high; percentile bootstrap of either side); share, the clean share of the half that it keeps (`quality.precision`,
    prompt side), with chance; seconds. Of several draws auc and share are means, and sd is the standard deviation of
    the auc over draws.
    """
    (clean, corrupted), by_id, rows = sides(known), known.set_index("sample_id"), []
    by_chance = quality.chance(known, "prompt", selection_size(RATIO, len(known)))
    for score in found:
        draws = score.values.reshape(len(known), -1).T  # (draws, N)
        areas, shares = auc(draws[:, clean], draws[:, corrupted]), []
        for values in draws:
            ranking = selectors.rank(values, known["sample_id"], "highest")
            chosen = by_id.loc[selectors.select(ranking, RATIO)]
            shares.append(1 - quality.corrupted(chosen)[quality.judged(chosen, "prompt")].mean())
        row = score._asdict() | {"auc": areas.mean(), "low": np.nan, "high": np.nan, "sd": np.nan}
        if len(draws) > 1:
            row["sd"] = areas.std(ddof=1)
        elif score.fixed and min(clean.sum(), corrupted.sum()) > 1:
            test = stats.bootstrap(
                (draws[0, clean], draws[0, corrupted]), auc, vectorized=True, n_resamples=resamples, batch=256,
                confidence_level=confidence, method="percentile", rng=np.random.default_rng(seed),
            )  # fmt: skip
            row |= test.confidence_interval._asdict()
        rows.append(row | {"share": np.mean(shares), "chance": by_chance})
    return pd.DataFrame(rows).drop(columns="values").astype({"layer": "Int64"})


def feature_table(pool: Pool, known: pd.DataFrame) -> pd.DataFrame:
    """Every recalled feature: what it does and what it recognises, largest change of the log-likelihood first.

    Columns: name, layer, feature, selected; delta_loglik and delta (nan where it generated nothing) of the causal
    filter; auc of its activation at p, clean against corrupted prompts; of the clean prompts fires, the share on which
    it does, and variation, standard deviation over mean.
    """
    run, (clean, corrupted), read = pool.run, sides(known), pool.measured("recalled_activations")
    a, table = read.values.T, pd.DataFrame({"name": read.about["features"]})  # (F, N)
    table["auc"] = auc(a[:, clean], a[:, corrupted])
    table["fires"], table["variation"] = (a[:, clean] > 0).mean(1), stats.variation(a[:, clean], axis=1)
    measured = pd.DataFrame(run.read(f"{pool.task}/task_features.json")["features"])
    columns = ["name", "layer", "feature", *QUANTITIES.values()]
    table = measured.reindex(columns=columns).merge(table, on="name", validate="one_to_one")
    table["selected"] = table["name"].isin([feature.name for feature in pool.task_features])
    return table.sort_values("delta_loglik", ascending=False, ignore_index=True)


def reliability(pool: Pool, known: pd.DataFrame) -> pd.DataFrame:
    """Is a score the same where names and numbers of the prompt are others, but not the task (`rewritten`)?

    A row a selector: n clean samples that could be rewritten, rho between both scores with its interval (low, high);
    over all clean samples fires, the share above 0, and variation, standard deviation over mean.
    """
    run, preset, rows, clean = pool.run, pool.run.preset, [], sides(known)[0]
    sound = [sample for sample, kept in zip(pool.samples, clean, strict=True) if kept]
    changed = [made for sample in sound if (made := rewritten(sample, preset.seed)) != sample]
    if not changed:
        return pd.DataFrame(columns=["selector", "n", "rho", "low", "high", "fires", "variation"])
    other = Pool(run, pool.task, changed, f"{pool.task}/quality/rewritten", pool.seed, one_pass=True)
    other.prior = pool.prior
    for name in STABLE:
        values, again = (selectors.rank_pool(name, one).set_index("sample_id")["score"] for one in (pool, other))
        own = values[[sample.id for sample in sound]]
        found = spearman(values[other.ids], again[other.ids], preset.confidence, preset.bootstrap, preset.seed)
        facts = {"fires": (own > 0).mean(), "variation": stats.variation(own)}
        rows.append({"selector": name} | found._asdict() | facts)
    return pd.DataFrame(rows)


def report(pool: Pool, prior: dict[str, Pool]) -> dict[str, pd.DataFrame]:
    """The tables features, ladder and reliability of a pool of known quality, stored under <task>/quality/.

    prior: D_prior of every task of the run.
    """
    run, task, preset = pool.run, pool.task, pool.run.preset
    known, filtered = quality.labels(run.examples(task, "quality")), run.read(f"{task}/task_features.json")
    sure = {"confidence": preset.confidence, "resamples": preset.bootstrap, "seed": preset.seed}
    inputs = pool.identified_from | sure | {
        "labels": content_hash(known.to_dict("list")), "units": preset.scoring.units,
        "features": content_hash([filtered["features"], filtered["selected"]]),
        "recalled": run.store.version(f"{task}/recall.parquet"),
        "priors": {name: run.data_version(name, "prior") for name in prior},
    }  # fmt: skip
    made: dict[str, pd.DataFrame] = {}
    builds = {
        "features": lambda: feature_table(pool, known),
        "ladder": lambda: judge(scores(pool, prior, *features_of(made["features"].nlargest(1, "auc"))), known, **sure),
        "reliability": lambda: reliability(pool, known),
    }
    for name, build in builds.items():
        made[name] = run.make(f"{task}/quality/{name}.parquet", build, **inputs)
    return made
