"""Metrics against hand-computed values."""

import itertools
import string
from fractions import Fraction
from math import comb
from random import Random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from igds_utils.data import metrics


@pytest.mark.parametrize(
    "text, box",  # the last complete one that is not empty
    [
        ("So \\boxed{38}.", "38"), ("\\boxed{1} and then \\boxed{ 2 }", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{5} but \\boxed{\\frac{1", "5"),
        ("\\boxed{10}\\boxed{}", "10"), ("\\fbox{7} of 9", "7"), ("put it into \\boxed{ }", None),
        ("\\boxed{cut", None), ("no box 5", None),
    ],
)  # fmt: skip
def test_boxed_answer(text, box):
    assert metrics.boxed_answer(text) == box


@pytest.mark.parametrize(
    "text, number",
    [
        ("12 + 7 = 19.", "19"), ("costs $1,234.50 in all", "1234.50"), ("it is -4", "-4"),
        ("−1,234", "-1234"), ("10-5", "5"), ("3, 4, and so on", "4"), ("1,2,3", "3"), ("of .5", ".5"),
        ("是−3/4。", "-3/4"), ("答案是１２", "12"), ("none", None),
    ],
)  # fmt: skip
def test_last_number(text, number):
    assert metrics.last_number(text) == number


BOXED = [  # (what the box holds, reference, whether they are equal)
    ("38", "38", True), ("38.0", "38", True), ("38.", "38", True), ("−5", "-5", True),
    ("\\frac{1}{2}", "0.5", True), ("x^2 + 2x + 1", "(x+1)^2", True), ("50\\%", "0.5", True),
    ("1{,}000", "1000", True), ("18\\text{ cm}", "18", True), ("\\text{(B)}", "B", True),
    ("(1,2)", "1,2", True), ("(1,2)", "(2,1)", False), ("[0,1)", "[0,1]", False), ("\\pm 3", "3", False),
    ("37", "38", False), ("0.333", "\\frac{1}{3}", False), ("4343_{7}", "4343_7", True),
    ("4343_6", "4343_7", False), ("4343", "4343_{7}", False), ("2A_{16}", "2A_{11}", False),
    ("a_1", "a_1", True),
]  # fmt: skip
UNBOXED = [  # (output, reference, whether its answer is equal)
    ("38", "38", True), ("3 of 7", "7", True), ("12 + 7 = 19. 19 * 2 = 38.", "38", True),
    ("The answer is −5.", "-5", True), ("The answer is −5.", "5", False),
    ("The answer is 3/4.", "3/4", True), ("The answer is 3/4.", "4", False),
    ("so \\frac{2}{3}", "\\frac{2}{3}", True), ("so \\frac{2}{3}", "3", False),
    ("it is .5", "0.5", True), ("it is .5", "5", False),
    ("Answer: 2^3", "8", True), ("It costs 1,234.50 in all.", "1234.5", True), ("答案是１２", "12", True),
    ("in base 7: $4343_7$", "4343_7", True), ("it is 4343_6", "4343_7", False),
    ("Put it within \\boxed{}. 12 + 7 = 19", "19", True), ("2 apples, that is 5 \\boxed{}.", "5", True),
    ("so \\boxed{12", "12", True), ("thirty-eight", "38", False), ("", "38", False),
]  # fmt: skip


@pytest.mark.parametrize(
    "output, reference, right", [(f"7 or \\boxed{{{a}}} of 9", r, right) for a, r, right in BOXED] + UNBOXED
)
def test_math_correct(output, reference, right):
    assert metrics.math_correct(output, reference) is right


def test_pass_at_k_is_the_mean_over_all_subsets():
    for n, c, k in itertools.product(range(1, 6), range(6), range(1, 6)):
        if c > n or k > n:
            continue
        hits = sum(min(subset) < c for subset in itertools.combinations(range(n), k))
        assert metrics.pass_at_k(n, c, k) == pytest.approx(float(Fraction(hits, comb(n, k))))


def test_rouge_by_hand():
    """Of 5 words and 4: 4 words, 2 pairs and a subsequence of 4 in common."""
    scores = metrics.rouge("the cat sat on mats", "the cat on mats")
    assert scores == pytest.approx({"rouge1": 2 * 4 / 9, "rouge2": 2 * 2 / 7, "rougeL": 2 * 4 / 9})
    scores = metrics.rouge("b a", "A, b!")  # order counts for L and 2, case and punctuation for none
    assert scores == pytest.approx({"rouge1": 1, "rouge2": 0, "rougeL": 0.5})


def test_rouge_of_ascii_texts_is_rouge_scores_own():
    theirs, random = RougeScorer(["rouge1", "rouge2", "rougeL"]), Random(0)
    for _ in range(50):
        one, other = ("".join(random.choices(string.printable + "aeiou sting" * 20, k=80)) for _ in range(2))
        expected = {kind: score.fmeasure for kind, score in theirs.score(other, one).items()}
        assert metrics.rouge(one, other) == expected


@pytest.mark.parametrize(
    "text, found",
    [
        ("第8天到货3箱梨。", ["第", "8", "天", "到", "货", "3", "箱", "梨"]), ("दिन का", ["दिन", "का"]),
        ("Café, naïve!", ["café", "naïve"]), ("ดีครับ", ["ดี", "ค", "รั", "บ"]),
        ("한국어 문장", ["한국어", "문장"]), ("ラーメン", ["ラ", "ー", "メ", "ン"]), ("🍎🍐 كم", ["🍎", "🍐", "كم"]),
    ],
)  # fmt: skip
def test_words_of_every_script(text, found):
    assert metrics.words(text) == found
    assert set(metrics.rouge(text, text).values()) == {1.0}


def test_chrf_by_hand():
    """Of "ab" against "ac" unigrams give 1/2, bigrams 0; longer ones do not exist."""
    precision = recall = (1 / 2 + 0) / 2
    assert metrics.chrf("ab", "ac") == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))
    assert metrics.chrf("Bonjour le monde", "Bonjour le monde") == 100
    assert metrics.chrf("", "Bonjour") == 0
