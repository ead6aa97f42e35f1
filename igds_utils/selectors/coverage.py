"""SAE-GreedSelect and SAE-SimScale: samples that together show many features (arXiv 2502.14050), **our reading**.

The paper's Algorithm 1 could not be read; this follows its descriptions. The choices below are ours:

- a sample's features are those whose largest activation on any of its tokens exceeds a threshold. The paper's 10 is in
  the units of its own SAE; here it is a quantile of all non-zero largest activations of the pool;
- when every feature that any sample shows is covered, a new cover starts;
- GreedSelect adds the sample with the most features not covered yet; where no one adds any, a new cover starts;
- SimScale walks the samples by their number of features, most first, and keeps one if the share of its features that
  the current cover holds stays below a limit (the paper's value is not certain; 0.8 here). What a walk leaves out is
  walked again with a new cover.

Longer texts show more features, so both must be seen beside the longest response.
"""

from __future__ import annotations

import heapq

import numpy as np
from scipy.sparse import csr_matrix

from igds_utils.selectors.base import Choice, Context, Procedure, register

Sets = list[np.ndarray]  # the features of every sample


def feature_sets(largest: csr_matrix, quantile: float) -> tuple[Sets, float]:
    """The features of every sample whose largest activation exceeds a quantile of all that are not zero.

    largest: CSR (N, M), `sae_max`. Returns one sorted index array a sample, and the threshold.
    """
    threshold = float(np.quantile(largest.data, quantile)) if largest.nnz else 0.0
    ends = largest.indptr
    return [
        largest.indices[a:b][largest.data[a:b] > threshold] for a, b in zip(ends[:-1], ends[1:], strict=True)
    ], threshold


@register("greedselect")
class GreedSelect(Procedure):
    """Again and again the sample that shows the most features not covered yet. Score: its number of features."""

    needs = ("sae_max",)
    direction = "highest"
    parameters = {"quantile": 0.5}

    def choose(self, context: Context, size: int) -> Choice:
        sets, threshold = feature_sets(context.need("sae_max"), self.parameters["quantile"])
        order, covers = lazy_greedy(sets, context.id_order, size)
        return Choice(order, np.array([len(one) for one in sets]), _facts(sets, order, threshold, covers))


@register("simscale")
class SimScale(Procedure):
    """Samples by number of features, without those whose features are mostly there. Score: the number of features."""

    needs = ("sae_max",)
    direction = "highest"
    parameters = {"quantile": 0.5, "overlap": 0.8}

    def choose(self, context: Context, size: int) -> Choice:
        sets, threshold = feature_sets(context.need("sae_max"), self.parameters["quantile"])
        order, covers = walk(sets, context.id_order, size, self.parameters["overlap"])
        return Choice(order, np.array([len(one) for one in sets]), _facts(sets, order, threshold, covers))


def _facts(sets: Sets, order: np.ndarray, threshold: float, covers: int) -> dict:
    seen = {feature for i in order for feature in sets[i].tolist()}
    all_features = {feature for one in sets for feature in one.tolist()}
    return {
        "threshold": threshold,
        "covers": covers,
        "features_covered": len(seen),
        "features_of_pool": len(all_features),
    }


def lazy_greedy(sets: Sets, id_order: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """`size` samples by greedy cover, ties by id, and the number of covers begun.

    What a sample adds can only shrink while a cover grows. So only the sample that heads the queue is looked at again;
    if it still adds the most, it is taken. The result is that of the plain greedy search.
    """
    n_features = 1 + max((int(one.max()) for one in sets if len(one)), default=0)
    left, order, covers = set(range(len(sets))), [], 0
    while len(order) < size:
        queue = [(-len(sets[i]), id_order[i], i) for i in left]
        heapq.heapify(queue)
        if not queue[0][0]:  # what is left shows no feature at all
            order += [i for _, _, i in heapq.nsmallest(size - len(order), queue)]
            break
        covered = np.zeros(n_features, dtype=bool)
        covers += 1
        while queue and len(order) < size:
            _, place, i = heapq.heappop(queue)
            gain = int((~covered[sets[i]]).sum())
            if queue and (-gain, place) > queue[0][:2]:
                heapq.heappush(queue, (-gain, place, i))
                continue
            if not gain:
                break  # nobody adds anything: a new cover
            covered[sets[i]] = True
            order.append(i)
            left.remove(i)
    return np.array(order), covers


def walk(sets: Sets, id_order: np.ndarray, size: int, overlap: float) -> tuple[np.ndarray, int]:
    """`size` samples by number of features, skipping those that a cover holds to a share of `overlap` or more."""
    n_features = 1 + max((int(one.max()) for one in sets if len(one)), default=0)
    sizes = np.array([len(one) for one in sets])
    left, order, covers = np.lexsort((id_order, -sizes)), [], 0
    while len(order) < size:
        if not sizes[left[0]]:  # what is left shows no feature at all
            order += list(left[: size - len(order)])
            break
        covered = np.zeros(n_features, dtype=bool)
        covers += 1
        skipped = []
        for number, i in enumerate(left):
            if len(order) == size:
                break
            if number and covered[sets[i]].sum() >= overlap * len(sets[i]):
                skipped.append(i)
                continue
            covered[sets[i]] = True
            order.append(i)
        left = skipped
    return np.array(order), covers
