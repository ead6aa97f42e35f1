"""Samples that differ from each other: SAE-GreedSelect, SAE-SimScale (features), #InsTag (tags) and ZIP (bytes).

The two over features are **our reading** of arXiv 2502.14050, whose Algorithm 1 could not be read. Our choices:

- a sample's features are those whose largest activation on any of its tokens exceeds a threshold. The paper's 10 is in
  the units of its own SAE; here it is a quantile of all non-zero largest activations of the pool;
- GreedSelect adds the sample with the most features not covered yet; where no one adds any, a new cover starts;
- SimScale walks the samples by their number of features, most first, and keeps one if the share of its features that
  the current cover holds stays below a limit (the paper's value is not certain; 0.8 here). What a walk leaves out is
  walked again with a new cover.

Longer texts show more features, so both must be seen beside the longest response.
"""

import heapq
import zlib
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy.sparse import csr_matrix
from tqdm import tqdm

from igds_utils.selectors.base import Choice, document, id_order, register
from igds_utils.selectors.similarity import words

Sets = list[np.ndarray]  # the features of every sample
LEVEL = 9  # of zlib, as the authors of ZIP call it
USED = 1e6  # the ratio by which their program marks what it has used


@register("greedselect", "highest", "sae_max")
def greedselect(pool, size, largest, quantile=0.5):
    """Again and again the sample that shows the most features not covered yet. Score: its number of features."""
    sets, threshold = feature_sets(largest, quantile)
    return _choice(sets, threshold, *lazy_greedy(sets, id_order(pool), size))


@register("simscale", "highest", "sae_max")
def simscale(pool, size, largest, quantile=0.5, overlap=0.8):
    """Samples by number of features, without those whose features are mostly there. Score: the number of features."""
    sets, threshold = feature_sets(largest, quantile)
    return _choice(sets, threshold, *walk(sets, id_order(pool), size, overlap))


def feature_sets(largest: csr_matrix, quantile: float) -> tuple[Sets, float]:
    """The features of every sample whose largest activation exceeds a quantile of all that are not zero.

    largest: CSR (N, M), `Pool.sae_max`. Returns one sorted index array a sample, and the threshold.
    """
    threshold = float(np.quantile(largest.data, quantile)) if largest.nnz else 0.0
    return columns_of(largest > threshold), threshold


def columns_of(rows: csr_matrix) -> Sets:
    """The columns of every row that are not zero, sorted."""
    rows.eliminate_zeros()
    rows.sort_indices()
    return np.split(rows.indices, rows.indptr[1:-1])


def _choice(sets: Sets, threshold: float, order: np.ndarray, covers: int) -> Choice:
    facts = {
        "threshold": threshold,
        "covers": covers,
        "features_covered": len(np.unique(np.concatenate([sets[i] for i in order]))),
        "features_of_pool": len(np.unique(np.concatenate(sets))),
    }
    return Choice(order, np.array([len(one) for one in sets]), facts)


def lazy_greedy(sets: Sets, ties: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """`size` samples by greedy cover, ties by id (`id_order`), and the number of covers begun.

    What a sample adds can only shrink while a cover grows. So only the sample that heads the queue is looked at again;
    if it still adds the most, it is taken. The result is that of the plain greedy search.
    """
    n_features = 1 + max((int(one.max()) for one in sets if len(one)), default=0)
    left, order, covers = set(range(len(sets))), [], 0
    while len(order) < size:
        queue = [(-len(sets[i]), ties[i], i) for i in left]
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


def walk(sets: Sets, ties: np.ndarray, size: int, overlap: float) -> tuple[np.ndarray, int]:
    """`size` samples by number of features, skipping those that a cover holds to a share of `overlap` or more.

    What a walk skips is walked again with a new cover; samples without a feature come last. Returns their order and the
    number of covers begun; ties as for `lazy_greedy`.
    """
    n_features = 1 + max((int(one.max()) for one in sets if len(one)), default=0)
    sizes = np.array([len(one) for one in sets])
    left, order, covers = np.lexsort((ties, -sizes)), [], 0
    while len(order) < size:
        if not sizes[left[0]]:  # what is left shows no feature at all
            order += list(left[: size - len(order)])
            break
        covered, skipped = np.zeros(n_features, dtype=bool), []
        covers += 1
        for number, i in enumerate(left):
            if number and covered[sets[i]].sum() >= overlap * sizes[i]:
                skipped.append(i)
                continue
            covered[sets[i]] = True
            order.append(i)
        left = skipped
    return np.array(order[:size]), covers


@register("instag", "highest", "tags")
def instag(pool, size, tags, rare=2):
    """Complexity-first diverse sampling over tags (Lu et al. 2024, arXiv 2308.07074). Score: the number of tags.

    Samples are walked by their number of tags, most first. One is kept if it brings a tag that the cover does not
    have yet; where a walk is over, what it skipped is walked again with a new cover. Tags of fewer than `rare`
    samples of the pool are dropped (the authors' limit, for hundreds of thousands of queries, is 20). Samples without
    a tag are never taken; they fill the budget last, and are counted.

    Tags come from the preset's `selection.tagger`, a language model such as OFA-Sys/InsTagger. Without one, **word
    n-grams of the instruction stand in**: plain, and not what the authors do; the tagger is stored with the scores.
    The authors also merge tags of like meaning; here case, punctuation and word endings are all that is evened out.
    tags: texts, a list a sample.
    """
    from sklearn.preprocessing import MultiLabelBinarizer

    found = [{*map(normalised_tag, one)} - {""} for one in tags]
    matrix = MultiLabelBinarizer(sparse_output=True).fit_transform(found)  # CSR (N, tags)
    common = np.flatnonzero(np.asarray(matrix.sum(axis=0)).ravel() >= rare)
    sets = columns_of(matrix[:, common])
    numbers = np.array([len(one) for one in sets])
    order, covers = walk(sets, id_order(pool), size, overlap=1)
    facts = {
        "tags": matrix.shape[1],
        "dropped_rare_tags": matrix.shape[1] - len(common),
        "samples_without_tag": int((numbers == 0).sum()),
        "covers": covers,
    }
    return Choice(order[numbers[order] > 0], numbers, facts)


def normalised_tag(tag: str) -> str:
    """A tag in lower case, without punctuation, each word cut to its stem (Porter); "" where nothing is left."""
    return " ".join(_stemmer()(word) for word in words(tag) if any(map(str.isalnum, word)))


@cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    return cache(PorterStemmer().stem)


class Bundle:
    """Texts put together, and how far zlib packs them: g = bytes / compressed bytes.

    The state of the compressor is kept, so what one more text would do is found without compressing the others
    again: the cost does not grow with the bundle, and g is that of the whole.
    """

    def __init__(self):
        self._zlib = zlib.compressobj(LEVEL)
        self._size = self._packed = 0

    def add(self, text: bytes) -> None:
        self._packed += len(self._zlib.compress(text))
        self._size += len(text)

    def ratio_with(self, text: bytes) -> float:
        """g of the bundle and one more text; lower is less redundant."""
        trial = self._zlib.copy()
        packed = self._packed + len(trial.compress(text)) + len(trial.flush())
        return (self._size + len(text)) / packed


def least_redundant(texts: Sequence[bytes], size: int) -> list[int]:
    """Places of `size` texts, taken one by one so that g of those taken stays lowest; ties fall to the first."""
    bundle, left, taken = Bundle(), list(range(len(texts))), []
    while len(taken) < size:
        taken.append(min(left, key=lambda i: bundle.ratio_with(texts[i])))
        bundle.add(texts[taken[-1]])
        left.remove(taken[-1])
    return taken


@register("zip", "lowest")
@register("zip_official", "lowest", mode="official")
def entropy_law(pool, size, mode="no_replacement", k1=10000, k2=200, k3=100):
    """Rounds of K3 samples with the lowest joint g (Yin et al. 2024, arXiv 2407.06645; their ZIP.py).

    Every sample has a state, at first its own g. A round takes the `k1` lowest states and sets them to g of
    everything selected and that sample; takes the `k2` lowest of these; and among them grows a set of `k3`, one
    by one, each time the sample that keeps g of the set lowest.

    mode `no_replacement` (default): the K2 - K3 that a round rejects stay eligible, what is selected never returns,
    and the last round takes what is missing of the budget. mode `official` does what the authors' program does: it
    marks all K2 as used, by a high state, ends with a whole round, and calculates marked states anew once fewer than
    K1 unmarked ones are left, so that samples are selected twice. The facts count what it took and how many of them
    are distinct; these are cut at the budget or filled up to it. The program stops with an error on a pool smaller
    than K1; here K1, K2 and K3 are lowered to what there is, in both modes.

    Ours: a sample is its instruction and its target (`document`), not the printed form of a chat record. Ties fall to
    the smaller id; in the third step of `official` to the first of the K2, as in the program. In a pool below K2 the
    first two steps leave all samples in: the third decides.
    """
    texts = [f"{document(sample)}\n".encode() for sample in pool.samples]
    official, ties = mode == "official", id_order(pool)
    state = np.array([Bundle().ratio_with(text) for text in texts])
    used, selected, taken = np.zeros(len(texts), dtype=bool), Bundle(), []
    with tqdm(total=size, desc="zip", unit="sample", leave=False, delay=2) as bar:
        while len(taken) < size:
            eligible = np.arange(len(texts)) if official else np.flatnonzero(~used)
            first = _lowest(np.where(used, USED, state), eligible, k1, ties)
            state[first] = [selected.ratio_with(texts[i]) for i in first]
            used[first] = False
            second = _lowest(state, first, k2, ties)
            wanted = min(k3, len(second), len(texts) if official else size - len(taken))
            if not official:  # in the order of ids, so that ties fall to the smaller one
                second = second[np.argsort(ties[second])]
            found = second[least_redundant([texts[i] for i in second], wanted)]
            used[second if official else found] = True
            for i in found:
                selected.add(texts[i])
            taken += found.tolist()
            bar.update(len(found))
    distinct = list(dict.fromkeys(taken))
    facts = {"taken": len(taken), "distinct": len(distinct)} if official else {}
    return Choice(np.array(distinct[:size]), state, facts)


def _lowest(values: np.ndarray, among: np.ndarray, k: int, ties: np.ndarray) -> np.ndarray:
    """The at most k of the indices `among` with the lowest values, lowest first."""
    return among[np.lexsort((ties[among], values[among]))[:k]]
