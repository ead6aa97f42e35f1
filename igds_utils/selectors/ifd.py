"""IFD: samples whose target stays hard although the prompt is given."""

import numpy as np

from igds_utils.selectors.base import Choice, Context, Procedure, register


def difficulty(conditioned: np.ndarray, bare: np.ndarray, ratio: str) -> np.ndarray:
    """Instruction-Following Difficulty of each sample: (N,).

    conditioned, bare: mean cross-entropy of the target given its prompt, and given a bare header, in nats a token.
    ratio: of the "loss"es, or of the "perplexity", exp(loss). Both are above 1 for the same samples: those whose
    prompt makes the target harder.
    """
    return np.exp(conditioned - bare) if ratio == "perplexity" else conditioned / bare


@register("ifd")
@register("ifd_perplexity", ratio="perplexity")
class IFD(Procedure):
    """The hardest samples among those whose prompt helps (Li et al. 2024, arXiv 2308.12032; their Cherry_LLM).

    Dropped are: samples with an empty target, with a target that training would cut, and with a ratio above 1. The
    others are taken by ratio, highest first. `ifd_perplexity` is the ratio of perplexities of Superfiltering
    (arXiv 2402.00530). The header in front of the bare target, and with it the template, is stored with the scores.

    Ours: a cut target is dropped; the authors cut texts before they look for what is too long, so that their check
    finds nothing and cut targets are scored. The authors take a share of the survivors; here every selector takes a
    share of the pool. Where too few survive, the next ratios above 1 follow, ascending, then what else was dropped;
    the facts count them.
    """

    needs = ("target_loss", "bare_target_loss", "target_cut")
    direction = "highest"
    parameters = {"ratio": "loss"}

    def choose(self, context: Context, size: int) -> Choice:
        conditioned, bare = context.need("target_loss"), context.need("bare_target_loss")
        ratios = difficulty(conditioned, bare, self.parameters["ratio"])
        empty = np.array([not sample.target.strip() for sample in context.pool])
        cut = np.asarray(context.need("target_cut"), dtype=bool) & ~empty
        above = (ratios > 1) & ~empty & ~cut
        survivors = int((~empty & ~cut & ~above).sum())
        group = np.select([empty | cut, above], [2, 1], 0)
        order = np.lexsort((context.id_order, np.where(above, ratios, -ratios), group))[:size]
        facts = {
            "dropped_empty_target": int(empty.sum()),
            "dropped_cut_target": int(cut.sum()),
            "dropped_ratio_above_1": int(above.sum()),
            "filled_ratio_above_1": int(above[order].sum()),
            "filled_unusable_target": int((empty | cut)[order].sum()),
        }
        return Choice(order, ratios, facts, filled=max(0, size - survivors))
