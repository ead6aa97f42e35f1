"""Scores of a sample by itself: IGDS and its controls, and Random, longest response, Loss and IFD.

IGDS takes samples whose prompt activates the task features most; its controls show what its parts are worth. None of
these can see the target: activations at the critical position depend on the prompt alone.
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

    `igds` sums the task features that the causal filter kept, `igds_k3` and `igds_k5` the best three and five (fewer
    where fewer candidates were amplified), `igds_recalled` every recalled feature (no causal filter), `igds_unrecalled`
    those that the same filter kept of random features of the whole dictionary (no recall). `igds_matched` takes random
    features that fire as often. activations: (N, features); k: how many columns count, all of them without it.
    """
    return feature_resonant_score(activations[:, :k])


@register("prior_cosine", "highest", "prior_cosines")
def prior_cosine(pool, cosines):
    """Cosine of the residual stream at p to its mean over D_prior, highest first: what IGDS is worth without an SAE.

    One layer is read, the one with an SAE nearest to 60 % of the depth.
    """
    return cosines


@register("random", "lowest", seeded=True)
def random(pool):
    """The place of a sample in a seeded permutation of the sorted ids, whatever order the pool comes in."""
    place = np.random.default_rng(pool.seed).permutation(len(pool.ids))
    return place[id_order(pool)]


@register("longest", "highest")
def longest(pool):
    """Number of characters of the target, most first (Zhao et al. 2024, arXiv 2402.04833, counts tokens).

    Characters need no tokenizer, so the ranking is the same for every model; the two orders differ little.
    """
    return np.array([len(sample.target) for sample in pool.samples])


@register("loss", "lowest", "target_loss")
@register("loss_highest", "highest", "target_loss")
def loss(pool, target_loss):
    """Mean cross-entropy of the target given the prompt, lowest first (the paper leaves the direction open)."""
    return target_loss


@register("ifd", "highest", "target_loss", "bare_target_loss", "target_cut")
@register("ifd_perplexity", "highest", "target_loss", "bare_target_loss", "target_cut", ratio="perplexity")
def ifd(pool, size, conditioned, bare, cut, ratio="loss"):
    """The hardest samples among those whose prompt helps (Li et al. 2024, arXiv 2308.12032; their Cherry_LLM).

    IFD = mean cross-entropy of the target given its prompt / the same given a bare header, in nats a token.
    `ifd_perplexity` is the ratio of perplexities of Superfiltering (arXiv 2402.00530). Both are above 1 for the same
    samples: those whose prompt makes the target harder. The header, and so the template, is stored with the scores.

    Dropped are: samples with an empty target, with a target that training would cut, and with a ratio above 1. The
    others are taken by ratio, highest first.

    Ours: a cut target is dropped; the authors cut texts before they look for what is too long, so that their check
    finds nothing and cut targets are scored. The authors take a share of the survivors; here every selector takes a
    share of the pool. Where too few survive, the next ratios above 1 follow, ascending, then what else was dropped;
    the facts count them.
    """
    ratios = np.exp(conditioned - bare) if ratio == "perplexity" else conditioned / bare
    empty = np.array([not sample.target.strip() for sample in pool.samples])
    unusable = empty | cut
    above = (ratios > 1) & ~unusable
    group = 2 * unusable + above  # 0: survivors
    order = np.lexsort((id_order(pool), np.where(above, ratios, -ratios), group))[:size]
    facts = {
        "dropped_empty_target": int(empty.sum()),
        "dropped_cut_target": int((cut & ~empty).sum()),
        "dropped_ratio_above_1": int(above.sum()),
        "filled_ratio_above_1": int(above[order].sum()),
        "filled_unusable_target": int(unusable[order].sum()),
    }
    return Choice(order, ratios, facts, filled=int((group[order] > 0).sum()))
