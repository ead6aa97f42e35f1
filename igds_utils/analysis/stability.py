"""Stability: does other data of a task lead to the same features (Table 5)?

Each source is a run of its own through recall and causal filter: own prior set, candidates and
validation set. What is compared afterwards comes from the stored effects alone.
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

QUANTITIES = ("score", "loglik")


class Source(NamedTuple):
    """What one source's identification found."""

    recalled: pd.DataFrame  # `recall.frequency_recall`
    effects: pd.DataFrame  # of its candidates on its validation set (`effects.causal_filter`)
    ranked: pd.DataFrame  # `intervention.rank_features`, best first
    ranked_by: str = "score"  # or "loglik"


def source_run(run: Run, task: str, source: str) -> Run:
    """The run that a source's samples come from: `run` itself where the source changes nothing.

    It has the sets prior and validation alone, in the sizes of the task's `stability`. They may
    share samples with the task's other sets: nothing is trained on them.
    """
    config, chosen = run.config(task), run.config(task).stability
    if not chosen.sources[source]:
        return run
    shown = {"prior": chosen.prior, "validation": chosen.validation}
    changes = {"data": config.data | chosen.sources[source]}
    changes["sizes"] = Sizes(**shown, confirmation=0, pool=0, test=0)
    changes["max_new_tokens"] = chosen.max_new_tokens
    tasks = run.preset.tasks | {task: config.model_copy(update=changes)}
    own = Run(run.preset.model_copy(update={"tasks": tasks}), run.root, run.part)
    own._models = run._models  # the same model and SAEs
    vars(own).update(saes=run.saes, tokenizer=run.tokenizer, sae_version=run.sae_version)
    own.folder = lambda of: f"{of}/stability/{source}" if of == task else of
    return own


def identify(run: Run, task: str, source: str) -> Source:
    """Recall and causal filter on one source, stored under <task>/stability/<source>/.

    The task's own identification is stored with the task, in its own sizes.
    """
    from igds_utils.identification import effects, recall

    own = source_run(run, task, source)
    recalled = recall.measure(own, task)
    filtered = effects.causal_filter(own, task, recall.candidates(recalled))
    return Source(recalled, *filtered, run.preset.intervention.rank_by)


def agreement(sources: dict[str, Source], top: int) -> list[dict[str, Any]]:
    """One record per pair of sources, and one of all: what their `top` best have in common.

    A record holds sources (names), candidates_jaccard (all that were recalled), top_shared
    (names), top_jaccard, same_top1, and what blind draws from what each tested give:
    shared_by_chance (mean), shared_p (as many or more) and same_top1_by_chance.
    """
    records, everything = [], [tuple(sources)] * (len(sources) > 2)
    for group in [*combinations(sources, 2), *everything]:
        found = [sources[name] for name in group]
        recalled = [features_of(source.recalled.query("candidate")) for source in found]
        tested = [list(source.ranked["name"]) for source in found]
        best = [names[:top] for names in tested]
        shared, chance = set.intersection(*map(set, best)), chance_shared(tested, top)
        records.append({
            "sources": list(group),
            "candidates_jaccard": jaccard(*recalled),
            "top_shared": [name for name in best[0] if name in shared],
            "top_jaccard": jaccard(*best),
            "same_top1": len({ranking[0] for ranking in best}) == 1,
            "shared_by_chance": float(chance @ np.arange(chance.size)),
            "shared_p": float(chance[len(shared) :].sum()),
            "same_top1_by_chance": float(chance_shared(tested, 1)[1:].sum()),
        })
    return records


def jaccard(*sets: Collection) -> float:
    """Size of the intersection over size of the union; empty sets are equal (1)."""
    union = set.union(*map(set, sets))
    return len(set.intersection(*map(set, sets))) / len(union) if union else 1.0


def chance_shared(tested: Sequence[Collection[str]], top: int) -> np.ndarray:
    """Probability that 0, 1, ..., n names are in every blind draw of `top` from each set.

    tested: the sets, which have n names in common; (n + 1,).
    """
    sizes = np.arange(len(set.intersection(*map(set, tested))) + 1)
    found = (sizes == sizes[-1]).astype(float)
    for names in tested:  # of k names, how many are drawn again
        drawn = min(top, len(names))
        found = found @ hypergeom.pmf(sizes, len(names), sizes[:, None], drawn)
    return found


def beyond_chance(rankings: Sequence[Sequence[str]], top: int, level: float = 0.05) -> set[str]:
    """Names among the `top` best of every ranking; none where chance shares as many."""
    shared = set.intersection(*(set(names[:top]) for names in rankings))
    return shared if chance_shared(rankings, top)[len(shared) :].sum() < level else set()


def top1_agreement(
    sources: dict[str, Source], resamples: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """How often each source's top feature survives another draw of its validation samples.

    A record holds source, top, and kept: the share of bootstrap samples in which it is the best
    of the same candidates. Ties are broken by the other quantity, as in `rank_features`.
    """
    records, keys = [], ["layer", "feature"]
    for number, (name, source) in enumerate(sources.items()):
        ranked, rows = source.ranked, source.effects
        changes = {of: rows[f"{of}_amplified"] - rows[f"{of}_original"] for of in QUANTITIES}
        rows = rows.assign(change=changes.pop(source.ranked_by))
        rows["change"] += 1e-6 * changes.popitem()[1].fillna(0.0)
        wide = rows.pivot(index=keys, columns="sample_id", values="change")
        x = wide.loc[pd.MultiIndex.from_frame(ranked[keys])].dropna().to_numpy()  # (C, n)
        draw, even = np.random.default_rng(seed + number), np.full(x.shape[1], 1 / x.shape[1])
        counts = draw.multinomial(x.shape[1], even, size=resamples)  # (B, n)
        kept = ((counts @ x.T).round(12).argmax(axis=1) == 0).mean()
        records.append({"source": name, "top": ranked["name"].iloc[0], "kept": float(kept)})
    return records
