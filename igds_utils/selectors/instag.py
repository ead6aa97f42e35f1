"""#InsTag: samples with many tags, that together bring every tag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from igds_utils.selectors.base import Choice, Context, Procedure, register


@register("instag")
class InsTag(Procedure):
    """Complexity-first diverse sampling over tags (Lu et al. 2024, arXiv 2308.07074). Score: the number of tags.

    Samples are walked by their number of tags, most first. One is kept if it brings a tag that the cover does not
    have yet; where a walk is over, what it skipped is walked again with a new cover. Tags of fewer than `rare`
    samples of the pool are dropped (the authors' limit, for hundreds of thousands of queries, is 20). Samples without
    a tag are never taken; they fill the budget last, and are counted.

    Tags come from the preset's `selection.tagger`, a language model such as OFA-Sys/InsTagger. Without one, **word
    n-grams of the instruction stand in**: plain, and not what the authors do; the tagger is stored with the scores.
    The authors also merge tags of like meaning; here case, punctuation and word endings are all that is evened out.
    """

    needs = ("tags",)
    direction = "highest"
    parameters = {"rare": 2}

    def choose(self, context: Context, size: int) -> Choice:
        tags = context.need("tags")  # CSR (N, tags), 1 where a sample has a tag
        common = np.flatnonzero(np.asarray((tags > 0).sum(axis=0)).ravel() >= self.parameters["rare"])
        rows = tags[:, common].tolil().rows
        sets = [set(row) for row in rows]
        order, covers = diverse(sets, context.id_order, size)
        facts = {
            "tags": tags.shape[1],
            "dropped_rare_tags": tags.shape[1] - len(common),
            "samples_without_tag": sum(not one for one in sets),
            "covers": covers,
        }
        return Choice(order, np.array([len(one) for one in sets], dtype=float), facts)


def diverse(sets: Sequence[set], id_order: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """At most `size` samples by complexity-first diverse sampling, ties by id, and the number of covers begun."""
    left = np.lexsort((id_order, [-len(one) for one in sets])).tolist()
    left = [i for i in left if sets[i]]
    order: list[int] = []
    covers = 0
    while left and len(order) < size:
        cover, skipped = set(), []
        covers += 1
        for i in left:
            if sets[i] <= cover:
                skipped.append(i)
            else:
                cover |= sets[i]
                order.append(i)
        left = skipped
    return np.array(order[:size], dtype=int), covers
