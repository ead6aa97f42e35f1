"""Intervals, paired comparisons and corrections: every "is it different?" of the project is answered here.

An interval of one score covers the choice of test samples. A difference of arms covers the luck of training as well
where one of them was trained several times.
"""

import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

FEW = 10  # pairs of a rank correlation
TOLERANCE = 1e-12  # relative; what differs by less differs by rounding, in which processors differ


class Interval(NamedTuple):
    """A mean and its confidence interval, in the units of the values."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of a - b over common samples, its interval, its two-sided p value, and how many samples there were.

    trainings: those of either side, 0 for a model that is given as it stands.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int
    trainings: tuple[int, int] = (0, 0)

    @property
    def judged(self) -> bool:
        """Whether the interval allows a verdict: a side that was trained once may have been lucky."""
        return 1 not in self.trainings


class Correlation(NamedTuple):
    """A rank correlation of n pairs with its interval, or with an exact p value where pairs are few."""

    rho: float
    low: float
    high: float
    p_value: float
    n: int


def interval(values, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` (n,) with a confidence interval.

    Values that are all 0 or 1 are a proportion and get the Wilson interval, which stays honest at 0 %, at 100 % and at
    small n; all others get the percentile bootstrap of the mean. A single value that is no proportion has no interval
    (nan, nan); equal values have one of width zero, because nothing was seen to vary. Differences (of 0/1 scores, too)
    belong to `paired_difference`. Raises ValueError for no value and for values that are not finite.
    """
    x = _finite(values, "interval")
    share = np.isin(x, (0.0, 1.0)).all()
    bounds = _wilson(int(x.sum()), x.size, confidence) if share else _bootstrap_mean(x, confidence, resamples, seed)
    return Interval(float(x.mean()), *bounds)


def paired_difference(a, b, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Difference:
    """Mean of a - b, matched by sample id, with its interval and p value.

    a, b: frames by sample id with one column per training, or Series (or dicts) of a model as it stands, which has no
    luck of training. Rows of one id (completions) are averaged first.

    Where a side was trained several times, interval and p value cover samples and training (`standard_error`, Student's
    t); otherwise the samples alone: percentile bootstrap and sign-flip test. Where all samples of 0/1 scores changed
    alike (or not at all), the bootstrap would claim certainty: the interval then reaches to the Wilson limit on the
    share of samples that could behave otherwise. A single sample that is no 0/1 score has no interval (nan, nan).
    Raises ValueError where one side has samples that the other has not.
    """
    trainings = tuple(side.shape[1] if isinstance(side, pd.DataFrame) else 0 for side in (a, b))
    frames = [side if isinstance(side, pd.DataFrame) else pd.Series(side).to_frame() for side in (a, b)]
    a, b = (frame.groupby(level=0).mean() for frame in frames)  # sorted: the order of rows must not matter
    if unmatched := sorted(map(str, a.index.symmetric_difference(b.index))):
        raise ValueError(
            f"paired difference: {len(unmatched)} sample ids are on one side only ({', '.join(unmatched[:5])}); "
            "evaluate both on one test set"
        )
    a, b = a.to_numpy(float), b.to_numpy(float)  # (n, trainings)
    mean_a, mean_b = a.mean(axis=1), b.mean(axis=1)
    d = _finite(mean_a - mean_b, "paired difference")
    nothing = TOLERANCE * max(np.abs(a).max(), np.abs(b).max())
    d[np.abs(d) <= nothing] = 0.0
    mean, p_value = float(d.mean()), None
    if np.ptp(d) == 0 and np.isin([mean_a, mean_b], (0.0, 1.0)).all():
        reach = (1 + abs(mean)) * _wilson(0, d.size, confidence)[1]
        low, high = max(-1.0, mean - reach), min(1.0, mean + reach)
    elif max(trainings) > 1 and d.size > 1 and (found := standard_error(a, b, trainings))[0] > nothing:
        error, freedom = map(float, found)
        reach = stats.t.ppf((1 + confidence) / 2, freedom) * error
        low, high, p_value = mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / error, freedom))
    else:
        low, high = _bootstrap_mean(d, confidence, resamples, seed)
    mean, low, high = (0.0 if abs(value) <= nothing else float(value) for value in (mean, low, high))
    p_value = _sign_flip(d, resamples, seed) if p_value is None else p_value
    return Difference(mean, low, high, p_value, d.size, trainings)


def standard_error(a: np.ndarray, b: np.ndarray, trainings: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of mean(a) - mean(b) over samples and trainings, and the degrees of freedom of its t.

    a: (..., n, s_a) and b: (..., n, s_b), scores of the same n samples by s trainings each; results (...). trainings:
    (s_a, s_b), 0 in place of the 1 of a model as it stands. Three mean squares (Satterthwaite, 1946): of the samples'
    mean differences, which hold the luck of single answers, too; of the trainings' mean scores; and of what is left in
    an answer (interaction), which is taken off the second, down to zero. A side that was trained once takes the
    variance of training from the other.
    """
    n, freedom = a.shape[-2], sum(s - 1 for s in trainings if s)
    weight = sum(1 / s for s in trainings if s)
    items = (a.mean(-1) - b.mean(-1)).var(-1, ddof=1) / n
    between, rest = 0.0, 0.0
    for side in (a, b):
        moved = side.mean(-2, keepdims=True) - side.mean((-2, -1), keepdims=True)  # (..., 1, s)
        left = side - side.mean(-1, keepdims=True) - moved  # (..., n, s)
        between = between + (moved**2).sum((-2, -1)) / freedom
        rest = rest + (left**2).sum((-2, -1)) / (freedom * (n - 1) * n)
    luck = np.maximum(between - rest, 0.0)
    doubt = items**2 / (n - 1)
    doubt = doubt + np.where(
        luck > TOLERANCE * rest, weight**2 * (between**2 + rest**2 / (n - 1)) / freedom, 0.0
    )
    variance = items + weight * luck
    return np.sqrt(variance), np.maximum(variance**2 / np.maximum(doubt, np.finfo(float).tiny), freedom)


def spearman(
    x, y, confidence: float = 0.95, resamples: int = 2000, seed: int = 0, permute: bool = False
) -> Correlation:
    """Spearman's rank correlation of x (n,) and y (n,) with a percentile bootstrap over pairs.

    Fewer than `FEW` pairs get a p value over all n! pairings instead: their bootstrap would claim certainty. permute:
    more pairs get one too, over `resamples` random pairings. Fewer than three pairs, or a side that does not vary, have
    no correlation. What does not exist is nan.
    """
    x, y = _levels(_finite(x, "spearman")), _levels(_finite(y, "spearman"))
    if x.size != y.size:
        raise ValueError(f"spearman: {x.size} and {y.size} values cannot be paired")
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(np.nan, np.nan, np.nan, np.nan, x.size)
    rho = float(_rank_correlation(x, y))
    p_value = np.nan
    if x.size < FEW or permute:
        ranks, others = stats.rankdata(x), stats.rankdata(y) - (y.size + 1) / 2
        test = stats.permutation_test(
            (ranks,), lambda ranks, axis: (ranks * others).sum(axis), permutation_type="pairings", vectorized=True,
            n_resamples=np.inf if x.size < FEW else resamples, batch=10_000, rng=np.random.default_rng(seed),
        )  # fmt: skip
        p_value = float(test.pvalue)
    if x.size < FEW:
        return Correlation(rho, np.nan, np.nan, p_value, x.size)
    with warnings.catch_warnings():  # a resample of one repeated pair has no ranks: scipy warns, we drop it
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (x, y), _rank_correlation, paired=True, vectorized=True, n_resamples=resamples, batch=256,
            confidence_level=confidence, method="percentile", rng=np.random.default_rng(seed),
        )  # fmt: skip
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(result.bootstrap_distribution, [tail, 1 - tail])
    return Correlation(rho, float(low), float(high), p_value, x.size)


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
        raise ValueError(f"{what}: {bad} of {x.size} values are not finite; drop or repair these samples first")
    return x


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


def _sign_flip(d: np.ndarray, resamples: int, seed: int) -> float:
    """Two-sided p value of the mean of d (n,) under exchangeable signs, exact where 2^n <= resamples.

    Draws that equal the observed mean up to rounding count as at least as far from zero.
    """
    if d.size == 1 or not d.any():
        return 1.0
    exact, rng = 2**d.size <= resamples, np.random.default_rng(seed)
    if exact:
        sums = (1.0 - 2.0 * (np.arange(2**d.size)[:, None] >> np.arange(d.size) & 1)) @ d
    else:  # in parts, because a benchmark has thousands of questions
        parts = [min(256, resamples - start) for start in range(0, resamples, 256)]
        sums = np.concatenate([rng.choice((-1.0, 1.0), (part, d.size)) @ d for part in parts])
    beyond = (np.abs(sums) >= abs(d.sum()) - TOLERANCE * np.abs(d).sum()).sum()
    return float(beyond / sums.size if exact else (1 + beyond) / (1 + sums.size))


def _levels(x: np.ndarray) -> np.ndarray:
    """x (n,) as whole numbers in the same order; values that differ by rounding alone become equal."""
    order = np.argsort(x, kind="stable")
    levels = np.zeros(x.size)
    levels[order[1:]] = np.cumsum(np.diff(x[order]) > TOLERANCE * np.abs(x).max())
    return levels


def _rank_correlation(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    rx, ry = (stats.rankdata(side, axis=axis) for side in (x, y))
    rx, ry = (ranks - ranks.mean(axis=axis, keepdims=True) for ranks in (rx, ry))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt((rx**2).sum(axis=axis) * (ry**2).sum(axis=axis))
        return (rx * ry).sum(axis=axis) / scale
