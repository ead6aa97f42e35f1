"""Figures from stored results; every function returns a matplotlib Figure."""
# ruff: noqa: F401, F403

from igds_utils.plots.figures import *
from igds_utils.plots.style import save_figure
