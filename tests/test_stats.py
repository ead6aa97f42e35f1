"""Intervals, paired comparisons and corrections against hand-computed and library values."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from igds_utils.data.stats import (
    _two_level_draws,
    holm,
    interval,
    paired_difference,
    spearman,
)


def test_a_proportion_gets_the_wilson_interval():
    mean, low, high = interval([1, 0, 1, 1, 0, 0, 0, 0, 0, 0])  # 3 of 10
    z, n, p = 1.959964, 10, 0.3
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert mean == pytest.approx(0.3)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-5)


@pytest.mark.parametrize("value, inside", [(0.0, (0.0, 0.2)), (1.0, (0.8, 1.0))])
def test_a_perfect_or_failed_test_is_not_certain(value, inside):
    mean, low, high = interval([value] * 20)
    assert mean == value and inside[0] <= low < high <= inside[1] and high - low > 0.1


def test_other_values_get_the_percentile_bootstrap_of_the_mean():
    values = np.random.default_rng(1).normal(5, 2, 200)
    mean, low, high = interval(values, resamples=4000)
    error = values.std(ddof=1) / np.sqrt(values.size)
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.05)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.05)
    wide = interval(values, confidence=0.99, resamples=4000)
    assert wide.low < low and wide.high > high


def test_the_same_seed_gives_the_same_interval_and_another_one_does_not():
    values = np.random.default_rng(2).random(30)
    assert interval(values, seed=3) == interval(values, seed=3) != interval(values, seed=4)


def test_degenerate_samples():
    single, equal = interval([0.4]), interval([0.4, 0.4, 0.4])
    assert single.mean == 0.4 and np.isnan(single.low) and np.isnan(single.high)
    assert equal == pytest.approx((0.4, 0.4, 0.4))
    with pytest.raises(ValueError, match="no values"):
        interval([])
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        interval([1.0, np.nan])


def test_pairs_are_matched_by_sample_id_in_any_order():
    a = pd.Series({"x": 1.0, "y": 0.5, "z": 0.2})
    b = pd.Series({"z": 0.1, "x": 0.5, "y": 0.5})
    found = paired_difference(a, b)
    assert found.mean == pytest.approx((0.5 + 0.0 + 0.1) / 3) and found.n == 3
    assert found == paired_difference(a.iloc[::-1], b)


def test_pairing_is_narrower_than_two_separate_intervals():
    rng = np.random.default_rng(0)
    difficulty = rng.random(60)
    a, b = pd.Series(difficulty + 0.05 + rng.normal(0, 0.01, 60)), pd.Series(difficulty)
    found = paired_difference(a, b)
    assert 0 < found.low < 0.05 < found.high < 0.1 and found.p_value < 0.01


def test_repeated_rows_of_a_sample_count_once():
    twice = pd.Series([1.0, 0.0, 1.0], index=["x", "x", "y"])
    once = pd.Series([0.0, 0.0], index=["x", "y"])
    found = paired_difference(twice, once)
    assert found.n == 2 and found.mean == pytest.approx(0.75)


def test_sign_flip_p_value_is_exact_on_a_small_sample():
    # differences 1, 1, 1, 1: only all plus and all minus of 16 sign patterns are as extreme
    found = paired_difference(pd.Series([1.1, 2.1, 3.1, 4.1]), pd.Series([0.1, 1.1, 2.1, 3.1]))
    assert found.p_value == pytest.approx(2 / 16)


def test_no_changed_answer_is_not_certainty():
    same = pd.Series([0.0, 1.0, 1.0, 0.0] * 4)
    found = paired_difference(same, same)
    assert found.mean == 0 and found.low == -found.high and 0.1 < found.high < 0.3 and found.p_value == 1
    all_better = paired_difference(pd.Series([1.0] * 16), pd.Series([0.0] * 16))
    assert all_better.mean == 1 and 0 < all_better.low < 1 and all_better.high == 1


def test_a_difference_of_arms_with_several_seeds_covers_the_seeds():
    items = [f"t{i}" for i in range(40)]
    lucky = pd.DataFrame({0: 0.9, 1: 0.5}, index=items)  # no sample varies: all doubt comes from the seeds
    found = paired_difference(lucky, pd.Series(0.6, index=items))
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, -0.1, 0.3))
    assert found.p_value == pytest.approx(1.0, abs=0.1)
    pooled = paired_difference(lucky.mean(axis=1), pd.Series(0.6, index=items))
    assert pooled.low == pooled.high == pytest.approx(0.1)
    assert paired_difference(lucky, pd.Series(0.4, index=items)).p_value == pytest.approx(2 / 2001)


def test_the_spread_of_seeds_is_counted_in_full_however_few_they_are():
    for seeds in ([0.0, 1.0], [0.0, 0.2, 0.7, 1.0]):
        side = np.tile(seeds, (5, 1))  # (n, s)
        draws = _two_level_draws(side, np.zeros((5, 1)), 20000, seed=0)
        assert draws.var() == pytest.approx(np.var(seeds, ddof=1) / len(seeds), rel=0.05)


def test_the_same_samples_are_drawn_for_both_sides():
    difficulty = np.random.default_rng(0).random((30, 1))
    draws = _two_level_draws(difficulty + [0.3, 0.3], difficulty, 200, seed=0)
    assert draws == pytest.approx(0.3)


def test_unmatched_samples_are_named():
    with pytest.raises(ValueError, match=r"1 sample ids are on one side only \(extra\)"):
        paired_difference(pd.Series({"x": 1.0, "extra": 1.0}), pd.Series({"x": 1.0}))


def test_spearman_agrees_with_scipy_and_its_interval_holds_it():
    rng = np.random.default_rng(5)
    x = rng.random(40)
    y = x + rng.normal(0, 0.3, 40)
    x[:4] = x[0]  # ties
    found = spearman(x, y)
    assert found.rho == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert -1 <= found.low < found.rho < found.high <= 1 and np.isnan(found.p_value) and found.n == 40


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("x, y", [([1, 2], [1, 2]), ([1, 1, 1, 1], [1, 2, 3, 4])])
def test_no_correlation_without_variation(x, y):
    assert np.isnan(spearman(x, y)[:4]).all()


@pytest.mark.filterwarnings("error")
def test_spearman_of_few_pairs_has_an_exact_p_value_and_no_interval():
    assert spearman([1, 2, 3], [3, 1, 2]).rho == pytest.approx(-0.5)
    reversed_ranks = spearman([1, 2, 3, 4], [9, 7, 5, 3])
    assert reversed_ranks.rho == pytest.approx(-1) and np.isnan(reversed_ranks[1:3]).all()
    assert reversed_ranks.p_value == pytest.approx(2 / 24)  # of 4! orders, the two extreme ones
    assert spearman([1, 2, 2, 4], [1, 2, 3, 3]).p_value == pytest.approx(2 * 4 / 24)  # ties


def test_holm_against_a_hand_computed_case():
    assert holm([0.01, 0.04, 0.03, np.nan, 0.5]) == pytest.approx(
        [0.04, 0.09, 0.09, np.nan, 0.5], nan_ok=True
    )
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
