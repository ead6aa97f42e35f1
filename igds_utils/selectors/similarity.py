"""What resembles examples of the target task: BM25, embeddings, MONA, RDS+, LESS."""

import numpy as np
import regex
from scipy.sparse import csr_matrix

from igds_utils.data.metrics import UNSPACED
from igds_utils.selectors.base import Choice, document, id_order, register

# Where a script writes no spaces between words, and in Korean, each character is one.
_CHARACTER = rf"{UNSPACED}\p{{Hangul}}"
_WORD = regex.compile(
    rf"(?V1)[{_CHARACTER}]\p{{M}}*|[[\p{{L}}\p{{M}}]--[{_CHARACTER}]]+|\d+|[^\w\s\p{{M}}]|_"
)


def words(text: str) -> list[str]:
    """Lower-case words, runs of digits, and every other mark by itself."""
    return _WORD.findall(text.lower())


@register("bm25", "highest", "target_examples")
def bm25(pool, examples, top=10):
    """Mean of the `top` highest BM25 scores over the target examples (`bm25s`, Lucene's).

    Queries are examples, documents samples, with targets. Ours: the tokenizer and the mean.
    """
    import bm25s

    index = bm25s.BM25()
    index.index([words(document(one)) for one in pool.samples], show_progress=False)
    scores = [index.get_scores(words(document(one))) for one in examples]
    return np.sort(scores, axis=0)[-top:].mean(axis=0)  # (examples, N) -> (N,)


@register("embedding", "highest", "embeddings", "examples.embeddings")
def embedding(pool, embeddings, of_examples):
    """Cosine of a sample's sentence embedding and the mean of the target examples'.

    Embeddings are (N, d) and (examples, d), of length 1, by `selection.encoder`.
    """
    mean = of_examples.mean(axis=0)
    return embeddings @ mean / np.linalg.norm(mean)


@register("mona", "highest", "sae_mean", "examples.sae_mean")
@register("mona_least", "lowest", "sae_mean", "examples.sae_mean")
@register("mona_neurons", "highest", "neuron_mean", "examples.neuron_mean")
def mona(pool, activations, of_examples):
    """Generalized Jaccard similarity of activations to the mean of the target examples'.

    MONA (arXiv 2503.15573): sum_i min(a_i, b_i) / sum_i max(a_i, b_i), 1 for two of zeros. a:
    (N, M), array or CSR, means over all tokens of SAE features of a deep layer, or of the
    positive part of MLP neurons; b: the mean of (examples, M).
    """
    prototype = np.asarray(of_examples.mean(axis=0), dtype=np.float64).ravel()
    rows = csr_matrix(activations, dtype=np.float64)
    smaller = rows.copy()
    smaller.data = np.minimum(rows.data, prototype[rows.indices])
    both, total = (np.asarray(one.sum(axis=1)).ravel() for one in (smaller, rows))
    either = total + prototype.sum() - both
    return np.divide(both, either, out=np.ones(len(either)), where=either > 0)


@register("rds", "highest", "hidden_states", "examples.hidden_states")
def rds(pool, size, hidden_states, of_examples):
    """Round robin over target examples (RDS+, arXiv 2503.01807).

    In round r each example names the r-th most similar sample; where that was named before,
    the turn is lost. hidden_states: position-weighted means of the last, (N, d) and
    (examples, d) of length 1. Score: the largest cosine.
    """
    similarity, ties = hidden_states @ of_examples.T, id_order(pool)  # (N, examples)
    named = np.array([np.lexsort((ties, -column)) for column in similarity.T]).T
    turn = np.unique(named, return_index=True)[1]  # (N,): when a sample is first named
    return Choice(turn.argsort()[:size], similarity.max(axis=1))


@register("less", "highest", "gradients", "example_gradients")
def less(pool, gradients, of_examples):
    """Sum over checkpoints of the cosine of a sample's step and the mean target gradient.

    LESS-style influence (arXiv 2402.04333). gradients: (N or examples, checkpoints, d), of a
    sample as long as the checkpoint's share of the learning rates, of an example 1.
    """
    wanted = of_examples.mean(axis=0)  # (checkpoints, dimensions)
    wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
    return np.einsum("ncd,cd->n", gradients, wanted)
