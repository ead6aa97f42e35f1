"""Selectors by name. A new one is a function that `register` decorates; its module is imported here."""

from igds_utils.selectors import baselines, diversity, igds, similarity  # noqa: F401  (importing registers)
from igds_utils.selectors.base import (
    Choice,
    Selector,
    UnusableScores,
    get,
    names,
    rank,
    rank_pool,
    register,
    select,
)

__all__ = [
    "Choice",
    "Selector",
    "UnusableScores",
    "get",
    "names",
    "rank",
    "rank_pool",
    "register",
    "select",
]
