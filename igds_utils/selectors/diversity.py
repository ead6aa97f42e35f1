"""Samples that differ: SAE-GreedSelect, SAE-SimScale (features), #InsTag (tags), ZIP (bytes).

The two over features are **our reading** of arXiv 2502.14050, whose Algorithm 1 could not be
read. A sample's features are those whose largest activation on any token exceeds a quantile
of all non-zero ones (there: 10, in their SAE's units). Where all is covered, a new cover
starts. Samples without a feature only fill the budget.
"""

import heapq
import zlib
from collections import Counter
from functools import cache

import numpy as np
from tqdm import tqdm

from igds_utils.selectors.base import Choice, document, id_order, register
from igds_utils.selectors.similarity import words

Sets = list[np.ndarray]  # the features (or tags) of every sample
LEVEL = 9  # of zlib, as in the authors' ZIP.py
USED = 1e6  # the ratio by which it marks what it has used


@register("greedselect", "highest", "sae_max")
@register("simscale", "highest", "sae_max", overlap=0.8)
def coverage(pool, size, largest, quantile=0.5, overlap=None):
    """Number of features; those not covered yet count (arXiv 2502.14050).

    GreedSelect takes again and again the sample with most of them. SimScale walks by number
    and takes a sample of which less than `overlap` (not certain) is covered. CSR (N, M).
    """
    above = largest > (np.quantile(largest.data, quantile) if largest.nnz else 0)
    sets, ties = np.split(above.indices, above.indptr[1:-1]), id_order(pool)
    order = walk(sets, ties, size, overlap) if overlap else lazy_greedy(sets, ties, size)
    return Choice(order, [*map(len, sets)])


@register("instag", "highest", "tags")
def instag(pool, size, tags, rare=2):
    """Complexity-first diverse sampling over tags (arXiv 2308.07074). Score: their number.

    Samples are walked by number of tags and kept if they bring a tag that the cover does not
    have. Tags of fewer than `rare` samples are dropped (there: 20). tags: lists of texts, by
    `selection.tagger`; without one **word n-grams stand in**.
    """
    found = [{*map(normalised_tag, one)} - {""} for one in tags]
    counts = Counter(tag for one in found for tag in one)
    numbers = {tag: number for number, tag in enumerate(counts) if counts[tag] >= rare}
    sets = [np.array([numbers[tag] for tag in one if tag in numbers], dtype=int) for one in found]
    facts = {"dropped_rare_tags": len(counts) - len(numbers)}
    return Choice(walk(sets, id_order(pool), size, overlap=1), [*map(len, sets)], facts)


def lazy_greedy(sets: Sets, ties: np.ndarray, size: int) -> np.ndarray:
    """At most `size` samples by greedy cover, ties by id, none without a feature.

    What a sample adds can only shrink while a cover grows, so only the head of the queue is
    looked at again: if it still adds the most, it is taken.
    """
    covered = np.zeros(1 + np.concatenate(sets).max(initial=0), dtype=bool)
    queue = [(-len(one), ties[i], i) for i, one in enumerate(sets) if len(one)]
    heapq.heapify(queue)
    order, left = [], []  # left: what adds nothing to this cover
    while queue and len(order) < size:
        _, place, i = heapq.heappop(queue)
        gain = int((~covered[sets[i]]).sum())
        if queue and (-gain, place) > queue[0][:2]:
            heapq.heappush(queue, (-gain, place, i))
        elif gain:
            covered[sets[i]] = True
            order.append(i)
        else:
            left.append((-len(sets[i]), place, i))
        if not queue:  # a new cover
            queue, left = sorted(left), []
            covered[:] = False
    return np.array(order, dtype=int)


def walk(sets: Sets, ties: np.ndarray, size: int, overlap: float) -> np.ndarray:
    """The same by number of features; what a cover holds to `overlap` waits for the next."""
    covered = np.zeros(1 + np.concatenate(sets).max(initial=0), dtype=bool)
    lengths, order = np.array([*map(len, sets)]), []
    left = [i for i in np.lexsort((ties, -lengths)) if lengths[i]]
    while left and len(order) < size:
        covered[:], skipped = False, []
        for i in left:
            if covered[sets[i]].sum() >= overlap * lengths[i]:
                skipped.append(i)
            else:
                covered[sets[i]] = True
                order.append(i)
        left = skipped
    return np.array(order[:size], dtype=int)


def normalised_tag(tag: str) -> str:
    """A tag in lower case, without punctuation, each word cut to its stem (Porter)."""
    return " ".join(_stem(word) for word in words(tag) if any(map(str.isalnum, word)))


@cache
def _stem(word: str) -> str:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem(word)


class Bundle:
    """Texts put together, and the state of zlib, with which one more is cheap to try."""

    def __init__(self):
        self._zlib, self._size, self._packed = zlib.compressobj(LEVEL), 0, 0

    def add(self, text: bytes) -> None:
        self._packed += len(self._zlib.compress(text))
        self._size += len(text)

    def ratio_with(self, text: bytes) -> float:
        """g = bytes / compressed bytes, with one more text; lower is less redundant."""
        trial = self._zlib.copy()
        packed = self._packed + len(trial.compress(text)) + len(trial.flush())
        return (self._size + len(text)) / packed


@register("zip", "lowest")
@register("zip_official", "lowest", mode="official")
def entropy_law(pool, size, mode="no_replacement", k1=10000, k2=200, k3=100):
    """Rounds of K3 samples with the lowest joint g (arXiv 2407.06645).

    Every sample has a state, at first its own g. A round sets the `k1` lowest states to g of
    everything selected and that sample, takes the `k2` lowest of these, and among them grows
    a set of `k3`, one by one, each time the sample that keeps g of the set lowest.

    By default what a round rejects stays eligible, and the budget is met exactly. mode
    `official`: all K2 are marked as used by a high state, rounds are whole, and samples are
    selected twice once fewer than K1 unmarked ones are left. Ties fall to the smaller id, in
    its third step to the first of the K2.
    """
    official, ties = mode == "official", id_order(pool)

    def text(i: int) -> bytes:
        return f"{document(pool.samples[i])}\n".encode()

    each = tqdm(range(len(ties)), "zip, each alone", leave=False, delay=2)
    state = np.array([Bundle().ratio_with(text(i)) for i in each])
    used, selected, taken = np.zeros(len(state), dtype=bool), Bundle(), []

    def lowest(values: np.ndarray, among: np.ndarray, k: int) -> np.ndarray:
        if k < len(among):  # only those that can be among them are sorted
            among = among[values[among] <= np.partition(values[among], k)[k]]
        return among[np.lexsort((ties[among], values[among]))[:k]]

    with tqdm(total=size, desc="zip", unit="sample", leave=False, delay=2) as bar:
        while len(taken) < size:
            eligible = np.arange(len(used)) if official else np.flatnonzero(~used)
            first = lowest(np.where(used, USED, state), eligible, k1)
            state[first] = [selected.ratio_with(text(i)) for i in first]
            used[first] = False
            second = lowest(state, first, k2)
            wanted = k3 if official else min(k3, size - len(taken))
            among = second if official else second[np.argsort(ties[second])]
            bundle, left, found = Bundle(), among.tolist(), []
            while left and len(found) < wanted:
                found.append(min(left, key=lambda i: bundle.ratio_with(text(i))))
                left.remove(found[-1])
                bundle.add(text(found[-1]))
                selected.add(text(found[-1]))
            used[second if official else found] = True
            taken += found
            bar.update(len(found))
    distinct = list(dict.fromkeys(taken))
    facts = {"taken": len(taken), "distinct": len(distinct)} if official else {}
    return Choice(np.array(distinct[:size]), state, facts)
