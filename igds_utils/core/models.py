"""The models of a run. One is in memory at a time: where features are read on one model and another one is trained, a
GPU that has room for one of them is enough.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from igds_utils.config.refs import Ref
from igds_utils.engine import shards

if TYPE_CHECKING:
    from igds_utils.core.fresh import Fresh
    from igds_utils.engine.lm import LM


class Models:
    """Loads models, each after it let go of the one before."""

    def __init__(self, dtype: str):
        self.dtype = dtype
        self._read: tuple[Ref, LM] | None = None
        self._fresh: Fresh | None = None

    def read(self, ref: Ref) -> LM:
        """A model that must be left as it is: the one in memory, if it is that."""
        if self._read is None or self._read[0] != ref:
            self._read = (ref, self.load(ref))
        return self._read[1]

    def lend(self, ref: Ref) -> LM:
        """A model to be trained, as it was published: the same object at every call, restored (`Fresh`).

        Each of several processes loads it for itself and once.
        """
        from igds_utils.core.fresh import Fresh

        if self._fresh is None:
            lm = self.load(ref)
            if shards.processes() > 1:  # sharded weights could not be put aside, and no process trains twice
                return lm
            self._fresh = Fresh(lm)
        return self._fresh.lend()

    def load(self, ref: Ref) -> LM:
        """A model for the caller to keep and to change."""
        from igds_utils.engine.loading import load_lm

        self.let_go()
        return load_lm(ref, self.dtype)

    def let_go(self) -> None:
        """Hold no model, and free what nobody else holds."""
        import torch

        self._read = self._fresh = None
        gc.collect()  # adapters and trainers leave models in reference cycles
        torch.cuda.empty_cache()  # what is free decides where the next model is put; nothing happens without a GPU
