"""ZIP: samples that have little in common with each other, judged by how badly they compress together."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from igds_utils.selectors.base import Choice, Context, Procedure, register

LEVEL = 9  # of zlib, as the authors call it
USED = 1e6  # the ratio by which their program marks what it has used


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
        best = min(left, key=lambda i: bundle.ratio_with(texts[i]))
        bundle.add(texts[best])
        left.remove(best)
        taken.append(best)
    return taken


@register("zip")
@register("zip_official", mode="official")
class Zip(Procedure):
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

    Ours: a sample is its instruction and its target (`PoolSample.document`), not the printed form of a chat record.
    Ties fall to the smaller id; in the third step of `official` to the first of the K2, as in the program. In a pool
    below K2 the first two steps leave all samples in: the third decides.
    """

    direction = "lowest"
    parameters = {"mode": "no_replacement", "k1": 10000, "k2": 200, "k3": 100}

    def choose(self, context: Context, size: int) -> Choice:
        texts = [f"{sample.document}\n".encode() for sample in context.pool]
        official = self.parameters["mode"] == "official"
        k1, k2, k3 = (self.parameters[name] for name in ("k1", "k2", "k3"))
        state = np.array([Bundle().ratio_with(text) for text in texts])
        used, selected, taken = np.zeros(len(texts), dtype=bool), Bundle(), []
        with tqdm(total=size, desc=self.name, unit="sample", leave=False, delay=2) as bar:
            while len(taken) < size:
                eligible = np.arange(len(texts)) if official else np.flatnonzero(~used)
                first = _lowest(np.where(used, USED, state), eligible, k1, context.id_order)
                state[first] = [selected.ratio_with(texts[i]) for i in first]
                used[first] = False
                second = _lowest(state, first, k2, context.id_order)
                wanted = min(k3, len(second), len(texts) if official else size - len(taken))
                if not official:  # in the order of ids, so that ties fall to the smaller one
                    second = second[np.argsort(context.id_order[second])]
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
