"""Metrics: accuracy by math-verify and pass@k, ROUGE-1/2/L, chrF and BLEU. One function a formula."""

from __future__ import annotations

import logging
import re
import threading
from functools import cache
from math import comb

NUMBER = re.compile(r"(?<!\d)-?\d[\d,]*(?:\.\d+)?")
BOX = "\\boxed{"


def boxed_answer(text: str) -> str | None:
    r"""What the last complete \boxed{...} of a text holds, braces inside it included; None without one."""
    start = text.rfind(BOX)
    while start >= 0:
        depth = 1
        for end in range(start + len(BOX), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + len(BOX) : end].strip()
        start = text.rfind(BOX, 0, start)  # the last box was cut off: the one before it
    return None


def last_number(text: str) -> str | None:
    """The last number written in digits, without thousands separators; None without one."""
    found = NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def math_answer(output: str) -> tuple[str | None, bool]:
    r"""The answer of an output, and whether it was boxed: the last \boxed{}, else the last number."""
    boxed = boxed_answer(output)
    return (boxed, True) if boxed is not None else (last_number(output), False)


def math_correct(answer: str | None, reference: str, timeout: int | None = 5) -> bool:
    """Whether an answer, apart from a full stop at its end, is mathematically equal to the reference (math-verify).

    `timeout`: seconds for parsing and for comparing, None for no limit. math-verify limits time by SIGALRM, which
    only the main thread can use; on other threads there is no limit.
    """
    from math_verify import parse, verify

    if not answer:
        return False
    if threading.current_thread() is not threading.main_thread():
        timeout = None
    _quiet_math_verify()
    gold, given = (
        parse(f"\\boxed{{{text}}}", parsing_timeout=timeout) for text in (reference, answer.rstrip(". "))
    )
    return bool(verify(gold, given, timeout_seconds=timeout))


@cache
def _quiet_math_verify() -> None:
    """An answer that cannot be parsed is a wrong answer, not a warning a line; so is the missing time limit."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of pass@k from n samples of which c are right: 1 - C(n-c, k) / C(n, k) (Chen et al., 2021).

    Raises `ValueError` unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def rouge(hypothesis: str, reference: str, stemming: bool = False) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1, each 0 to 1 (rouge_score; without Porter stemming by default).

    rouge_score keeps only Latin letters and digits: not for Chinese.
    """
    kinds = ("rouge1", "rouge2", "rougeL")
    scores = _rouge_scorer(kinds, stemming).score(reference, hypothesis)
    return {kind: float(scores[kind].fmeasure) for kind in kinds}


@cache
def _rouge_scorer(kinds: tuple[str, ...], stemming: bool):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=stemming)


def chrf(hypothesis: str, reference: str) -> float:
    """Sentence chrF2, 0 to 100: F-score of character n-grams up to 6, recall weighted twice (sacrebleu)."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(hypothesis, [reference]).score)


def bleu(hypothesis: str, reference: str, chinese: bool = False) -> float:
    """Sentence BLEU, 0 to 100, with exponential smoothing (sacrebleu); Chinese is split into characters."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(hypothesis, [reference], tokenize="zh" if chinese else "13a").score)
