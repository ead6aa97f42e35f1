"""What a selector is, and how it becomes a ranking and a selection.

A selector is a function of a pool (`selection.pool.Pool`) that gives every sample a score, registered by name:

    @register("shortest", "lowest")
    def shortest(pool):
        return np.array([len(sample.target) for sample in pool.samples])

It names the measurements that it asks of the pool and gets their values as further arguments. A function with an
argument `size` chooses samples one after the other instead, and returns a `Choice`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from igds_utils.core.arms import selection_size

if TYPE_CHECKING:
    from igds_utils.selection.pool import Pool
    from igds_utils.tasks.examples import Example

Direction = Literal["highest", "lowest"]


class UnusableScores(ValueError):
    """Scores that are not numbers; `ids` are the samples that have them."""

    def __init__(self, ids: list[str]):
        self.ids, shown = ids, ", ".join(ids[:3]) + ", ..." * (len(ids) > 3)
        super().__init__(f"{len(ids)} samples have no score (NaN): {shown}; repair or remove them from the pool")


@dataclass(frozen=True)
class Selector:
    """A rule that ranks a pool; training takes the samples at one end of its scores."""

    name: str
    function: Callable[..., Any]
    direction: Direction  # which scores are taken first
    measurements: tuple[str, ...]  # of `Pool`; `examples.` stands before those of the target examples
    parameters: dict[str, Any]  # stored beside the scores
    chooses: bool  # whether the function takes a size and returns a `Choice`
    seeded: bool  # whether the result depends on the pool's seed


@dataclass(frozen=True)
class Choice:
    """Samples in the order in which they were taken; ties fall to the smaller sample id."""

    order: np.ndarray  # (chosen,) distinct indices of the pool, at most the size asked for
    scores: np.ndarray  # (N,) shown beside the ranking, and the order in which samples beyond `order` follow
    facts: dict[str, Any] = field(default_factory=dict)  # counts: dropped, unique, covers, ...
    filled: int = 0  # how many at the end of `order` the rule had left out and only fill the budget


_REGISTRY: dict[str, Selector] = {}


def register(
    name: str, direction: Direction, *measurements: str, seeded: bool = False, **changed: Any
) -> Callable[[Callable], Callable]:
    """Decorator: make a function known as a selector.

    measurements: those of the pool whose values the function gets after the pool (and the size).
    changed: parameters other than the defaults in the function's signature.
    Raises `ValueError` if the name is taken.
    """

    def add(function: Callable) -> Callable:
        arguments = inspect.signature(function).parameters
        defaults = {n: a.default for n, a in arguments.items() if a.default is not inspect.Parameter.empty}
        if name in _REGISTRY:
            raise ValueError(f"selector {name!r} is registered twice: choose another name")
        chooses, parameters = "size" in arguments, defaults | changed
        _REGISTRY[name] = Selector(name, function, direction, measurements, parameters, chooses, seeded)
        return function

    return add


def names() -> list[str]:
    """Names of all selectors."""
    return sorted(_REGISTRY)


def get(name: str) -> Selector:
    """The selector of that name; raises `ValueError` with the known names."""
    if name not in _REGISTRY:
        raise ValueError(f"no selector {name!r}; known: {', '.join(names())}")
    return _REGISTRY[name]


def rank_pool(name: str, pool: Pool, size: int | None = None) -> pd.DataFrame:
    """The ranking of a pool by one selector: sample_id, score, rank, filled.

    size: the budget, for selectors that choose; without it they order the whole pool. `filled` marks the samples
    within the budget that the selector's own rule had left out: nothing else was there to take. `attrs["selector"]`
    holds what made the ranking: name, parameters, direction, seed, size, facts, and what is known of each measurement.
    Raises `ValueError` for an unknown selector or size, and `UnusableScores`.
    """
    selector, n = get(name), len(pool.ids)
    size = n if size is None else size
    if not 1 <= size <= n:
        raise ValueError(f"{size} samples cannot be selected from a pool of {n}")
    measured = [attrgetter(one)(pool) for one in selector.measurements]
    found = selector.function(pool, *[size] * selector.chooses, *measured, **selector.parameters)
    if not selector.chooses:
        found = Choice(np.array([], dtype=int), found)
    order = np.asarray(found.order, dtype=int)
    if (distinct := len(np.unique(order))) < len(order) or len(order) > size:
        raise ValueError(
            f"selector {name!r} chose {len(order)} samples, {distinct} of them distinct, for a budget of {size}: "
            "it must choose each sample once and no more than the budget"
        )
    ranking, facts = rank(found.scores, pool.ids, selector.direction), dict(found.facts)
    ranking["filled"] = False
    if selector.chooses:  # what was chosen comes first, in its order
        place = pd.Series(range(len(order)), [pool.ids[i] for i in order])
        behind = ranking["sample_id"].map(place).fillna(n)
        ranking = ranking.iloc[np.argsort(behind, kind="stable")].reset_index(drop=True)
        ranking["rank"] = np.arange(1, n + 1)
        by_rule = len(order) - found.filled
        ranking["filled"] = ranking["rank"].between(by_rule + 1, size)
        facts |= {"chosen": by_rule, "filled": size - by_rule}
    facts["distinct_scores"] = int(ranking["score"].nunique())  # one: sample ids alone decide
    ranking.attrs["selector"] = {
        "name": name,
        "parameters": selector.parameters,
        "direction": selector.direction,
        "seed": pool.seed if selector.seeded else None,
        "size": size,
        "facts": facts,
        "measured": {one: about for one in selector.measurements if (about := pool.measured(one).about)},
    }
    return ranking


def rank(scores: np.ndarray, ids: Sequence[str], direction: Direction) -> pd.DataFrame:
    """Ranking (sample_id, score, rank), rank 1 first; equal scores are ordered by sample id.

    direction: whether the "highest" or the "lowest" score comes first.
    Raises `ValueError` for a number of scores other than N, `UnusableScores` for a score that is not a number.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.shape != (len(ids),):
        raise ValueError(f"scores have shape {scores.shape}, the pool has {len(ids)} samples")
    table = pd.DataFrame({"sample_id": list(ids), "score": scores})
    if bad := table.loc[table["score"].isna(), "sample_id"].tolist():
        raise UnusableScores(bad)
    ascending = [direction == "lowest", True]
    table = table.sort_values(["score", "sample_id"], ascending=ascending, ignore_index=True)
    return table.assign(rank=np.arange(1, len(table) + 1))


def select(ranking: pd.DataFrame, ratio: float) -> list[str]:
    """Ids of the first `selection_size(ratio, N)` samples of a ranking, best first."""
    return ranking.nsmallest(selection_size(ratio, len(ranking)), "rank")["sample_id"].tolist()


def id_order(pool: Pool) -> np.ndarray:
    """Place of each sample in the order of the ids, (N,): selectors break ties by it."""
    return np.argsort(np.argsort(np.asarray(pool.ids, dtype=object), kind="stable"))


def document(sample: Example) -> str:
    """A sample as text selectors read it: instruction and target, without the template that all samples share."""
    return f"{sample.text}\n{sample.target}"
