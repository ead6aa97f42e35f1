"""Figures from stored results; every function returns a matplotlib Figure, which `save_figure` writes."""

from igds_utils.plots.features import (
    causal_effects,
    dose_response,
    effect_agreement,
    feature_map,
    feature_topology,
    placebo_effects,
    rank_agreement,
    recall_frequency,
    rising_words,
)  # fmt: skip
from igds_utils.plots.results import (
    activation_against_score,
    activation_distributions,
    break_even,
    main_result,
    monitor,
    score_against_ratio,
    training_loss,
)  # fmt: skip
from igds_utils.plots.selection import (
    defects_heatmap,
    overlap_heatmap,
    precision_curve,
    precision_dots,
    score_distributions,
)  # fmt: skip
from igds_utils.plots.style import SELECTOR_COLOURS, save_figure, selector_colour

__all__ = [
    "SELECTOR_COLOURS", "activation_against_score", "activation_distributions", "break_even", "causal_effects",
    "defects_heatmap", "dose_response", "effect_agreement", "feature_map", "feature_topology", "main_result",
    "monitor", "overlap_heatmap", "placebo_effects", "precision_curve", "precision_dots", "rank_agreement",
    "recall_frequency", "rising_words", "save_figure", "score_against_ratio", "score_distributions",
    "selector_colour", "training_loss",
]  # fmt: skip
