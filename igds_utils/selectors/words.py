"""How texts are cut into words for selectors that compare words."""

import regex

from igds_utils.data.metrics import UNSPACED

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
