"""Selectors that look for what resembles the examples of the target task: BM25, embeddings, MONA, RDS+, LESS."""

import numpy as np
import regex
from scipy.sparse import csr_matrix, issparse

from igds_utils.data.metrics import UNSPACED
from igds_utils.selectors.base import Choice, document, id_order, register

# Where a script writes no spaces between words, and in Korean, each character is one.
_CHARACTER = rf"{UNSPACED}\p{{Hangul}}"
_WORD = regex.compile(
    rf"(?V1)[{_CHARACTER}]\p{{M}}*|[[\p{{L}}\p{{M}}]--[{_CHARACTER}]]+|\d+|[^\w\s\p{{M}}]|_"
)


def words(text: str) -> list[str]:
    """Lower-case words, runs of digits, and every other mark by itself; nothing but white space is left out.

    Retrieval libraries drop single characters and frequent words; in a word problem those are the numbers and the
    operators.
    """
    return _WORD.findall(text.lower())


@register("bm25", "highest", "target_examples")
def bm25(pool, examples, top=10):
    """Mean of a sample's `top` highest BM25 scores over the target examples, highest first (`bm25s`, Lucene's variant).

    Query: an example, instruction and target; document: a pool sample, likewise. Ours: the tokenizer (`words`), which
    keeps digits, operators and stop words, and the mean of the top scores: one close relative among the examples
    may be chance, and the mean over all would blur a task of several kinds.
    """
    import bm25s

    index = bm25s.BM25()
    index.index([words(document(sample)) for sample in pool.samples], show_progress=False)
    scores = np.stack([index.get_scores(words(document(example))) for example in examples])  # (examples, N)
    return np.sort(scores, axis=0)[-top:].mean(axis=0)


@register("embedding", "highest", "embeddings", "examples.embeddings")
def embedding(pool, embeddings, of_examples):
    """Cosine of a sample's sentence embedding and the mean of the target examples', highest first.

    The encoder is the preset's `selection.encoder` and is stored with the scores. What is embedded, and that the
    mean stands for the task, is our choice; BGE and LLM2Vec encoders are used so in the studies of selection.
    embeddings: (N, d); of_examples: (examples, d).
    """
    return _normalised(embeddings) @ _normalised(_normalised(of_examples).mean(axis=0))


def _normalised(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


@register("mona", "highest", "sae_mean", "examples.sae_mean")
@register("mona_least", "lowest", "sae_mean", "examples.sae_mean")
@register("mona_neurons", "highest", "neuron_mean", "examples.neuron_mean")
def mona(pool, activations, of_examples):
    """Generalized Jaccard similarity of a sample's activations to the mean of the target examples', highest first.

    A sample is the mean over all its tokens, prompt and target, of the SAE activations at a deep layer
    (arXiv 2503.15573). `mona_least` takes the least similar; `mona_neurons` reads raw MLP neurons (their positive
    part) in place of features. activations: (N, M); of_examples: (examples, M).
    """
    return generalized_jaccard(activations, np.asarray(of_examples.mean(axis=0)).ravel())


def generalized_jaccard(vectors, prototype: np.ndarray) -> np.ndarray:
    """sum_i min(a_i, b_i) / sum_i max(a_i, b_i) of every row a with the prototype b: (N, M), (M,) -> (N,).

    vectors: array or CSR matrix; nothing is negative. Two vectors of zeros are alike: 1. Only stored entries are
    visited, as sum max(a, b) = sum a + sum b - sum min(a, b).
    """
    rows = vectors if issparse(vectors) else csr_matrix(vectors)
    values = rows.data.astype(np.float64)
    sample = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    total = np.bincount(sample, weights=values, minlength=rows.shape[0])
    both = np.bincount(sample, weights=np.minimum(values, prototype[rows.indices]), minlength=rows.shape[0])
    either = total + prototype.sum(dtype=np.float64) - both
    return np.divide(both, either, out=np.ones(len(either)), where=either > 0)


@register("rds", "highest", "hidden_states", "examples.hidden_states")
def rds(pool, size, hidden_states, of_examples):
    """Round robin over target examples (RDS+; Ivison et al. 2025, arXiv 2503.01807; their get_top_influences.py).

    In round r each example names the r-th most similar sample; a sample that was named before is not taken again, and
    the example loses that turn. Similarity is the cosine of position-weighted means of the last hidden state, which
    have length 1: (N, d) and (examples, d). The score shown is a sample's largest similarity to any example.
    """
    similarity = hidden_states @ of_examples.T  # (N, examples)
    order, rounds = round_robin(similarity, id_order(pool), size)
    return Choice(order, similarity.max(axis=1), {"rounds": rounds})


def round_robin(similarity: np.ndarray, ties: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """`size` distinct samples in the order taken, and the rounds begun. similarity: (N, examples); ties: `id_order`."""
    # (N, examples): round by round
    named = np.array([np.lexsort((ties, -column)) for column in similarity.T]).T
    turn = np.unique(named.ravel(), return_index=True)[1]  # (N,): the turn in which a sample is first named
    order = turn.argsort()[:size]
    return order, int(turn[order[-1]]) // named.shape[1] + 1


@register("less", "highest", "gradients", "example_gradients")
def less(pool, gradients, of_examples):
    """Sum over warm-up checkpoints of the cosine between a sample's step and the mean target gradient, highest first.

    LESS-style influence (Xia et al. 2024, arXiv 2402.04333). The checkpoints are weighted by their learning rates
    (shares of the sum), which are the lengths of the samples' vectors. Both sides are projected gradients of LoRA
    weights (`selection.gradients`), (N or examples, checkpoints, dimensions), the target examples' of length 1 each
    before their mean is taken.
    """
    wanted = of_examples.mean(axis=0)  # (checkpoints, dimensions)
    wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
    return np.einsum("ncd,cd->n", gradients, wanted)
