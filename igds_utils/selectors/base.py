"""What a selector is, and how it becomes a ranking and a selection.

A selector is a function of a pool (`selection.pool.Pool`) that gives every sample a score:

    @register("shortest", "lowest")
    def shortest(pool):
        return np.array([len(sample.target) for sample in pool.samples])

It gets the values of the measurements that it names as further arguments. A function with an
argument `size` chooses samples one by one instead, and returns a `Choice`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from igds_utils.core.arms import selection_size
from igds_utils.tasks.examples import Example


class Selector(NamedTuple):
    """A rule that ranks a pool; training takes the samples at one end of its scores."""

    function: Callable
    direction: str  # which scores are taken first, the "highest" or the "lowest"
    measurements: tuple[str, ...]  # of `Pool`; examples.<name>: of the target examples
    parameters: dict  # stored beside the scores
    chooses: bool  # whether the function takes a size and returns a `Choice`
    seeded: bool  # whether the result depends on the pool's seed


class Choice(NamedTuple):
    """Samples in the order in which they were taken."""

    order: np.ndarray  # (chosen,) distinct indices of the pool, at most `size`
    scores: np.ndarray  # (N,); samples beyond `order` follow by their score
    facts: dict = {}  # counts of what was dropped
    filled: int = 0  # how many at the end of `order` only fill the budget


_REGISTRY: dict[str, Selector] = {}


def register(name: str, direction: str, *measurements: str, seeded=False, **changed):
    """Decorator: make a function known as a selector.

    measurements: those whose values the function gets after the pool (and the size).
    changed: parameters other than the defaults in the function's signature.
    """

    def add(function: Callable) -> Callable:
        known = inspect.signature(function).parameters
        defaults = {n: a.default for n, a in known.items() if a.default is not a.empty}
        about = defaults | changed, "size" in known, seeded
        _REGISTRY[name] = Selector(function, direction, measurements, *about)
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


def rank_pool(name: str, pool, size: int | None = None) -> pd.DataFrame:
    """The ranking of a pool by one selector: sample_id, score, rank, filled.

    size: the budget, for selectors that choose; without it they order the whole pool.
    `filled` marks samples within the budget that the selector's own rule left out.
    `attrs["selector"]` holds what made the ranking. Raises `ValueError` for an unknown name.
    """
    selector, size, facts = get(name), size or len(pool.ids), {}
    measured = {one: pool.measured(one) for one in selector.measurements}
    given = [pool, *[size] * selector.chooses, *(one.values for one in measured.values())]
    found = selector.function(*given, **selector.parameters)
    scores = found.scores if selector.chooses else found
    ranking = rank(scores, pool.ids, selector.direction).assign(filled=False)
    if selector.chooses:  # what was chosen comes first, in its order
        place = {pool.ids[i]: number for number, i in enumerate(found.order)}
        behind = ranking["sample_id"].map(place).fillna(len(ranking))
        ranking = ranking.iloc[np.argsort(behind, kind="stable")].reset_index(drop=True)
        ranking["rank"] = np.arange(1, len(ranking) + 1)
        by_rule = len(found.order) - found.filled
        ranking["filled"] = ranking["rank"].between(by_rule + 1, size)
        facts = found.facts | {"filled": size - by_rule}
    about = {one: known.about for one, known in measured.items()}
    made = {"name": name, "parameters": selector.parameters, "direction": selector.direction}
    made |= {"seed": pool.seed if selector.seeded else None, "facts": facts, "measured": about}
    ranking.attrs["selector"] = made
    return ranking


def rank(scores: np.ndarray, ids: Sequence[str], direction: str) -> pd.DataFrame:
    """Ranking (sample_id, score, rank) of scores (N,), the first first, ties by sample id.

    Raises `ValueError` where a score is not a number.
    """
    table = pd.DataFrame({"sample_id": list(ids), "score": np.asarray(scores, dtype=float)})
    if bad := table.loc[table["score"].isna(), "sample_id"].tolist():
        said = f"{len(bad)} samples have no score (NaN): {', '.join(bad[:3])}"
        raise ValueError(f"{said}; repair or remove them")
    ascending = [direction == "lowest", True]
    table = table.sort_values(["score", "sample_id"], ascending=ascending, ignore_index=True)
    return table.assign(rank=np.arange(1, len(table) + 1))


def select(ranking: pd.DataFrame, ratio: float) -> list[str]:
    """Ids of the first `selection_size(ratio, N)` samples of a ranking, best first."""
    size = selection_size(ratio, len(ranking))
    return ranking.nsmallest(size, "rank")["sample_id"].tolist()


def id_order(pool) -> np.ndarray:
    """Place of each sample in the order of the ids, (N,): selectors break ties by it."""
    return np.argsort(np.argsort(np.asarray(pool.ids, dtype=object), kind="stable"))


def document(sample: Example) -> str:
    """Instruction and target, without the template."""
    return f"{sample.text}\n{sample.target}"
