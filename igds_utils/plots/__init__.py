"""Figures from stored results; every function returns a matplotlib Figure."""
# ruff: noqa: F401, I001

from igds_utils.plots.figures import activation_distributions, causal_effects, dose_response
from igds_utils.plots.figures import feature_map, feature_topology, ladder, main_result
from igds_utils.plots.figures import placebo_effects, precision_dots, recognition
from igds_utils.plots.figures import rising_words, score_against_ratio
from igds_utils.plots.style import save_figure
