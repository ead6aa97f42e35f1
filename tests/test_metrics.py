"""Metrics against hand-computed values."""

import itertools
import threading
from fractions import Fraction
from math import comb

import pytest

from igds_utils.data import metrics


@pytest.mark.parametrize(
    "text, answer",
    [
        ("So \\boxed{38}.", "38"),
        ("\\boxed{1} and then \\boxed{ 2 }", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{5} but \\boxed{\\frac{1", "5"),
        ("\\boxed{cut", None),
        ("no box 5", None),
    ],
)
def test_last_complete_box(text, answer):
    assert metrics.boxed_answer(text) == answer


@pytest.mark.parametrize(
    "text, number",
    [
        ("12 + 7 = 19.", "19"),
        ("costs $1,234.50 in all", "1234.50"),
        ("it is -4", "-4"),
        ("10-5", "5"),
        ("3, 4, and so on", "4"),
        ("none", None),
    ],
)
def test_last_number(text, number):
    assert metrics.last_number(text) == number


def test_a_box_goes_before_a_later_number():
    assert metrics.math_answer("\\boxed{3} of 7") == ("3", True)
    assert metrics.math_answer("3 of 7") == ("7", False)
    assert metrics.math_answer("") == (None, False)


@pytest.mark.parametrize(
    "answer, reference, right",
    [
        ("38", "38", True),
        ("38.0", "38", True),
        ("38.", "38", True),
        ("\\frac{1}{2}", "0.5", True),
        ("x^2 + 2x + 1", "(x+1)^2", True),
        ("37", "38", False),
        ("thirty-eight", "38", False),
        ("", "38", False),
        (None, "38", False),
    ],
)
def test_math_correct(answer, reference, right):
    assert metrics.math_correct(answer, reference) is right


def test_math_correct_works_off_the_main_thread_and_without_a_time_limit():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(metrics.math_correct("\\frac{2}{4}", "\\frac{1}{2}"))
    )
    thread.start()
    thread.join()
    assert found == [True]
    assert metrics.math_correct("4", "4", timeout=None)


def test_pass_at_k_by_hand():
    assert metrics.pass_at_k(1, 1, 1) == 1 and metrics.pass_at_k(1, 0, 1) == 0
    assert metrics.pass_at_k(8, 2, 1) == pytest.approx(2 / 8)
    assert metrics.pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert metrics.pass_at_k(8, 1, 8) == 1
    assert metrics.pass_at_k(8, 7, 2) == 1


def test_pass_at_k_is_the_mean_over_all_subsets():
    for n, c, k in itertools.product(range(1, 6), range(6), range(1, 6)):
        if c > n or k > n:
            continue
        hits = sum(min(subset) < c for subset in itertools.combinations(range(n), k))
        assert metrics.pass_at_k(n, c, k) == pytest.approx(float(Fraction(hits, comb(n, k))))


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        metrics.pass_at_k(n, c, k)


def test_rouge_by_hand():
    """Hypothesis of 5 words, reference of 4: 4 words, 2 pairs and a subsequence of 4 in common."""
    scores = metrics.rouge("the cat sat on mats", "the cat on mats")
    assert scores == pytest.approx({"rouge1": 2 * 4 / 9, "rouge2": 2 * 2 / 7, "rougeL": 2 * 4 / 9})
    scores = metrics.rouge("b a", "A, b!")  # order counts for L and 2, case and punctuation for none
    assert scores == pytest.approx({"rouge1": 1, "rouge2": 0, "rougeL": 0.5})


def test_rouge_stems_only_if_asked():
    assert metrics.rouge("cats", "cat")["rouge1"] == 0
    assert metrics.rouge("cats", "cat", stemming=True)["rouge1"] == 1


def test_chrf_by_hand():
    """One letter in common: of "ab" against "ac" unigrams give 1/2, bigrams 0, longer ones do not exist."""
    precision = recall = (1 / 2 + 0) / 2
    assert metrics.chrf("ab", "ac") == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))
    assert metrics.chrf("Bonjour le monde", "Bonjour le monde") == 100
    assert metrics.chrf("", "Bonjour") == 0


def test_bleu_by_hand():
    """Four of five words and then fewer: precisions 4/5, 3/4, 2/3, 1/2 and no brevity penalty."""
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert metrics.bleu("a b c d e", "a b c d f") == pytest.approx(expected)


def test_chinese_bleu_counts_characters():
    assert metrics.bleu("要忽略的代码", "要忽略的诊断", chinese=True) > 30
    assert metrics.bleu("要忽略的代码", "要忽略的诊断") < 1
