"""What selectors may know of a pool: its texts, examples of the target task, and measurements made once and shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PoolSample:
    """All that a selector may know of a pool sample; the labels that analyses use are not part of it."""

    id: str
    target: str
    instruction: str = ""  # what its prompt says of this sample and of no other, without any template

    @property
    def document(self) -> str:
        """The sample as text selectors read it: instruction and target, without the template that all samples share."""
        return f"{self.instruction}\n{self.target}"


class Context:
    """The pool, and what is measured on it: each measurement is made when a selector first asks, and then shared.

    pool: a list, or a sequence that reads its samples when they are asked for, with their `ids` beside it.
    examples: samples of the target task (D_prior), for selectors that look for what resembles them.
    about: what is known of a measurement beside its values (the layer it was read at, a header), by its name.
    sources: one function for each measurement that can be made, called at most once. Its result is an array or a
    sparse matrix whose rows are those of `pool`, or of `examples` where its name begins with `example_`.
    Raises `ValueError` for an empty pool and if two pool samples have one id.
    """

    def __init__(
        self,
        pool: Sequence[PoolSample],
        seed: int = 0,
        examples: Sequence[PoolSample] = (),
        about: Callable[[str], dict[str, Any]] = lambda need: {},
        ids: Sequence[str] = (),
        **sources: Callable[[], Any],
    ):
        self.pool, self.seed, self.examples, self.about = pool, seed, list(examples), about
        self.ids = ids or [sample.id for sample in pool]
        if not self.ids:
            raise ValueError("the pool is empty: nothing can be selected from it")
        if len(set(self.ids)) < len(self.ids):
            doubled = next(i for i in self.ids if self.ids.count(i) > 1)
            raise ValueError(f"the pool holds sample {doubled!r} twice: every sample needs an id of its own")
        self._sources, self._made = sources, {}

    @property
    def id_order(self) -> np.ndarray:
        """Place of each sample in the order of the ids, (N,): procedures break ties by it."""
        place = np.empty(len(self.ids), dtype=int)
        place[sorted(range(len(self.ids)), key=self.ids.__getitem__)] = np.arange(len(self.ids))
        return place

    def offers(self, need: str) -> bool:
        """Whether a measurement can be made; "examples" stands for examples of the target task."""
        return bool(self.examples) if need == "examples" else need in self._sources

    def need(self, name: str) -> Any:
        """A measurement by name, made on the first call: array or CSR matrix, one row a sample."""
        if name not in self._made:
            made = self._sources[name]()
            made = made if hasattr(made, "tocsr") else np.asarray(made)
            of, what = (self.examples, "examples") if name.startswith("example_") else (self.pool, "samples")
            if made.shape[0] != len(of):
                where = "a pool" if of is self.pool else "a set"
                raise ValueError(f"{name} has {made.shape[0]} rows for {where} of {len(of)} {what}")
            self._made[name] = made
        return self._made[name]
