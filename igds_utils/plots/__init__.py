"""Figures from stored results; every function returns a matplotlib Figure, which `save_figure` writes."""

from igds_utils.plots.diagrams import concept_loop, pipeline
from igds_utils.plots.results import (
    causal_effects,
    effect_agreement,
    main_result,
    recall_frequency,
    score_distribution,
    training_loss,
)
from igds_utils.plots.style import SELECTOR_COLOURS, save_figure, selector_colour, use_style

__all__ = [
    "SELECTOR_COLOURS", "causal_effects", "concept_loop", "effect_agreement", "main_result", "pipeline",
    "recall_frequency", "save_figure", "score_distribution", "selector_colour", "training_loss", "use_style",
]  # fmt: skip
