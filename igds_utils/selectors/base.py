"""What a selector is, what it may know of the pool, and how its scores become a ranking and a selection.

A selector is a class in a file of its own, registered by name:

    @register("shortest")
    class Shortest(Selector):
        direction = "lowest"

        def score(self, context):
            return np.array([len(sample.target) for sample in context.pool])
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd

from igds_utils.arms import selection_size

Direction = Literal["highest", "lowest"]


@dataclass(frozen=True)
class PoolSample:
    """All that a selector may know of a pool sample; the labels that analyses use are not part of it."""

    id: str
    prompt: str  # in the rendering in which features are identified
    target: str


class Context:
    """The pool, and what is measured on it: each measurement is made when a selector first asks, and then shared.

    sources: one function for each measurement that can be made, called at most once. `target_loss` gives (N,),
    `task_feature_activations` (N, k), both in the order of `pool`. feature_norms: ||d_i|| (k,) where FRS counts
    features in residual units. Raises `ValueError` if two pool samples have one id.
    """

    def __init__(
        self,
        pool: Sequence[PoolSample],
        seed: int = 0,
        feature_norms: np.ndarray | None = None,
        **sources: Callable[[], np.ndarray],
    ):
        self.pool, self.seed, self.feature_norms = list(pool), seed, feature_norms
        self.ids = [sample.id for sample in self.pool]
        if len(set(self.ids)) < len(self.ids):
            doubled = next(i for i in self.ids if self.ids.count(i) > 1)
            raise ValueError(f"the pool holds sample {doubled!r} twice: every sample needs an id of its own")
        self._sources, self._made = sources, {}

    def offers(self, need: str) -> bool:
        return need in self._sources

    def target_loss(self) -> np.ndarray:
        """Mean cross-entropy of each target given its prompt, under the model to be trained: (N,)."""
        return self._once("target_loss")

    def task_feature_activations(self) -> np.ndarray:
        """a_i(x, p) of the task features, under the identification model: (N, k)."""
        return self._once("task_feature_activations")

    def _once(self, need: str) -> np.ndarray:
        if need not in self._made:
            made = np.asarray(self._sources[need]())
            if len(made) != len(self.pool):
                raise ValueError(f"{need} has {len(made)} rows for a pool of {len(self.pool)} samples")
            self._made[need] = made
        return self._made[need]


class Selector(ABC):
    """A rule that gives every pool sample a score; training takes the samples at one end of it."""

    name: ClassVar[str]  # set by `register`
    needs: ClassVar[tuple[str, ...]] = ()  # measurements of the context that `score` asks for
    direction: ClassVar[Direction]  # which scores are taken first
    seeded: ClassVar[bool] = False  # whether the scores depend on the context's seed

    @abstractmethod
    def score(self, context: Context) -> np.ndarray:
        """One score a sample, (N,), in the order of `context.pool`."""


_REGISTRY: dict[str, Selector] = {}


def register(name: str) -> Callable[[type[Selector]], type[Selector]]:
    """Class decorator: make a selector known under a name. Raises `ValueError` if the name is taken."""

    def add(made: type[Selector]) -> type[Selector]:
        if name in _REGISTRY:
            raise ValueError(f"selector {name!r} is registered twice: choose another name")
        made.name = name
        _REGISTRY[name] = made()
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


def rank_pool(name: str, context: Context) -> pd.DataFrame:
    """The ranking (sample_id, score, rank) of the context's pool by one selector."""
    selector = get(name)
    if missing := [need for need in selector.needs if not context.offers(need)]:
        raise ValueError(f"selector {name!r} needs {', '.join(missing)}, which the context does not offer")
    return rank(selector.score(context), context.ids, selector.direction)


def rank(scores: np.ndarray, ids: Sequence[str], direction: Direction) -> pd.DataFrame:
    """Ranking (sample_id, score, rank), rank 1 first; equal scores are ordered by sample id.

    direction: whether the "highest" or the "lowest" score comes first.
    Raises `ValueError` for a number of scores other than N and for a score that is not a number.
    """
    table = pd.DataFrame({"sample_id": list(ids)})
    scores = np.asarray(scores, dtype=float)
    if scores.shape != (len(table),):
        raise ValueError(f"scores have shape {scores.shape}, the pool has {len(table)} samples")
    table["score"] = scores
    if bad := table.loc[table["score"].isna(), "sample_id"].tolist():
        shown = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise ValueError(
            f"{len(bad)} samples have no score (NaN): {shown}; repair or remove them from the pool"
        )
    table = table.sort_values(
        ["score", "sample_id"], ascending=[direction == "lowest", True], ignore_index=True
    )
    table["rank"] = np.arange(1, len(table) + 1)
    return table


def select(ranking: pd.DataFrame, ratio: float) -> list[str]:
    """Ids of the first `selection_size(ratio, N)` samples of a ranking, best first."""
    size = selection_size(ratio, len(ranking))
    return ranking.sort_values("rank")["sample_id"].head(size).tolist()
