"""Figures from stored results; every function returns a matplotlib Figure, which `save_figure` writes."""
# ruff: noqa: F401, I001

from igds_utils.plots.features import causal_effects, dose_response, effect_agreement, feature_map, feature_topology
from igds_utils.plots.features import placebo_effects, recall_frequency, recognition, rising_words
from igds_utils.plots.results import activation_distributions, ladder, main_result, monitor, precision_dots
from igds_utils.plots.results import score_against_ratio, score_distributions, training_loss
from igds_utils.plots.style import save_figure, selector_colour
