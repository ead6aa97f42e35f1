"""What a feature stands for: rising words against hand-computed log-odds."""

import math

import numpy as np
import pytest

from igds_utils.analysis import semantics
from igds_utils.plots import rising_words


def test_words_are_runs_of_letters_in_any_script():
    assert semantics.words("Step 1: L'été, 12 pommes_vertes 你好!") == [
        "step", "l'été", "pommes", "vertes", "你", "好",
    ]  # fmt: skip
    assert semantics.words("दिन किताब") == ["दिन", "किताब"]  # vowel signs belong to their letters
    assert semantics.words("Ann's 'dogs' can’t") == ["ann's", "dogs", "can’t"]


def test_lexical_shift_is_the_hand_computed_log_odds_ratio():
    found = semantics.lexical_shift(["a a a b"], ["a b b c"], prior=8).set_index("word")
    # both groups together: a 4, b 3, c 1 of 8 words, so the pseudo-counts are 4, 3, 1
    after, before = math.log((1 + 4) / (2 + 3 + 1 + 1)), math.log((3 + 4) / (1 + 3 + 0 + 1))
    assert found.loc["a", "log_odds"] == pytest.approx(after - before)
    assert found.loc["a", "z"] == pytest.approx((after - before) / math.sqrt(1 / 5 + 1 / 7))
    assert found.index[0] in "bc" and found.index[-1] == "a"
    assert found.loc["c", ["original", "amplified"]].tolist() == [0, 1]


def test_outputs_that_only_get_shorter_or_longer_lift_no_word():
    random = np.random.default_rng(0)
    zipf = 1 / np.arange(1, 27)
    draw = lambda n: list(random.choice(list("abcdefghijklmnopqrstuvwxyz"), n, p=zipf / zipf.sum()))  # noqa: E731
    texts = [["to", "solve", "this", *draw(random.integers(30, 60)), "final", "answer"] for _ in range(48)]
    original = [" ".join(text) for text in texts]
    for share in (0.2, 0.5, 0.9):
        short = [" ".join(text[: int(share * len(text))]) for text in texts]
        assert not semantics.lexical_shift(original, short)["rises"].any()
        planted = [text + " step" * (i % 2) for i, text in enumerate(short)]
        found = semantics.lexical_shift(original, planted)
        assert found.loc[found["rises"], "word"].tolist() == ["step"] and found["rises"][0]
    longer = semantics.lexical_shift(*([" ".join(draw(n)) for _ in range(48)] for n in (30, 90)))
    assert not longer["rises"].any()


def test_a_word_rises_only_if_swapped_outputs_seldom_lift_any_as_high():
    same = ["the sum of apples is now four"] * 30
    steady = semantics.lexical_shift(same, [text + " step" for text in same])
    assert steady["word"].tolist()[0] == "step"
    assert steady["p"][0] < 0.05 and (steady["p"][1:] > 0.5).all()
    # one output that repeats a word: z is as high, but one swap in two lifts it as well
    once = semantics.lexical_shift(same, [*same[1:], same[0] + " step" * 30])
    assert once["z"][0] == pytest.approx(steady["z"][0]) and once["p"][0] > 0.4
    figures = [rising_words({"math": table}, {"math": "l6_p9"}) for table in (steady, once)]
    some, none = (figure.axes[0].patches for figure in figures)
    beyond, never = ({bar.get_facecolor() for bar in bars} for bars in (some, none))
    assert len(beyond) == len(never) == 1 and beyond != never
