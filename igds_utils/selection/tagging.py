"""Tags of instructions, for #InsTag: from a tagging language model, or word n-grams where there is none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import regex
from scipy.sparse import csr_matrix

from igds_utils.engine.generation import generate
from igds_utils.engine.lm import LM
from igds_utils.engine.prompts import as_text
from igds_utils.selectors.words import words

MAX_NEW_TOKENS = 256  # about a dozen tags with their explanations
NGRAMS = (1, 2)
# The words that InsTagger was trained on; other models understand them too.
INSTRUCTION = (
    "You are a helpful assistant. Please identify tags of user intentions in the following user query and provide an "
    'explanation for each tag. Please respond in the JSON format {{"tag": str, "explanation": str}}.\nQuery: {text}'
)


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


def normalise(tag: str) -> str:
    """A tag in lower case, without punctuation, each word cut to its stem (Porter); "" where nothing is left."""
    return " ".join(_stem(word) for word in words(tag) if any(map(str.isalnum, word)))


@cache
def _stem(word: str) -> str:
    return _stemmer().stem(word)


@cache
def _stemmer():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


def tag_matrix(tags: Iterable[Iterable[str]]) -> tuple[csr_matrix, list[str]]:
    """Which sample has which tag after normalisation: CSR (N, tags) of 0 and 1, and the tags of its columns, sorted."""
    sets = [{normalise(tag) for tag in one} - {""} for one in tags]
    names = sorted(set().union(*sets))
    column = {name: number for number, name in enumerate(names)}
    rows = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
    columns = np.array([column[name] for one in sets for name in sorted(one)], dtype=int)
    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(sets), len(names))), names
