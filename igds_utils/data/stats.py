"""Intervals, paired comparisons and corrections: every "is it different?" of the project is answered here.

What is resampled is the test samples: an interval says how far a score would move on other samples of the same kind.
The luck of a training run shows only in more seeds: a difference of arms of which one was trained several times
resamples its seeds, too.

    mean, low, high = interval(scores, confidence=0.95, resamples=2000, seed=0)
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

FEW = 10  # pairs of a rank correlation


class Interval(NamedTuple):
    """A mean and its confidence interval, in the units of the values."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of a - b over common samples, its interval, its two-sided p value, and how many samples there were."""

    mean: float
    low: float
    high: float
    p_value: float
    n: int


class Correlation(NamedTuple):
    """A rank correlation of n pairs with its interval, or with an exact p value where pairs are few."""

    rho: float
    low: float
    high: float
    p_value: float
    n: int


def interval(values, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` (n,) with a confidence interval.

    One rule decides: values that are all 0 or 1 are a proportion and get the Wilson interval, which stays honest
    at 0 %, at 100 % and at small n; everything else gets the percentile bootstrap of the mean. A single value that
    is no proportion has no interval (nan, nan); equal values have one of width zero, because nothing was seen to
    vary. Differences (which may also be all 0 or 1) belong to `paired_difference`. Raises ValueError for no value
    and for values that are not finite.
    """
    x = _finite(values, "interval")
    mean = float(x.mean())
    if np.isin(x, (0.0, 1.0)).all():
        bounds = _wilson(int(x.sum()), x.size, confidence)
        return Interval(mean, *bounds)
    return Interval(mean, *_bootstrap_mean(x, confidence, resamples, seed))


def paired_difference(a, b, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Difference:
    """Mean of a - b, matched by sample id, with percentile bootstrap and p value.

    `a` and `b` are Series (or dicts) indexed by sample id, or frames with one column per training seed. Several rows of
    one id (completions) are averaged first, so that a sample counts once. Where a side has several seeds, interval and
    p value cover samples and seeds (`_two_level_draws`); otherwise samples alone, and p is that of a sign-flip test.
    Where both are 0/1 scores and all samples changed alike (or not at all), the bootstrap would claim certainty; the
    interval then reaches as far as the Wilson limit on the share of samples that could behave otherwise. A single
    sample that is no 0/1 score has no interval (nan, nan). Raises ValueError where one side has samples that the other
    has not.
    """
    a, b = _by_sample(a), _by_sample(b)
    if unmatched := sorted(map(str, a.index.symmetric_difference(b.index))):
        shown = ", ".join(unmatched[:5])
        raise ValueError(
            f"paired difference: {len(unmatched)} sample ids are on one side only ({shown}); "
            "evaluate both on one test set"
        )
    # sorted, because the order of rows must not reach the resampling
    a, b = (side.sort_index().to_numpy(float) for side in (a, b))  # (n, seeds)
    mean_a, mean_b = a.mean(axis=1), b.mean(axis=1)
    d = _finite(mean_a - mean_b, "paired difference")
    mean = float(d.mean())
    if np.ptp(d) == 0 and np.isin([mean_a, mean_b], (0.0, 1.0)).all():
        reach = (1 + abs(mean)) * _wilson(0, d.size, confidence)[1]
        low, high = max(-1.0, mean - reach), min(1.0, mean + reach)
        return Difference(mean, low, high, _sign_flip(d, resamples, seed), d.size)
    if a.shape[1] == b.shape[1] == 1:
        low, high = _bootstrap_mean(d, confidence, resamples, seed)
        return Difference(mean, low, high, _sign_flip(d, resamples, seed), d.size)
    draws = _two_level_draws(a, b, resamples, seed)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    beyond = min((draws <= 0).sum(), (draws >= 0).sum())
    p_value = min(1.0, 2 * (1 + beyond) / (1 + resamples))
    return Difference(mean, float(low), float(high), float(p_value), d.size)


def spearman(x, y, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Correlation:
    """Spearman's rank correlation of x (n,) and y (n,) with a percentile bootstrap over pairs.

    Fewer than `FEW` pairs get a p value over all n! pairings instead: their bootstrap would claim certainty. With fewer
    than three, or where one side does not vary, there is no correlation. What does not exist is nan.
    """
    x, y = _finite(x, "spearman"), _finite(y, "spearman")
    if x.size != y.size:
        raise ValueError(f"spearman: {x.size} and {y.size} values cannot be paired")
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(np.nan, np.nan, np.nan, np.nan, x.size)
    rho = float(_rank_correlation(x, y))
    if x.size < FEW:
        ranks, others = stats.rankdata(x), stats.rankdata(y) - (y.size + 1) / 2
        exact = stats.permutation_test(
            (ranks,), lambda ranks, axis: (ranks * others).sum(axis), permutation_type="pairings", vectorized=True,
            n_resamples=np.inf, batch=10_000,
        )  # fmt: skip
        return Correlation(rho, np.nan, np.nan, float(exact.pvalue), x.size)
    with warnings.catch_warnings():  # a resample of one repeated pair has no ranks: scipy warns, we drop it
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (x, y), _rank_correlation, paired=True, vectorized=True, n_resamples=resamples, batch=256,
            confidence_level=confidence, method="percentile", rng=np.random.default_rng(seed),
        )  # fmt: skip
    drawn = result.bootstrap_distribution
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Correlation(rho, float(low), float(high), np.nan, x.size)


def holm(p_values) -> np.ndarray:
    """Holm's step-down adjustment of p values (m,): reject where the result is below the level; nan stays nan."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted


def _finite(values, what: str) -> np.ndarray:
    x = np.asarray(values, dtype=float).ravel()
    if x.size == 0:
        raise ValueError(f"{what}: no values; was the stage that makes them run?")
    if bad := int((~np.isfinite(x)).sum()):
        raise ValueError(
            f"{what}: {bad} of {x.size} values are not finite; drop or repair these samples first"
        )
    return x


def _by_sample(values) -> pd.DataFrame:
    frame = values if isinstance(values, pd.DataFrame) else pd.Series(values).to_frame()
    return frame.groupby(level=0).mean()


@cache  # the same few counts come up over and over
def _wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    bounds = stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(bounds.low), float(bounds.high)


def _bootstrap_mean(x: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    if x.size == 1:
        return np.nan, np.nan
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    result = stats.bootstrap(
        (x,), np.mean, vectorized=True, n_resamples=resamples, batch=256,
        confidence_level=confidence, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _two_level_draws(a: np.ndarray, b: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap of mean(a) - mean(b) over samples and training seeds: (n, seeds of each side) -> (resamples,).

    Every draw takes n samples, the same for both sides, and for each side s - 1 of its s seeds, all with replacement.
    With s of s the variance between seeds would come out too small by (s - 1) / s, which is half for two seeds. What
    is luck of a single answer counts on both levels, so the draws err on the wide side.
    """
    rng, n = np.random.default_rng(seed), len(a)
    samples = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n  # (B, n)

    def drawn(side: np.ndarray) -> np.ndarray:
        s = side.shape[1]
        seeds = rng.multinomial(max(1, s - 1), np.full(s, 1 / s), size=resamples) / max(1, s - 1)  # (B, s)
        return ((samples @ side) * seeds).sum(axis=1)

    return drawn(a) - drawn(b)


def _sign_flip(d: np.ndarray, resamples: int, seed: int) -> float:
    """Two-sided p value of the mean of d (n,) under exchangeable signs, exact where 2^n <= resamples."""
    if d.size == 1 or not d.any():
        return 1.0
    result = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", vectorized=True, n_resamples=resamples, batch=256,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def _rank_correlation(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    rx = stats.rankdata(x, axis=axis)
    ry = stats.rankdata(y, axis=axis)
    rx = rx - rx.mean(axis=axis, keepdims=True)
    ry = ry - ry.mean(axis=axis, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt((rx**2).sum(axis=axis) * (ry**2).sum(axis=axis))
        return (rx * ry).sum(axis=axis) / scale
