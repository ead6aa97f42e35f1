"""Figures from stored results; every function returns a matplotlib Figure, which `save_figure` writes."""

from igds_utils.plots.bench import bench_ratios
from igds_utils.plots.diagrams import concept_loop, pipeline
from igds_utils.plots.distributions import activation_against_score, activation_distributions
from igds_utils.plots.features import feature_map, feature_topology, rising_words
from igds_utils.plots.monitoring import monitor
from igds_utils.plots.results import (
    causal_effects,
    effect_agreement,
    main_result,
    recall_frequency,
    training_loss,
)
from igds_utils.plots.robustness import break_even, score_against_ratio
from igds_utils.plots.selection import (
    defects_heatmap,
    overlap_heatmap,
    precision_curve,
    precision_dots,
    score_distributions,
)
from igds_utils.plots.stability import rank_agreement
from igds_utils.plots.style import SELECTOR_COLOURS, save_figure, selector_colour, use_style

__all__ = [
    "SELECTOR_COLOURS",
    "activation_against_score",
    "activation_distributions",
    "bench_ratios",
    "break_even",
    "causal_effects",
    "concept_loop",
    "defects_heatmap",
    "effect_agreement",
    "feature_map",
    "feature_topology",
    "main_result",
    "monitor",
    "overlap_heatmap",
    "pipeline",
    "precision_curve",
    "precision_dots",
    "rank_agreement",
    "recall_frequency",
    "rising_words",
    "save_figure",
    "score_against_ratio",
    "score_distributions",
    "selector_colour",
    "training_loss",
    "use_style",
]
