"""What is read from the text of a sample without its template: sentence embeddings, and tags for #InsTag."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import regex
from scipy.sparse import csr_matrix

from igds_utils.config.refs import Ref
from igds_utils.engine.generation import generate
from igds_utils.engine.lm import LM
from igds_utils.engine.loading import model_folder
from igds_utils.engine.prompts import as_text
from igds_utils.selectors.similarity import words

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MAX_NEW_TOKENS = 256  # about a dozen tags with their explanations
NGRAMS = (1, 2)
# The words that InsTagger was trained on; other models understand them too.
INSTRUCTION = (
    "You are a helpful assistant. Please identify tags of user intentions in the following user query and provide an "
    'explanation for each tag. Please respond in the JSON format {{"tag": str, "explanation": str}}.\nQuery: {text}'
)


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


def model_tags(lm: LM, texts: Sequence[str], rows: int = 16) -> list[list[str]]:
    """Tags of each text as a tagging model writes them, greedily decoded, `rows` texts together."""
    prompts = [_render(lm, INSTRUCTION.format(text=as_text(text, lm.tokenizer))) for text in texts]
    return [parse_tags(outputs[0]) for outputs in generate(lm, prompts, MAX_NEW_TOKENS, rows=rows)]


def _render(lm: LM, text: str) -> str:
    if not lm.tokenizer.chat_template:
        return f"{text}\nAssistant:"
    turn = [{"role": "user", "content": text}]
    return lm.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def parse_tags(output: str) -> list[str]:
    """Every value of "tag" in what a model wrote, also where its JSON breaks off; [] where there is none."""
    return re.findall(r'"tag"\s*:\s*"([^"]+)"', output)


def word_ngrams(text: str) -> list[str]:
    """Distinct runs of one and two words of a text; punctuation ends a run. A stand-in for tags, no more."""
    found: dict[str, None] = {}
    for run in regex.split(r"[^\w\s\p{M}]+", text):
        parts = words(run)
        for n in NGRAMS:
            found |= dict.fromkeys(" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1))
    return list(found)


def tag_matrix(tags: Iterable[Iterable[str]]) -> tuple[csr_matrix, list[str]]:
    """Which sample has which tag after normalisation: CSR (N, tags) of 0 and 1, and the tags of its columns, sorted."""
    sets = [{normalise(tag) for tag in one} - {""} for one in tags]
    names = sorted(set().union(*sets))
    column = {name: number for number, name in enumerate(names)}
    rows = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
    columns = np.array([column[name] for one in sets for name in sorted(one)], dtype=int)
    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(sets), len(names))), names


def normalise(tag: str) -> str:
    """A tag in lower case, without punctuation, each word cut to its stem (Porter); "" where nothing is left."""
    return " ".join(_stem()(word) for word in words(tag) if any(map(str.isalnum, word)))


@cache
def _stem() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    return cache(PorterStemmer().stem)
