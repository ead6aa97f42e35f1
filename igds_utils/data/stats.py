"""Intervals, paired comparisons and corrections: every "is it different?" is answered here.

An interval of one score covers the choice of test samples, a difference of arms the luck of
training as well where one of them was trained several times.
"""

import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

FEW = 10  # pairs of a rank correlation
TOLERANCE = 1e-12  # relative; what differs by less differs by rounding


class Interval(NamedTuple):
    """A mean and its confidence interval, in the units of the values."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of a - b over n common samples, its interval and two-sided p value (nan: none).

    trainings: those of either side, 0 for a model that is given as it stands.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int
    trainings: tuple[int, int]

    @property
    def judged(self) -> bool:
        """Whether the interval allows a verdict: a side trained once may have been lucky."""
        return 1 not in self.trainings


class Correlation(NamedTuple):
    """A rank correlation of n pairs with its interval, or an exact p value of few pairs."""

    rho: float
    low: float
    high: float
    p_value: float
    n: int


def interval(values, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` (n,) with a confidence interval.

    Values that are all 0 or 1 are a proportion and get the Wilson interval, others the
    percentile bootstrap of the mean; of a single one that is (nan, nan). Differences belong to
    `paired_difference`. Raises ValueError for no value and for values that are not finite.
    """
    x = _finite(values)
    if np.isin(x, (0.0, 1.0)).all():
        bounds = _wilson(int(x.sum()), x.size, confidence)
    else:
        bounds = _bootstrap((x,), np.mean, confidence, resamples, seed)
    return Interval(float(x.mean()), *bounds)


def paired_difference(
    a, b, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Difference:
    """Mean of a - b, matched by sample id, with its interval and p value.

    a, b: frames by sample id with one column per training, or Series (or dicts) of a model as
    it stands, which has no luck of training. Rows of one id are averaged first.

    Where a side was trained several times, interval and p value cover samples and training
    (`standard_error`, Student's t); otherwise the interval covers the samples alone (percentile
    bootstrap), and there is no p value. Where all samples of 0/1 scores changed alike, the
    bootstrap would claim certainty: the interval reaches to the Wilson limit on the share of
    samples that could behave otherwise. Raises ValueError where ids are on one side only.
    """
    sides = [side if isinstance(side, pd.DataFrame) else pd.Series(side) for side in (a, b)]
    trainings = tuple(side.shape[1] if side.ndim == 2 else 0 for side in sides)
    # sorted by id: the order of rows must not matter
    a, b = (
        side.sort_index() if side.index.is_unique else side.groupby(level=0).mean()
        for side in map(pd.DataFrame, sides)
    )
    if not a.index.equals(b.index):
        unmatched = sorted(map(str, a.index.symmetric_difference(b.index)))
        few = ", ".join(unmatched[:5])
        raise ValueError(f"{len(unmatched)} sample ids are on one side only ({few})")
    a, b = a.to_numpy(float), b.to_numpy(float)  # (n, trainings)
    means = np.stack([a.mean(axis=1), b.mean(axis=1)])
    d = _finite(means[0] - means[1])
    nothing = TOLERANCE * max(np.abs(a).max(), np.abs(b).max())
    d[np.abs(d) <= nothing] = 0.0
    mean, p_value, error = d.mean(), np.nan, 0.0
    if max(trainings) > 1 and d.size > 1:
        error, freedom = standard_error(a, b, trainings)
    if np.ptp(d) == 0 and np.isin(means, (0.0, 1.0)).all():
        reach = (1 + abs(mean)) * _wilson(0, d.size, confidence)[1]
        low, high = max(-1.0, mean - reach), min(1.0, mean + reach)
    elif error > nothing:
        low, high = stats.t.interval(confidence, freedom, mean, error)
        p_value = float(2 * stats.t.sf(abs(mean) / error, freedom))
    else:
        low, high = _bootstrap((d,), np.mean, confidence, resamples, seed)
    found = (0.0 if abs(value) <= nothing else float(value) for value in (mean, low, high))
    return Difference(*found, p_value, d.size, trainings)


def standard_error(
    a: np.ndarray, b: np.ndarray, trainings: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of mean(a) - mean(b) over samples and trainings, and its t's freedom.

    a: (..., n, s_a) and b: (..., n, s_b), scores of the same n samples by s trainings each;
    results (...). trainings: (s_a, s_b), 0 in place of the 1 of a model as it stands. Three
    mean squares (Satterthwaite, 1946): of the samples' mean differences, which hold the luck of
    single answers, too; of the trainings' means; and of what is left (interaction), which is
    taken off the second, down to zero. A side trained once has the other's luck of training.
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
    doubt = weight**2 * (between**2 + rest**2 / (n - 1)) / freedom
    doubt = items**2 / (n - 1) + np.where(luck > TOLERANCE * rest, doubt, 0.0)
    variance = items + weight * luck
    least = np.finfo(float).tiny
    return np.sqrt(variance), np.maximum(variance**2 / np.maximum(doubt, least), freedom)


def spearman(
    x, y, confidence: float = 0.95, resamples: int = 2000, seed: int = 0, permute: bool = False
) -> Correlation:
    """Spearman's rank correlation of x (n,) and y (n,) with a percentile bootstrap over pairs.

    Fewer than `FEW` pairs get a p value over all n! pairings instead: their bootstrap would
    claim certainty. permute: more pairs get one too, over `resamples` random pairings. What
    does not exist is nan, as all is of fewer than three pairs and where a side does not vary.
    """
    x, y = _finite(x), _finite(y)
    # values that differ by rounding alone are ties
    x, y = (np.round(side / (np.abs(side).max() or 1.0), 12) for side in (x, y))
    few, low, high, p_value = x.size < FEW, np.nan, np.nan, np.nan
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(np.nan, low, high, p_value, x.size)
    if few or permute:
        ranks, others = stats.rankdata(x), stats.rankdata(y) - (y.size + 1) / 2
        p_value = stats.permutation_test(
            (ranks,), lambda ranks, axis: (ranks * others).sum(axis), batch=10_000,
            n_resamples=np.inf if few else resamples, permutation_type="pairings",
            vectorized=True, rng=np.random.default_rng(seed),
        ).pvalue  # fmt: skip
    if not few:
        low, high = _bootstrap((x, y), _rank_correlation, confidence, resamples, seed)
    rho = float(_rank_correlation(x, y))
    return Correlation(rho, low, high, float(p_value), x.size)


def _rank_correlation(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    ranks = (stats.rankdata(side, axis=axis) for side in (x, y))
    return stats.pearsonr(*ranks, axis=axis).statistic


def holm(p_values) -> np.ndarray:
    """Holm's step-down adjustment of p values (m,): reject below the level; nan stays nan."""
    p = pd.Series(p_values, dtype=float)
    known = p.dropna().sort_values(kind="stable")
    factors = np.arange(known.size, 0, -1)
    return (known * factors).cummax().clip(upper=1.0).reindex(p.index).to_numpy()


def _finite(values) -> np.ndarray:
    x = np.asarray(values, dtype=float).ravel()
    if not x.size or (bad := int((~np.isfinite(x)).sum())):
        raise ValueError(f"{bad} of {x.size} values are not finite" if x.size else "no values")
    return x


@cache  # the same few counts come up over and over
def _wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    bounds = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(bounds.low), float(bounds.high)


def _bootstrap(
    data: tuple, statistic, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of a statistic of arrays (n,), over their common samples."""
    if data[0].size == 1:
        return np.nan, np.nan
    with warnings.catch_warnings():  # a resample of one repeated pair has no ranks
        warnings.simplefilter("ignore")
        drawn = stats.bootstrap(
            data, statistic, paired=True, vectorized=True, n_resamples=resamples, batch=256,
            method="percentile", rng=np.random.default_rng(seed),
        ).bootstrap_distribution  # fmt: skip
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
