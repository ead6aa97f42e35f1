"""RDS+: samples whose hidden states resemble those of the target examples, the examples choosing in turn."""

import numpy as np

from igds_utils.selectors.base import Choice, Context, Procedure, register


@register("rds")
class RDS(Procedure):
    """Round robin over target examples (Ivison et al. 2025, arXiv 2503.01807; their get_top_influences.py).

    In round r each example names the r-th most similar sample; a sample that was named before is not taken again, and
    the example loses that turn. Similarity is the cosine of position-weighted means of the last hidden state
    (`needs.hidden`). The score shown is a sample's largest similarity to any example.
    """

    needs = ("hidden_states", "example_hidden_states")
    direction = "highest"

    def choose(self, context: Context, size: int) -> Choice:
        similarity = context.need("hidden_states") @ context.need("example_hidden_states").T  # (N, examples)
        order, rounds = round_robin(similarity, context.id_order, size)
        return Choice(order, similarity.max(axis=1), {"rounds": rounds})


def round_robin(similarity: np.ndarray, id_order: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """`size` distinct samples in the order taken, and the rounds begun. similarity: (N, examples)."""
    named = np.array(
        [np.lexsort((id_order, -column)) for column in similarity.T]
    ).T  # (N, examples): round by round
    turn = np.unique(named.ravel(), return_index=True)[1]  # (N,): the turn in which a sample is first named
    order = turn.argsort()[:size]
    return order, int(turn[order[-1]]) // named.shape[1] + 1
