"""What a selector is, and how it becomes a ranking and a selection.

A selector is a function of a pool (`selection.pool`) that gives every sample a score:

    @register("shortest", "lowest")
    def shortest(pool):
        return np.array([len(sample.target) for sample in pool.samples])

Measurements that it names are its further arguments. A function with an argument `size`
chooses samples one by one instead, and returns a `Choice`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from igds_utils.config.config import ConfigError
from igds_utils.core.arms import selection_size
from igds_utils.tasks.examples import Example

_REGISTRY = {}  # name -> Selector


class Selector(NamedTuple):
    """A rule that ranks a pool."""

    function: Callable
    direction: str  # the "highest" or the "lowest" scores are taken first
    measurements: tuple[str, ...]  # of a pool; examples.<name>: of the target examples
    parameters: dict  # stored beside the scores
    chooses: bool  # whether the function takes a size and returns a `Choice`
    seeded: bool  # whether the result depends on the pool's seed


class Choice(NamedTuple):
    """Samples in the order in which they were taken."""

    order: np.ndarray  # (chosen,) distinct indices, at most `size`
    scores: np.ndarray  # (N,), by which the others follow
    facts: dict = {}  # counts of what was dropped
    filled: int = 0  # how many at the end of `order` only fill the budget


def register(name: str, direction: str, *measurements: str, seeded=False, **changed):
    """Decorator: a selector that gets these measurements; changed: other than its defaults."""

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
    """The selector of that name; raises `ConfigError` with the known names."""
    if name not in _REGISTRY:
        raise ConfigError(f"no selector {name!r}; known: {', '.join(names())}")
    return _REGISTRY[name]


def rank_pool(name: str, pool, size: int | None = None) -> pd.DataFrame:
    """The ranking of a pool by one selector: sample_id, score, rank, filled.

    size: the budget, by default all. `filled` marks what the rule left out and the budget
    takes. `attrs["selector"]` holds what made the ranking.
    """
    selector, size = get(name), size or len(pool.ids)
    measured = {one: pool.measured(one) for one in selector.measurements}
    given = [pool, *[size] * selector.chooses, *(one.values for one in measured.values())]
    found = selector.function(*given, **selector.parameters)
    order, scores = found[:2] if selector.chooses else ([], found)
    ranking = rank(scores, pool.ids, selector.direction, order)
    filled = size - len(order) + found.filled if selector.chooses else 0
    ranking["filled"] = ranking["rank"].between(size - filled + 1, size)
    ranking.attrs["selector"] = {
        "name": name,
        "parameters": selector.parameters,
        "direction": selector.direction,
        "seed": pool.seed if selector.seeded else None,
        "facts": found.facts | {"filled": filled} if selector.chooses else {},
        "measured": {one: known.about for one, known in measured.items()},
    }
    return ranking


def rank(scores: np.ndarray, ids: Sequence[str], direction: str, order=()) -> pd.DataFrame:
    """Ranking (sample_id, score, rank) of scores (N,), ties by sample id.

    order: indices that come first. Raises `ValueError` for a score of NaN.
    """
    place = np.full(len(ids), len(ids))
    place[np.asarray(order, dtype=int)] = range(len(order))
    table = pd.DataFrame({"place": place, "score": np.asarray(scores, float), "sample_id": ids})
    if bad := table.loc[table["score"].isna(), "sample_id"].tolist():
        said = f"{len(bad)} samples have no score (NaN): {', '.join(bad[:3])}"
        raise ValueError(f"{said}; mend or remove them, or mend the model")
    ascending = [True, direction == "lowest", True]
    table = table.sort_values(list(table), ascending=ascending, ignore_index=True)
    return table[["sample_id", "score"]].assign(rank=np.arange(1, len(table) + 1))


def select(ranking: pd.DataFrame, ratio: float) -> list[str]:
    """Ids of the first `selection_size(ratio, N)` samples of a ranking, best first."""
    size = selection_size(ratio, len(ranking))
    return ranking.nsmallest(size, "rank")["sample_id"].tolist()


def id_order(pool) -> np.ndarray:
    """Place of each sample in the order of the ids, (N,), by which ties are broken."""
    return np.argsort(np.argsort(np.asarray(pool.ids, dtype=object)))


def document(sample: Example) -> str:
    """Instruction and target, without the template."""
    return f"{sample.text}\n{sample.target}"
