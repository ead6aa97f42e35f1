"""LESS-style influence: samples whose training step would lower the loss of the target examples."""

import numpy as np

from igds_utils.selectors.base import Context, Selector, register


@register("less")
class LESS(Selector):
    """Sum over warm-up checkpoints of the cosine between a sample's step and the mean target gradient, highest first.

    The checkpoints are weighted by their learning rates (shares of the sum). Both sides are projected gradients of
    LoRA weights (`needs.gradients`), the target examples' of length 1 each before their mean is taken.
    """

    needs = ("gradients", "example_gradients")
    direction = "highest"

    def score(self, context: Context) -> np.ndarray:
        wanted = context.need("example_gradients").mean(axis=0)  # (checkpoints, dimensions)
        wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
        return np.einsum("ncd,cd->n", context.need("gradients"), wanted)
