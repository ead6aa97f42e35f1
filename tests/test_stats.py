"""Intervals, paired comparisons and corrections against hand-computed and library values."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from igds_utils.data.stats import holm, interval, paired_difference, spearman, standard_error


def test_a_proportion_gets_the_wilson_interval():
    mean, low, high = interval([1, 0, 1, 1, 0, 0, 0, 0, 0, 0])  # 3 of 10
    z, n, p = 1.959964, 10, 0.3
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (mean, low, high) == pytest.approx((0.3, centre - half, centre + half), abs=1e-5)
    for value in (0.0, 1.0):  # a perfect or a failed test is not certain
        found = interval([value] * 20)
        assert found.mean == value and 0.1 < found.high - found.low < 0.2


def test_other_values_get_the_percentile_bootstrap_of_the_mean():
    values = np.random.default_rng(1).normal(5, 2, 200)
    mean, low, high = interval(values, resamples=4000)
    error = values.std(ddof=1) / np.sqrt(values.size)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.05)
    wide = interval(values, confidence=0.99, resamples=4000)
    assert wide.low < low and wide.high > high
    assert interval(values, seed=3) == interval(values, seed=3) != interval(values, seed=4)


def test_degenerate_samples():
    assert interval([0.4]) == pytest.approx((0.4, np.nan, np.nan), nan_ok=True)
    assert interval([0.4, 0.4, 0.4]) == pytest.approx((0.4, 0.4, 0.4))
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
    twice = pd.Series([1.0, 0.0, 1.0], index=["x", "x", "y"])  # rows of one sample count once
    assert paired_difference(twice, pd.Series({"x": 0.0, "y": 0.0}))[0::4] == pytest.approx((0.75, 2))
    with pytest.raises(ValueError, match=r"2 sample ids are on one side only \(x, z\)"):
        paired_difference(a, b.iloc[2:])


def test_no_changed_answer_is_not_certainty():
    same = pd.Series([0.0, 1.0, 1.0, 0.0] * 4)
    found = paired_difference(same, same)
    assert found.mean == 0 and found.low == -found.high
    assert 0.1 < found.high < 0.3 and np.isnan(found.p_value)
    all_better = paired_difference(pd.Series([1.0] * 16), pd.Series([0.0] * 16))
    assert all_better.mean == 1 and 0 < all_better.low < 1 and all_better.high == 1


def test_without_variation_of_samples_or_of_trainings_it_is_a_known_t_test():
    """Trainings differ alike on every sample: two-sample test; they do not differ: paired."""
    rng = np.random.default_rng(0)
    luck, more = rng.normal(0.5, 0.1, 3), rng.normal(0.4, 0.1, 5)
    unpaired = paired_difference(*(pd.DataFrame(np.tile(seeds, (12, 1))) for seeds in (luck, more)))
    assert unpaired.mean == pytest.approx(luck.mean() - more.mean())
    assert unpaired.trainings == (3, 5)
    a, b = rng.random(12), rng.random(12)
    paired = paired_difference(pd.DataFrame({0: a, 1: a, 2: a}), pd.DataFrame({0: b, 1: b}))
    tests = scipy_stats.ttest_ind(luck, more), scipy_stats.ttest_rel(a, b)
    for found, known in zip((unpaired, paired), tests, strict=True):
        assert found.p_value == pytest.approx(known.pvalue)
        assert (found.low, found.high) == pytest.approx(known.confidence_interval())


def test_a_side_trained_once_takes_the_luck_of_training_from_the_other():
    lucky = pd.DataFrame({0: 0.9, 1: 0.5}, index=range(40))  # the variance of a training is 0.08
    for other, error, judged in ((pd.Series(0.6, range(40)), 0.04, True),
                                 (pd.DataFrame({0: 0.6}, range(40)), 0.04 + 0.08, False)):  # fmt: skip
        found = paired_difference(lucky, other)
        assert found.mean == pytest.approx(0.1) and found.judged is judged
        assert found.high - found.mean == pytest.approx(scipy_stats.t.ppf(0.975, 1) * np.sqrt(error))
        assert found.p_value == pytest.approx(2 * scipy_stats.t.sf(0.1 / np.sqrt(error), 1))


@pytest.mark.parametrize("trainings", [(3, 3), (2, 5), (1, 5), (5, 0)])
@pytest.mark.parametrize("luck", [0, 1, 2], ids=lambda luck: f"luck {luck}")
def test_the_interval_of_a_difference_covers_what_it_claims(trainings, luck):
    """luck: standard deviation of a training, in standard errors over samples and answers."""
    rng, draws, n = np.random.default_rng(1), 6000, 24
    unit = np.sqrt((1 + sum(1 / max(s, 1) for s in trainings)) / n)

    def side(s):
        return (
            rng.normal(0, np.sqrt(0.5), (draws, n, 1))  # of a sample and an arm
            + rng.normal(0, luck * unit if s else 0, (draws, 1, max(s, 1)))
            + rng.normal(0, 1, (draws, n, max(s, 1)))  # of a single answer
        )

    a, b = map(side, trainings)
    error, freedom = standard_error(a, b, trainings)
    reach = scipy_stats.t.ppf(0.975, freedom) * error
    assert 0.93 <= (np.abs(a.mean((1, 2)) - b.mean((1, 2))) <= reach).mean() <= 0.97


def test_spearman_agrees_with_scipy_and_its_interval_holds_it():
    rng = np.random.default_rng(5)
    x = rng.random(40)
    y = x + rng.normal(0, 0.3, 40)
    x[:4] = x[0]  # ties
    found = spearman(x, y)
    assert found.rho == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert -1 <= found.low < found.rho < found.high <= 1
    assert np.isnan(found.p_value) and found.n == 40


@pytest.mark.filterwarnings("error")
def test_spearman_of_few_pairs_has_an_exact_p_value_and_no_interval():
    assert spearman([1, 2, 3], [3, 1, 2]).rho == pytest.approx(-0.5)
    expected = (-1, np.nan, np.nan, 2 / 24, 4)  # of 4! orders, the two extreme ones
    assert spearman([1, 2, 3, 4], [9, 7, 5, 3]) == pytest.approx(expected, nan_ok=True)
    assert spearman([1, 2, 2, 4], [1, 2, 3, 3]).p_value == pytest.approx(2 * 4 / 24)  # ties


def test_holm_against_a_hand_computed_case():
    expected = [0.04, 0.09, 0.09, np.nan, 0.5]
    assert holm([0.01, 0.04, 0.03, np.nan, 0.5]) == pytest.approx(expected, nan_ok=True)
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
