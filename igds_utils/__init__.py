"""IGDS, interpretability-guided data selection (arXiv 2604.25167), reproduced with open tools.

The notebooks are the chapters; this package keeps the code that they share. What a user needs first
can be imported from here, and is loaded then: `open_run`, `Example`, `select`, `explain`.
"""

import warnings
from importlib import import_module
from typing import Any

# Libraries probe for Jupyter's bar widgets when imported in a notebook; our bars are plain text.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.2.0"
_PLACES = {
    "open_run": "igds_utils.core.experiment",
    "Example": "igds_utils.tasks.examples",
    "select": "igds_utils.selection.tool",
    "explain": "igds_utils.selection.tool",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
