"""Longest response: what every selector that counts something should be compared with."""

import numpy as np

from igds_utils.selectors.base import Context, Selector, register


@register("longest")
class Longest(Selector):
    """Number of characters of the target, most first (Zhao et al. 2024, arXiv 2402.04833, counts tokens).

    Characters need no tokenizer, so the ranking is the same for every model; the two orders differ little.
    """

    direction = "highest"

    def score(self, context: Context) -> np.ndarray:
        return np.array([len(sample.target) for sample in context.pool], dtype=float)
