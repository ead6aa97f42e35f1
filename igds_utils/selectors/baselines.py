"""Random, longest response, Loss and IFD: what every selector is compared with."""

import numpy as np

from igds_utils.selectors.base import Choice, id_order, register


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
    samples: those whose prompt makes the target harder.

    Dropped are: samples with an empty target, with a target that training would cut, and with a ratio above 1. The
    others are taken by ratio, highest first. The header in front of the bare target, and with it the template, is
    stored with the scores.

    Ours: a cut target is dropped; the authors cut texts before they look for what is too long, so that their check
    finds nothing and cut targets are scored. The authors take a share of the survivors; here every selector takes a
    share of the pool. Where too few survive, the next ratios above 1 follow, ascending, then what else was dropped;
    the facts count them.
    """
    ratios = np.exp(conditioned - bare) if ratio == "perplexity" else conditioned / bare
    empty = np.array([not sample.target.strip() for sample in pool.samples])
    cut = cut & ~empty
    above = (ratios > 1) & ~empty & ~cut
    survivors = int((~empty & ~cut & ~above).sum())
    group = np.select([empty | cut, above], [2, 1], 0)
    order = np.lexsort((id_order(pool), np.where(above, ratios, -ratios), group))[:size]
    facts = {
        "dropped_empty_target": int(empty.sum()),
        "dropped_cut_target": int(cut.sum()),
        "dropped_ratio_above_1": int(above.sum()),
        "filled_ratio_above_1": int(above[order].sum()),
        "filled_unusable_target": int((empty | cut)[order].sum()),
    }
    return Choice(order, ratios, facts, filled=max(0, size - survivors))
