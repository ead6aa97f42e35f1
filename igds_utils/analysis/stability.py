"""Stability: are the same features found when a task is looked at through other data (Table 5)?

Each source is a run of its own through recall and causal filter: own prior set, own candidates, own validation set. A
source that changes nothing in the task's data is the task's own identification, which is not repeated. What is compared
afterwards comes from the stored effects alone.

    found = {source: stability.identify(run, "math", source) for source in run.config("math").stability.sources}
"""

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from igds_utils.config.settings import Sizes
from igds_utils.core.experiment import Run
from igds_utils.engine.features import features_of


class SourceRun(Run):
    """A run whose task reads one identification source instead; model, SAEs and products are the parent's.

    Only the sets prior and validation are there, in the sizes of the task's `stability` section. They may share
    samples with the task's other sets, because nothing is trained on them or compared with what was.
    """

    def __init__(self, parent: Run, task: str, source: str):
        config, chosen = parent.config(task), parent.config(task).stability
        sizes = Sizes(prior=chosen.prior, validation=chosen.validation, confirmation=0, pool=0, test=0)
        changes = {"data": config.data | chosen.sources[source], "sizes": sizes}
        changes["max_new_tokens"] = chosen.max_new_tokens
        tasks = parent.preset.tasks | {task: config.model_copy(update=changes)}
        super().__init__(parent.preset.model_copy(update={"tasks": tasks}), parent.root, parent.part)
        self.parent, self._models = parent, parent._models
        self._folders = {task: f"{task}/stability/{source}"}

    tokenizer = property(lambda self: self.parent.tokenizer)
    saes = property(lambda self: self.parent.saes)
    sae_version = property(lambda self: self.parent.sae_version)

    def folder(self, task: str) -> str:
        return self._folders.get(task, task)


class Source(NamedTuple):
    """What one source's identification found."""

    recalled: pd.DataFrame  # `recall.frequency_recall`
    effects: pd.DataFrame  # effects of its candidates on its validation set (`effects.causal_filter`)
    ranked: pd.DataFrame  # `intervention.rank_features`, best first
    ranked_by: str = "score"  # or "loglik"


def source_run(run: Run, task: str, source: str) -> Run:
    """The run that a source's samples come from: `run` itself where the source changes nothing."""
    changes = run.config(task).stability.sources[source]
    return SourceRun(run, task, source) if changes else run


def identify(run: Run, task: str, source: str) -> Source:
    """Recall and causal filter on one source, stored under <task>/stability/<source>/.

    Those of the task's own identification are stored with the task, in its own sizes; nothing is made where notebooks
    01 and 02 made them.
    """
    from igds_utils.identification import effects, recall

    own, settings = source_run(run, task, source), run.preset
    recalled = recall.measure(own, task)
    if not (features := recall.candidates(recalled)):
        share = f"{settings.recall.tau:.0%} of the prompts"
        raise ValueError(f"{task}, source {source}: no feature fires on {share}; lower recall.tau")
    return Source(recalled, *effects.causal_filter(own, task, features), settings.intervention.rank_by)


# ---- how far sources agree -------------------------------------------------------------------------------


def agreement(sources: dict[str, Source], top: int) -> list[dict[str, Any]]:
    """One record per pair of sources, and one of all: what their candidates and their `top` best have in common.

    A record holds sources (names), candidates_jaccard (all that were recalled), top_shared (names), top_jaccard,
    same_top1, and what would be expected if each drew its best blindly from what it tested: shared_by_chance (how many
    of the `top` all have), shared_p (how often at least as many as here), same_top1_by_chance (how often) and
    top_by_chance (Jaccard index of a pair; None for all).
    """
    records, everything = [], [tuple(sources)] * (len(sources) > 2)
    for group in [*combinations(sources, 2), *everything]:
        found = [sources[name] for name in group]
        recalled = [[f.name for f in features_of(source.recalled.query("candidate"))] for source in found]
        tested = [list(source.ranked["name"]) for source in found]
        best = [names[:top] for names in tested]
        shared, chance = set.intersection(*map(set, best)), chance_shared(tested, top)
        records.append(
            {
                "sources": list(group),
                "candidates_jaccard": jaccard(*recalled),
                "top_shared": [name for name in best[0] if name in shared],
                "top_jaccard": jaccard(*best),
                "top_by_chance": chance_jaccard(*map(set, tested), top) if len(group) == 2 else None,
                "same_top1": len({ranking[0] for ranking in best}) == 1,
                "shared_by_chance": float(chance @ np.arange(chance.size)),
                "shared_p": float(chance[len(shared) :].sum()),
                "same_top1_by_chance": float(chance_shared(tested, 1)[1:].sum()),
            }
        )
    return records


def jaccard(*sets: Sequence[str]) -> float:
    """Size of the intersection over size of the union; two empty sets are equal (1)."""
    union = set.union(*map(set, sets))
    return len(set.intersection(*map(set, sets))) / len(union) if union else 1.0


def chance_shared(tested: Sequence[Collection[str]], top: int) -> np.ndarray:
    """Probability that 0, 1, ..., n names are in every draw, where `top` are drawn blindly from each set: (n + 1,).

    tested: the sets, which have n names in common.
    """
    sizes = np.arange(len(set.intersection(*map(set, tested))) + 1)
    found = (sizes == sizes[-1]).astype(float)
    for names in tested:  # of k names, how many are drawn again
        found = found @ hypergeom.pmf(sizes, len(names), sizes[:, None], min(top, len(names)))
    return found


def chance_jaccard(a: set[str], b: set[str], top: int) -> float:
    """Expected Jaccard index where `top` names are drawn blindly from a and, independently, from b."""
    chance = chance_shared([a, b], top)
    both = np.arange(chance.size)
    return float(chance @ (both / np.maximum(min(top, len(a)) + min(top, len(b)) - both, 1)))


def beyond_chance(rankings: Sequence[Sequence[str]], top: int, level: float = 0.05) -> set[str]:
    """Names among the `top` best of every ranking; none where blind draws would share as many at least that often."""
    shared = set.intersection(*(set(names[:top]) for names in rankings))
    return shared if chance_shared(rankings, top)[len(shared) :].sum() < level else set()


def bootstrap_tops(
    effects: pd.DataFrame, recalled: pd.DataFrame, resamples: int = 2000, seed: int = 0, by: str = "score"
) -> np.ndarray:
    """The top feature of each of `resamples` bootstrap samples of the validation samples: names, (resamples,).

    by: what the features are ranked by, "score" or "loglik"; ties are broken as in `rank_features`.
    """
    keys, lowest = ["layer", "feature"], np.finfo(float).min
    tested = effects[keys].drop_duplicates().merge(recalled[[*keys, "frequency"]], on=keys)
    tested = tested.sort_values(["frequency", *keys], ascending=[False, True, True])
    order = pd.MultiIndex.from_frame(tested[keys])
    n, means = effects["sample_id"].nunique(), []
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)  # (B, n)
    for quantity in sorted(["score", "loglik"], key=lambda name: name != by):
        changes = effects.assign(change=effects[f"{quantity}_amplified"] - effects[f"{quantity}_original"])
        wide = changes.pivot(index=keys, columns="sample_id", values="change").loc[order]
        # a feature of which the score was not measured comes last by it
        means.append(np.nan_to_num(counts @ wide.to_numpy(float).T / n, nan=lowest))  # (B, C)
    best = means[0] >= means[0].max(axis=1, keepdims=True) - 1e-12
    winners = np.where(best, means[1], -np.inf).argmax(axis=1)
    return np.array([feature.name for feature in features_of(tested)])[winners]


def top1_agreement(sources: dict[str, Source], resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """How often the top feature survives another draw of the validation samples, from stored effects.

    One record per source: source, top, kept (share of bootstrap samples with the same top feature), rival (the most
    frequent other one, or None) and rival_share; then one of source "all": agree (share of draws, independent
    for each source, in which all sources have the same top feature). Candidates are held fixed.
    """
    tops, records = [], []
    for number, (name, source) in enumerate(sources.items()):
        found = bootstrap_tops(source.effects, source.recalled, resamples, seed + number, source.ranked_by)
        tops.append(found)
        best, drawn = source.ranked["name"].iloc[0], pd.Series(found)
        others = drawn[drawn != best].value_counts()
        rival, times = (None, 0) if others.empty else (str(others.index[0]), int(others.iloc[0]))
        kept, rivals = float((drawn == best).mean()), {"rival": rival, "rival_share": times / resamples}
        records.append({"source": name, "top": best, "kept": kept, **rivals})
    agree = (np.stack(tops) == tops[0]).all(axis=0)  # (B,)
    return [*records, {"source": "all", "agree": float(agree.mean())}]


def on_layers(ranked: pd.DataFrame, layers: Collection[int]) -> pd.DataFrame:
    """Tested candidates that would be left if only `layers` had SAEs, best first; `ranked` is `Source.ranked`.

    The paper suspects that SAEs on few layers cost IGDS part of its gain. The best of fewer candidates has a smaller
    delta by luck alone, so compare effects on samples that did not choose it.
    """
    return ranked[ranked["layer"].isin(layers)].reset_index(drop=True)
