"""Sentence encoders: texts as vectors whose cosine says how alike they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from igds_utils.config.refs import Ref
from igds_utils.engine.loading import model_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load_encoder(ref: Ref) -> SentenceTransformer:
    """A sentence encoder: one with its own pooling (MiniLM, BGE), or any transformer, which then gets mean pooling.

    No code of a repository is run: an LLM2Vec repository is read as the causal model that it is built on, without
    the two-way attention that its own code switches on. Raises `SourceError` where the reference cannot be resolved.
    """
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(model_folder(ref)))


def embed(encoder: SentenceTransformer, texts: Sequence[str], batch: int = 32) -> np.ndarray:
    """Sentence embeddings, each of length 1: (N, d) float32. Texts beyond the encoder's limit are cut by it."""
    return encoder.encode(list(texts), batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
