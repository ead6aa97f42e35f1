"""RDS+: samples whose hidden states resemble those of the target examples, each example taking in turn."""

import numpy as np

from igds_utils.selectors.base import Choice, Context, Procedure, register


@register("rds")
class RDS(Procedure):
    """Round robin: each target example in turn takes the most similar sample that is left, until the budget is full.

    Similarity is the cosine of position-weighted means of the last hidden state (`needs.hidden`). The score shown is a
    sample's largest similarity to any example.
    """

    needs = ("hidden_states", "example_hidden_states")
    direction = "highest"

    def choose(self, context: Context, size: int) -> Choice:
        similarity = context.need("hidden_states") @ context.need("example_hidden_states").T  # (N, examples)
        order, rounds = round_robin(similarity, context.id_order, size)
        return Choice(order, similarity.max(axis=1), {"rounds": rounds})


def round_robin(similarity: np.ndarray, id_order: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """`size` distinct samples in the order taken, and the rounds begun. similarity: (N, examples)."""
    queues = [np.lexsort((id_order, -column)) for column in similarity.T]
    heads, taken, order, rounds = [0] * len(queues), np.zeros(len(similarity), dtype=bool), [], 0
    while len(order) < size:
        rounds += 1
        for number, queue in enumerate(queues):
            if len(order) == size:
                break
            while taken[queue[heads[number]]]:
                heads[number] += 1
            taken[queue[heads[number]]] = True
            order.append(queue[heads[number]])
    return np.array(order), rounds
