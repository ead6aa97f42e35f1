"""Selectors by name: functions that `register` decorates, of modules imported here."""

from igds_utils.selectors import diversity, scores, similarity  # noqa: F401
from igds_utils.selectors.base import (  # noqa: F401
    Choice,
    get,
    names,
    rank,
    rank_pool,
    register,
    select,
)
