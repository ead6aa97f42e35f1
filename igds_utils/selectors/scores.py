"""Scores of a sample by itself: IGDS and its controls, Random, longest response, Loss, IFD.

IGDS and its controls cannot see the target: activations at p depend on the prompt alone.
"""

import numpy as np

from igds_utils.selectors.base import Choice, id_order, register


def feature_resonant_score(activations: np.ndarray, norms: np.ndarray | None = None) -> np.ndarray:
    """S(x) = sum of a_i(x, p) over the task features, of every sample: (N, k) -> (N,).

    norms: ||d_i|| (k,) to count each feature in residual units instead of its own.
    """
    return (activations if norms is None else activations * norms).sum(axis=1)


@register("igds", "highest", "task_feature_activations")
@register("igds_bottom", "lowest", "task_feature_activations")
@register("igds_matched", "highest", "matched_activations", seeded=True)
@register("igds_recalled", "highest", "recalled_activations")
@register("igds_unrecalled", "highest", "unrecalled_activations", seeded=True)
@register("igds_k3", "highest", "ranked_activations", k=3)
@register("igds_k5", "highest", "ranked_activations", k=5)
def igds(pool, activations, k=None):
    """The Feature-Resonant Score, highest first (Table 3 holds the variants of the paper).

    It sums the task features, the best k candidates, all recalled features (no causal filter),
    what the filter kept of random ones (no recall), or random ones that fire as often.
    activations: (N, features), of which the first k count.
    """
    return feature_resonant_score(activations[:, :k])


@register("prior_cosine", "highest", "prior_cosines")
def prior_cosine(pool, cosines):
    """Cosine of the residual stream at p, in one layer, to its mean over D_prior."""
    return cosines


@register("random", "lowest", seeded=True)
def random(pool):
    """The place of a sample in a seeded permutation of the sorted ids."""
    place = np.random.default_rng(pool.seed).permutation(len(pool.ids))
    return place[id_order(pool)]


@register("longest", "highest")
def longest(pool):
    """Number of characters of the target, most first (arXiv 2402.04833 counts tokens)."""
    return np.array([len(sample.target) for sample in pool.samples])


@register("loss", "lowest", "target_loss")
@register("loss_highest", "highest", "target_loss")
def loss(pool, target_loss):
    """Mean cross-entropy of the target given the prompt, lowest first."""
    return target_loss


IFD = "target_loss", "bare_target_loss", "target_cut"


@register("ifd", "highest", *IFD)
@register("ifd_perplexity", "highest", *IFD, ratio="perplexity")
def ifd(pool, size, conditioned, bare, cut, ratio="loss"):
    """The hardest samples among those whose prompt helps (Cherry_LLM, arXiv 2308.12032).

    IFD = mean cross-entropy of the target given its prompt / the same given a bare header, or
    the ratio of perplexities (Superfiltering, arXiv 2402.00530). Dropped are samples with an
    empty target, one that training would cut (the authors' check comes after the cut), or a
    ratio above 1. The others are taken by ratio, highest first; the budget, a share of the
    pool and not of the survivors, is filled by the next ratios above 1, then the unusable.
    """
    ratios = np.exp(conditioned - bare) if ratio == "perplexity" else conditioned / bare
    empty = np.array([not sample.target.strip() for sample in pool.samples])
    above = (ratios > 1) & ~empty & ~cut
    group = 2 * (empty | cut) + above  # 0: survivors
    order = np.lexsort((id_order(pool), np.where(above, ratios, -ratios), group))[:size]
    facts = {
        "dropped_empty_target": int(empty.sum()),
        "dropped_cut_target": int((cut & ~empty).sum()),
        "dropped_ratio_above_1": int(above.sum()),
    }
    return Choice(order, ratios, facts, filled=int((group[order] > 0).sum()))
