"""IGDS: samples whose prompt activates the task features most; and the controls that show what its parts are worth.

No variant can see the target: activations at the critical position depend on the prompt alone.
"""

from igds_utils.identification.scoring import feature_resonant_score
from igds_utils.selectors.base import register


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
    return cosines[:, 0]
