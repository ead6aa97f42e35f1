"""Loss: samples whose target the model to be trained already finds likely."""

import numpy as np

from igds_utils.selectors.base import Context, Selector, register


@register("loss")
@register("loss_highest", direction="highest")
class Loss(Selector):
    """Mean cross-entropy of the target given the prompt, lowest first (the paper leaves the direction open)."""

    needs = ("target_loss",)
    direction = "lowest"

    def score(self, context: Context) -> np.ndarray:
        return context.need("target_loss")
