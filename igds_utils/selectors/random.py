"""Random: the baseline that every selector has to beat."""

import numpy as np

from igds_utils.selectors.base import Context, Selector, register


@register("random")
class Random(Selector):
    """The place of a sample in a seeded permutation of the sorted ids, whatever order the pool comes in."""

    direction = "lowest"
    seeded = True

    def score(self, context: Context) -> np.ndarray:
        place = np.random.default_rng(context.seed).permutation(len(context.pool))
        of_id = dict(zip(sorted(context.ids), place, strict=True))
        return np.array([of_id[i] for i in context.ids], dtype=float)
