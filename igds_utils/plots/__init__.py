"""Figures from stored results; every function returns a matplotlib Figure, which `save_figure` writes."""

from igds_utils.plots.features import (
    causal_effects,
    dose_response,
    effect_agreement,
    feature_map,
    feature_topology,
    placebo_effects,
    recall_frequency,
    recognition,
    rising_words,
)
from igds_utils.plots.results import (
    activation_distributions,
    ladder,
    main_result,
    monitor,
    precision_dots,
    score_against_ratio,
    score_distributions,
    training_loss,
)
from igds_utils.plots.style import SELECTOR_COLOURS, save_figure, selector_colour

__all__ = [
    "SELECTOR_COLOURS", "activation_distributions", "causal_effects", "dose_response", "effect_agreement",
    "feature_map", "feature_topology", "ladder", "main_result", "monitor", "placebo_effects", "precision_dots",
    "recall_frequency", "recognition", "rising_words", "save_figure", "score_against_ratio", "score_distributions",
    "selector_colour", "training_loss",
]  # fmt: skip
