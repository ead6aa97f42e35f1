"""Selectors by name. A new one is a file with a class that `register` decorates, and a line here."""

from igds_utils.selectors import (  # noqa: F401  (importing registers)
    bm25,
    coverage,
    embedding,
    ifd,
    igds,
    instag,
    length,
    less,
    loss,
    mona,
    random,
    rds,
    zip,
)
from igds_utils.selectors.base import (
    Choice,
    Procedure,
    Selector,
    UnusableScores,
    get,
    names,
    rank,
    rank_pool,
    register,
    select,
)
from igds_utils.selectors.context import Context, PoolSample

__all__ = [
    "Choice",
    "Context",
    "PoolSample",
    "Procedure",
    "Selector",
    "UnusableScores",
    "get",
    "names",
    "rank",
    "rank_pool",
    "register",
    "select",
]
