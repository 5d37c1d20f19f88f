"""Statistics of two models on the same samples.

Intervals (evalkit.metrics.intervals): Newcombe's method 10 for 0/1 scores; else the percentile bootstrap over
the samples of a dataset, both models drawn with the same indices; for means of datasets, MOVER.
p-values, two-sided: McNemar's exact test (McNemar 1947; the binomial form) for 0/1 scores; else a
permutation test that swaps the two models' scores sample by sample (Fisher's randomisation test for
pairs), exact up to 2^13 arrangements, above by Monte Carlo where p is (1 + hits) / (1 + draws) (Phipson
and Smyth 2010). Holm's correction (Holm 1979) for families.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evalkit.metrics import intervals as statistics
from evalkit.metrics.correlation import row_correlations
from evalkit.metrics.intervals import FloatArray, Interval, Spread
from evalkit.metrics.metric import CorrelationMetric

DRAWS = 10_000
# Signs of datasets up to this size are kept: 16 MB.
_KEPT = 200
# With up to this many differing samples every arrangement of signs is counted.
_EXACT = 13
# Swaps drawn per block: 4 million are 32 MB, whatever the size of the dataset.
_CHUNK = 4_000_000
# Sums of the same numbers in another order differ by less than this.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PairedScores:
    """The scores of two models on the same n samples, a[i] and b[i] of the same sample: [n] each."""

    a: FloatArray
    b: FloatArray

    @property
    def is_binary(self) -> bool:
        """Whether every score is 0 or 1."""
        return bool(np.isin(self.a, (0, 1)).all() and np.isin(self.b, (0, 1)).all())


@dataclass(frozen=True)
class Difference:
    """a minus b: the value, how sure it is, and p (None: not tested).

    `null` holds the difference under random swaps of the models: [DRAWS].
    """

    value: float
    spread: Spread
    null: FloatArray
    p: float | None
    test: str

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The 95 % interval; None where the samples do not determine one."""
        return self.spread.interval


def mean_difference(
    pairs: PairedScores,
    resamples: int,
    stream: int = 0,
    *,
    binary: bool | None = None,
    scale: Interval | None = None,
) -> Difference:
    """The difference of the means.

    Args:
        pairs: the scores.
        resamples: of the interval.
        stream: numbers the dataset's own random swaps.
        binary: whether the metric gives only 0 and 1; None: decided by these scores.
        scale: the least and the greatest score the metric gives.
    """
    gaps = pairs.a - pairs.b
    null = _swapped_means(gaps, stream)
    value = float(gaps.mean())
    if pairs.is_binary:
        wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
        p, test = mcnemar(wins, losses), "McNemar"
    else:
        p, test = permutation(gaps, null), "permutation"
    if pairs.is_binary if binary is None else binary:
        spread = statistics.of_paired(pairs.a, pairs.b)
    else:
        width = scale and (scale[0] - scale[1], scale[1] - scale[0])
        spread = statistics.of_mean(gaps.tolist(), resamples, scale=width)
    return Difference(value, spread, null, p, test)


def share_difference(pairs: PairedScores, sizes: FloatArray, resamples: int, stream: int = 0) -> Difference:
    """The difference of shares of instructions, of which each of the n prompts has some: [n].

    `pairs` holds the share of each prompt. Prompts are resampled and swapped, each with all of its own.
    """
    parts = (pairs.a - pairs.b) * sizes
    weighed = parts / sizes.mean()
    null, value = _swapped_means(weighed, stream), float(weighed.mean())
    distribution = statistics.resampled_ratios(parts, sizes, resamples)
    spread = statistics.of_statistic(value, distribution, len(parts))
    if spread.interval is None:
        spread = Spread(carried=statistics.widest((pairs.a - pairs.b).tolist(), (-1.0, 1.0)))
    return Difference(value, spread, null, permutation(weighed, null), "permutation")


def correlation_difference(
    metric: CorrelationMetric, pairs: PairedScores, golds: FloatArray, resamples: int, stream: int = 0
) -> Difference:
    """The difference of two correlations with the same gold numbers [n]; a and b are predictions."""
    a, b, gold = pairs.a.tolist(), pairs.b.tolist(), golds.tolist()
    value = metric.score(a, gold) - metric.score(b, gold)
    distribution = metric.resample(a, gold, resamples) - metric.resample(b, gold, resamples)
    null = _swapped(metric, pairs, golds, stream)
    spread = statistics.of_statistic(value, distribution, len(gold))
    return Difference(value, spread, null, monte_carlo(value, null), "permutation")


def average_difference(parts: Sequence[Difference]) -> Difference:
    """The unweighted mean of independent differences: datasets of a category, categories of AVG."""
    value = float(np.mean([part.value for part in parts]))
    null = np.mean([part.null for part in parts], axis=0)
    spread = statistics.of_sum([part.value for part in parts], [part.spread for part in parts])
    return Difference(value, spread, null, monte_carlo(value, null), "permutation")


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p of `wins` against `losses` under a fair coin; 1 without any."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def permutation(gaps: FloatArray, null: FloatArray) -> float:
    """The two-sided p of the mean of `gaps` [n] under random signs; exact where that is feasible."""
    moved = gaps[gaps != 0]
    if len(moved) > _EXACT:
        return monte_carlo(float(gaps.mean()), null)
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(moved))))
    sums = np.abs(signs @ moved) if len(moved) else np.zeros(1)
    return float((sums >= abs(moved.sum()) - _ROUNDING).mean())


def monte_carlo(value: float, null: FloatArray) -> float:
    """The two-sided p of `value` among its random rearrangements [draws]."""
    hits = int((np.abs(null) >= abs(value) - _ROUNDING).sum())
    return (1 + hits) / (1 + len(null))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _generator(stream: int) -> np.random.Generator:
    # Far from the random streams of the intervals.
    return np.random.Generator(np.random.PCG64(statistics.SEED).jumped(1000 + stream))


def _swaps(n: int, stream: int) -> Iterator[NDArray[np.bool_]]:
    """Whether each of n samples is swapped, as blocks [rows, n] that add up to DRAWS rows."""
    generator = _generator(stream)
    rows = max(1, _CHUNK // n)
    for start in range(0, DRAWS, rows):
        yield generator.integers(0, 2, size=(min(rows, DRAWS - start), n)).astype(np.bool_)


def _swapped_means(gaps: FloatArray, stream: int) -> FloatArray:
    """The mean of `gaps` [n] under random swaps: [DRAWS]."""
    n = len(gaps)
    signs = [_kept_signs(n, stream)] if n <= _KEPT else (swaps * -2.0 + 1.0 for swaps in _swaps(n, stream))
    return np.concatenate([block @ gaps / n for block in signs])


@lru_cache(maxsize=32)
def _kept_signs(n: int, stream: int) -> FloatArray:
    """The signs of a small dataset's swaps, [DRAWS, n]: the same for each of many pairs of runs."""
    return np.concatenate([swaps * -2.0 + 1.0 for swaps in _swaps(n, stream)])


def _swapped(metric: CorrelationMetric, pairs: PairedScores, golds: FloatArray, stream: int) -> FloatArray:
    """The difference of the correlations under random swaps: [DRAWS]."""
    from scipy.stats import rankdata

    found, n = [], len(golds)
    for swaps in [_kept_signs(n, stream) < 0] if n <= _KEPT else _swaps(n, stream):
        rows = [np.where(swaps, pairs.b, pairs.a), np.where(swaps, pairs.a, pairs.b)]
        gold = golds[None, :]
        if metric.name == "spearman":
            rows, gold = [rankdata(row, axis=1) for row in rows], rankdata(gold, axis=1)
        first, second = (row_correlations(row, gold) for row in rows)
        found.append(np.asarray(first - second, dtype=np.float64))
    return np.concatenate(found)
