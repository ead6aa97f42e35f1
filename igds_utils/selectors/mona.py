"""MONA: samples on which the same features fire as on the target task's examples (arXiv 2503.15573)."""

import numpy as np
from scipy.sparse import csr_matrix, issparse

from igds_utils.selectors.base import Context, Selector, register


@register("mona")
@register("mona_least", direction="lowest")
@register("mona_neurons", needs=("neuron_mean", "example_neuron_mean"))
class MONA(Selector):
    """Generalized Jaccard similarity of a sample's activations to the mean of the target examples', highest first.

    A sample is the mean over all its tokens, prompt and target, of the SAE activations at a deep layer. `mona_least`
    takes the least similar; `mona_neurons` reads raw MLP neurons (their positive part) in place of features.
    """

    needs = ("sae_mean", "example_sae_mean")
    direction = "highest"

    def score(self, context: Context) -> np.ndarray:
        of_pool, of_examples = (context.need(need) for need in self.needs)
        return generalized_jaccard(of_pool, np.asarray(of_examples.mean(axis=0)).ravel())


def generalized_jaccard(vectors, prototype: np.ndarray) -> np.ndarray:
    """sum_i min(a_i, b_i) / sum_i max(a_i, b_i) of every row a with the prototype b: (N, M), (M,) -> (N,).

    vectors: array or CSR matrix; nothing may be negative. Two vectors of zeros are alike: 1. Only stored entries are
    visited, as sum max(a, b) = sum a + sum b - sum min(a, b).
    """
    rows = vectors if issparse(vectors) else csr_matrix(vectors)
    values = rows.data.astype(np.float64)
    if (values < 0).any() or (prototype < 0).any():
        raise ValueError(
            "the generalized Jaccard similarity is defined for activations >= 0, some are negative"
        )
    sample = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    total = np.bincount(sample, weights=values, minlength=rows.shape[0])
    both = np.bincount(sample, weights=np.minimum(values, prototype[rows.indices]), minlength=rows.shape[0])
    either = total + prototype.sum(dtype=np.float64) - both
    return np.divide(both, either, out=np.ones(len(either)), where=either > 0)
