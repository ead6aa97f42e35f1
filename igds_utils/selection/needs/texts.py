"""What is read from the text of a sample without its template: sentence embeddings and tags."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pandas as pd

from igds_utils.core.experiment import stamped
from igds_utils.selection import tagging
from igds_utils.selection.encoder import embed, load_encoder
from igds_utils.selection.needs.samples import Measured, Pool, Samples, column
from igds_utils.selectors.context import PoolSample


def embeddings(pool: Pool) -> Measured:
    """Sentence embedding of every sample, instruction and target, by the preset's encoder: (N, d)."""
    return _embeddings(pool.samples)


def example_embeddings(pool: Pool) -> Measured:
    """The same of the target examples: (examples, d)."""
    return _embeddings(pool.target_samples)


def _embeddings(samples: Samples) -> Measured:
    ref = samples.run.preset.selection.encoder
    encoder = cache(lambda: load_encoder(ref))

    def build(part: Sequence[int]) -> pd.DataFrame:
        own = samples.at(part).examples
        documents = [PoolSample(e.id, e.target, e.text).document for e in own]
        return pd.DataFrame({"embedding": list(embed(encoder(), documents))})

    table = samples.in_parts("embeddings", build, encoder=stamped(ref), data=samples.data_version)
    about = {"encoder": ref.model_dump()}
    return Measured(column(table, "embedding"), samples.path("embeddings"), about)


def tags(pool: Pool) -> Measured:
    """Which tag each sample's instruction has: CSR (N, tags) of 0 and 1. Without a tagger: its word n-grams."""
    samples, ref = pool.samples, pool.run.preset.selection.tagger
    dtype = pool.run.preset.chosen.dtype
    lm = cache(lambda: pool.run.load(ref))

    def build(part: Sequence[int]) -> pd.DataFrame:
        texts = [example.text for example in samples.at(part).examples]
        found = tagging.model_tags(lm(), texts) if ref else [tagging.word_ngrams(text) for text in texts]
        return pd.DataFrame({"tags": found})

    table = samples.in_parts(
        "tags", build, tagger=stamped(ref), dtype=dtype if ref else None, data=samples.data_version
    )
    matrix, _ = tagging.tag_matrix(table["tags"])
    about = {
        "tagger": ref.model_dump() if ref else "word n-grams, a stand-in",
        "ngrams": None if ref else tagging.NGRAMS,
    }
    return Measured(matrix, samples.path("tags"), {k: v for k, v in about.items() if v is not None})
