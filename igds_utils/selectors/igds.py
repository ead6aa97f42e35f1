"""IGDS: samples whose prompt activates the task features most."""

import numpy as np

from igds_utils.scoring import feature_resonant_score
from igds_utils.selectors.base import Context, Selector, register


@register("igds")
class IGDS(Selector):
    """The Feature-Resonant Score, highest first. It cannot see the target."""

    needs = ("task_feature_activations",)
    direction = "highest"

    def score(self, context: Context) -> np.ndarray:
        return feature_resonant_score(context.task_feature_activations(), context.feature_norms)
