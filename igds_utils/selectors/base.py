"""What a selector is, what it may know of the pool, and how it becomes a ranking and a selection.

A selector is a class in a file of its own, registered by name. Most give every sample a score:

    @register("shortest")
    class Shortest(Selector):
        direction = "lowest"

        def score(self, context):
            return np.array([len(sample.target) for sample in context.pool])

A `Procedure` chooses samples one after the other instead: what it takes next depends on what it has taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from igds_utils.core.arms import selection_size
from igds_utils.selectors.context import Context

Direction = Literal["highest", "lowest"]


class UnusableScores(ValueError):
    """Scores that are not numbers; `ids` are the samples that have them."""

    def __init__(self, ids: Sequence[str]):
        self.ids = list(ids)
        shown = ", ".join(self.ids[:3]) + (", ..." if len(self.ids) > 3 else "")
        super().__init__(
            f"{len(self.ids)} samples have no score (NaN): {shown}; repair or remove them from the pool"
        )


class Selector(ABC):
    """A rule that gives every pool sample a score; training takes the samples at one end of it.

    One class may be registered under several names, each with `parameters` of its own.
    """

    needs: ClassVar[tuple[str, ...]] = ()  # measurements of the context that it asks for; "examples" is one
    direction: ClassVar[Direction]  # which scores are taken first
    seeded: ClassVar[bool] = False  # whether the result depends on the context's seed
    parameters: ClassVar[dict[str, Any]] = {}  # defaults; all are stored beside the scores

    def __init__(
        self,
        name: str,
        direction: Direction | None = None,
        needs: tuple[str, ...] | None = None,
        seeded: bool | None = None,
        **changed: Any,
    ):
        if unknown := sorted(set(changed) - set(self.parameters)):
            raise ValueError(
                f"selector {name!r} has no parameter {unknown[0]!r}; known: {', '.join(self.parameters)}"
            )
        self.name, self.parameters = name, {**self.parameters, **changed}
        self.direction, self.needs = direction or self.direction, self.needs if needs is None else needs
        self.seeded = self.seeded if seeded is None else seeded

    @abstractmethod
    def score(self, context: Context) -> np.ndarray:
        """One score a sample, (N,), in the order of `context.pool`."""


@dataclass(frozen=True)
class Choice:
    """What a procedure chose: indices of distinct pool samples in the order taken, and what it has to say of it."""

    order: np.ndarray  # (chosen,) of the pool, at most the size asked for
    scores: np.ndarray  # (N,) shown beside the ranking, and the order in which samples beyond `order` follow
    facts: dict[str, Any] = field(default_factory=dict)  # counts: dropped, unique, covers, ...
    filled: int = 0  # how many at the end of `order` its own rule had left out and only fill the budget


class Procedure(Selector):
    """A selector whose result is an order of taking. Beyond it the samples follow by score, in its `direction`."""

    @abstractmethod
    def choose(self, context: Context, size: int) -> Choice:
        """At most `size` samples of the pool, 1 <= size <= N. Ties must fall to the smaller sample id."""

    def score(self, context: Context) -> np.ndarray:
        return self.choose(context, len(context.pool)).scores


_REGISTRY: dict[str, Selector] = {}


def register(name: str, **settings: Any) -> Callable[[type[Selector]], type[Selector]]:
    """Class decorator: make a selector known under a name. Raises `ValueError` if the name is taken.

    settings: parameters other than the class's own; `direction`, `needs`, `seeded` where a variant changes them.
    """

    def add(made: type[Selector]) -> type[Selector]:
        if name in _REGISTRY:
            raise ValueError(f"selector {name!r} is registered twice: choose another name")
        _REGISTRY[name] = made(name, **settings)
        return made

    return add


def names() -> list[str]:
    """Names of all selectors."""
    return sorted(_REGISTRY)


def get(name: str) -> Selector:
    """The selector of that name; raises `ValueError` with the known names."""
    if name not in _REGISTRY:
        raise ValueError(f"no selector {name!r}; known: {', '.join(names())}")
    return _REGISTRY[name]


def rank_pool(name: str, context: Context, size: int | None = None) -> pd.DataFrame:
    """The ranking of the context's pool by one selector: sample_id, score, rank, filled.

    size: the budget, for procedures; without it they order the whole pool. `filled` marks the samples within the
    budget that the selector's own rule had left out: nothing else was there to take. `attrs["selector"]` holds what
    made the ranking: name, parameters, direction, size, facts, and what is known of each measurement.
    Raises `ValueError` for an unknown selector, a need that the context does not offer, and unusable scores.
    """
    selector, n = get(name), len(context.pool)
    size = n if size is None else size
    if not 1 <= size <= n:
        raise ValueError(f"{size} samples cannot be selected from a pool of {n}")
    if missing := [need for need in selector.needs if not context.offers(need)]:
        raise ValueError(f"selector {name!r} needs {', '.join(missing)}, which the context does not offer")
    if isinstance(selector, Procedure):
        ranking, facts = _rank_choice(selector, selector.choose(context, size), context.ids, size)
    else:
        ranking, facts = rank(selector.score(context), context.ids, selector.direction), {}
        ranking["filled"] = False
    facts["distinct_scores"] = int(ranking["score"].nunique())  # one: sample ids alone decide
    ranking.attrs["selector"] = {
        "name": name,
        "parameters": selector.parameters,
        "direction": selector.direction,
        "seed": context.seed if selector.seeded else None,
        "size": size,
        "facts": facts,
        "measured": {need: context.about(need) for need in selector.needs if context.about(need)},
    }
    return ranking


def _rank_choice(
    selector: Selector, choice: Choice, ids: Sequence[str], size: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A choice first, in its order, then the other samples by score; and its facts with the shortfall counted."""
    order = np.asarray(choice.order, dtype=int)
    if len(set(order.tolist())) < len(order) or len(order) > size:
        raise ValueError(
            f"selector {selector.name!r} chose {len(order)} samples, {len(set(order.tolist()))} of them distinct, "
            f"for a budget of {size}: it must choose each sample once and no more than the budget"
        )
    ranking = rank(choice.scores, ids, selector.direction)
    place = {ids[i]: number for number, i in enumerate(order)}
    ranking["rank"] = [place.get(i, len(order) + row) for row, i in enumerate(ranking["sample_id"])]
    ranking = ranking.sort_values("rank", ignore_index=True)
    ranking["rank"] = np.arange(1, len(ranking) + 1)
    by_rule = len(order) - choice.filled
    ranking["filled"] = ranking["rank"].between(by_rule + 1, size)
    short = {"chosen": by_rule, "filled": size - by_rule}
    return ranking, choice.facts | short


def rank(scores: np.ndarray, ids: Sequence[str], direction: Direction) -> pd.DataFrame:
    """Ranking (sample_id, score, rank), rank 1 first; equal scores are ordered by sample id.

    direction: whether the "highest" or the "lowest" score comes first.
    Raises `ValueError` for a number of scores other than N, `UnusableScores` for a score that is not a number.
    """
    table = pd.DataFrame({"sample_id": list(ids)})
    scores = np.asarray(scores, dtype=float)
    if scores.shape != (len(table),):
        raise ValueError(f"scores have shape {scores.shape}, the pool has {len(table)} samples")
    table["score"] = scores
    if bad := table.loc[table["score"].isna(), "sample_id"].tolist():
        raise UnusableScores(bad)
    table = table.sort_values(
        ["score", "sample_id"], ascending=[direction == "lowest", True], ignore_index=True
    )
    table["rank"] = np.arange(1, len(table) + 1)
    return table


def select(ranking: pd.DataFrame, ratio: float) -> list[str]:
    """Ids of the first `selection_size(ratio, N)` samples of a ranking, best first."""
    size = selection_size(ratio, len(ranking))
    return ranking.sort_values("rank")["sample_id"].head(size).tolist()
