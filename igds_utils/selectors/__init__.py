"""Selectors by name. A new one is a file with a class that `register` decorates, and a line here."""

from igds_utils.selectors import igds, loss, random  # noqa: F401  (importing registers)
from igds_utils.selectors.base import (
    Context,
    PoolSample,
    Selector,
    get,
    names,
    rank,
    rank_pool,
    register,
    select,
)

__all__ = ["Context", "PoolSample", "Selector", "get", "names", "rank", "rank_pool", "register", "select"]
