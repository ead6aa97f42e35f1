"""BM25: samples that share rare words with examples of the target task."""

import numpy as np

from igds_utils.selectors.base import Context, Selector, register
from igds_utils.selectors.words import words


@register("bm25")
class BM25(Selector):
    """Mean of a sample's `top` highest BM25 scores over the target examples, highest first (`bm25s`, Lucene's variant).

    Query: an example, instruction and target; document: a pool sample, likewise. Ours: the tokenizer (`words`), which
    keeps digits, operators and stop words, and the mean of the top scores: one close relative among the examples
    may be chance, and the mean over all would blur a task of several kinds.
    """

    needs = ("examples",)
    direction = "highest"
    parameters = {"top": 10}

    def score(self, context: Context) -> np.ndarray:
        import bm25s

        index = bm25s.BM25()
        index.index([words(sample.document) for sample in context.pool], show_progress=False)
        queries = [words(example.document) for example in context.examples]
        scores = np.stack([index.get_scores(query) for query in queries])  # (examples, N)
        top = min(self.parameters["top"], len(queries))
        return np.sort(scores, axis=0)[-top:].mean(axis=0)
