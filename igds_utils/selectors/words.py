"""How texts are cut into words for selectors that compare words."""

import re

# Chinese, Japanese and Korean write no spaces between words: each character is one.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W\d_{_CJK}]+|\d+|[^\w\s]|_")


def words(text: str) -> list[str]:
    """Lower-case words, runs of digits, and every other mark by itself; nothing but white space is left out.

    Retrieval libraries drop single characters and frequent words; in a word problem those are the numbers and the
    operators.
    """
    return _WORD.findall(text.lower())
