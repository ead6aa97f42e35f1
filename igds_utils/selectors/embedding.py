"""Embedding similarity: samples that a sentence encoder finds like the target task."""

import numpy as np

from igds_utils.selectors.base import Context, Selector, register


@register("embedding")
class Embedding(Selector):
    """Cosine of a sample's sentence embedding and the mean of the target examples', highest first.

    The encoder is the preset's `selection.encoder` and is stored with the scores. What is embedded, and that the
    mean stands for the task, is our choice; BGE and LLM2Vec encoders are used so in the studies of selection.
    """

    needs = ("embeddings", "example_embeddings")
    direction = "highest"

    def score(self, context: Context) -> np.ndarray:
        embeddings = _normalised(context.need("embeddings"))  # (N, d)
        task = _normalised(context.need("example_embeddings")).mean(axis=0)  # (d,)
        return embeddings @ _normalised(task)


def _normalised(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
