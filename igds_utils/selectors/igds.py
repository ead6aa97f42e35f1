"""IGDS: samples whose prompt activates the task features most; and the controls that show what its parts are worth.

No variant can see the target: activations at the critical position depend on the prompt alone.
"""

import numpy as np

from igds_utils.identification.scoring import feature_resonant_score
from igds_utils.selectors.base import Context, Selector, register


@register("igds")
@register("igds_bottom", direction="lowest")
@register("igds_matched", needs=("matched_activations",), seeded=True)
@register("igds_recalled", needs=("recalled_activations",))
@register("igds_unrecalled", needs=("unrecalled_activations",), seeded=True)
@register("igds_k3", needs=("ranked_activations",), k=3)
@register("igds_k5", needs=("ranked_activations",), k=5)
class IGDS(Selector):
    """The Feature-Resonant Score, highest first (Table 3 holds the variants of the paper).

    `igds` sums the task features that the causal filter kept, `igds_k3` and `igds_k5` the best three and five (fewer
    where fewer candidates were amplified), `igds_recalled` every recalled feature (no causal filter), `igds_unrecalled`
    those that the same filter kept of random features of the whole dictionary (no recall). `igds_matched` takes random
    features that fire as often.
    """

    needs = ("task_feature_activations",)
    direction = "highest"
    parameters = {"k": None}  # how many columns count; all of them without it

    def score(self, context: Context) -> np.ndarray:
        return feature_resonant_score(context.need(self.needs[0])[:, : self.parameters["k"]])


@register("prior_cosine")
class PriorCosine(Selector):
    """Cosine of the residual stream at p to its mean over D_prior, highest first: what IGDS is worth without an SAE.

    One layer is read, the one with an SAE nearest to 60 % of the depth.
    """

    needs = ("prior_cosines",)
    direction = "highest"

    def score(self, context: Context) -> np.ndarray:
        return context.need("prior_cosines")[:, 0]
