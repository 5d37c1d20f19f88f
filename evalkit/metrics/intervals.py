"""The 95 % interval and the standard error of every figure.

- A mean of values that are 0 or 1: Wilson's score interval (Wilson 1927).
- The difference of two such means on the same samples: Newcombe's method 10 (Newcombe 1998), which
  joins the two Wilson intervals and allows for the correlation of the pairs.
- Any other figure of one dataset: the percentile bootstrap over its samples, PCG64 seed 0. Where all
  values are equal, or there are fewer than five, they do not show how far another draw would move the
  figure: there is no interval.
- A mean of several figures: MOVER (Zou and Donner 2008), which adds the squared distances of each part's
  ends from its estimate. A part without an interval enters with the widest one its scale allows.

No interval has zero width, each contains its estimate, and none leaves the metric's scale.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Interval = tuple[float, float]

SEED = 0
# The 97.5th percentile of the standard normal distribution.
Z = 1.959963984540054
# With fewer values than this a bootstrap means little.
FEWEST = 5
# Index entries drawn per block: 4 million are 32 MB, whatever the size of the dataset.
_CHUNK = 4_000_000
# Index entries of a small dataset that are kept for the next of its size: 16 MB.
_KEPT = 2_000_000
# Resamples that differ by no more than this, relative to their size, differ by rounding alone.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Spread:
    """The uncertainty of a figure.

    Attributes:
        interval: 95 %, [low, high]; None where the values do not determine one.
        error: the standard error; None where there is no interval.
        carried: what the figure contributes to a mean of several: its interval, else the widest one that
            its scale allows. None: its scale has no ends.
    """

    interval: Interval | None = None
    error: float | None = None
    carried: Interval | None = None


def of_mean(
    values: Sequence[float], resamples: int, *, binary: bool = False, scale: Interval | None = None
) -> Spread:
    """The spread of the mean of independent values.

    Args:
        values: one per sample, n >= 1.
        resamples: of the bootstrap; 0: only intervals that need none.
        binary: every value is 0 or 1.
        scale: the least and the greatest value a sample can have; None: unbounded.
    """
    n = len(values)
    error = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 and min(values) < max(values) else None
    if binary:
        ends = wilson(int(sum(values)), n)
        return Spread(ends, _error_of(ends) if error is None else error, ends)
    if error is None or n < FEWEST:
        return Spread(carried=widest(values, scale) if scale else None)
    spread = of_statistic(math.fsum(values) / n, resampled_means(values, resamples), n)
    return Spread(spread.interval, error, spread.carried)


def of_statistic(estimate: float, distribution: FloatArray, n: int) -> Spread:
    """The spread of a figure by its bootstrap: the 2.5th to the 97.5th percentile, estimate included.

    `distribution` [resamples] holds the figure in each resample of n independent units (samples, or
    questions with all their scores).
    """
    if distribution.size < 2 or n < FEWEST:
        return Spread()
    low, high = (float(end) for end in np.percentile(distribution, [2.5, 97.5]))
    if high - low <= _ROUNDING * max(1.0, abs(low), abs(high)):
        return Spread()
    ends = min(low, estimate), max(high, estimate)
    return Spread(ends, float(np.std(distribution, ddof=1)), ends)


def of_sum(
    estimates: Sequence[float], spreads: Sequence[Spread], weights: Sequence[float] | None = None
) -> Spread:
    """The spread of a weighted sum of independent figures, by default of their mean (MOVER).

    There is an interval where at least one part has one and every part has something to carry.
    """
    weights = [1 / len(estimates)] * len(estimates) if weights is None and estimates else weights or []
    carried = [spread.carried for spread in spreads]
    parts = [
        (weight, estimate, ends)
        for weight, estimate, ends in zip(weights, estimates, carried, strict=True)
        if ends is not None
    ]
    if not parts or len(parts) < len(carried):
        return Spread()
    value = math.fsum(weight * estimate for weight, estimate, _ in parts)
    below = math.hypot(*(weight * (estimate - ends[0]) for weight, estimate, ends in parts))
    above = math.hypot(*(weight * (ends[1] - estimate) for weight, estimate, ends in parts))
    joined = value - below, value + above
    if all(spread.interval is None for spread in spreads):
        return Spread(carried=joined)
    return Spread(joined, _error_of(joined), joined)


def of_paired(a: FloatArray, b: FloatArray) -> Spread:
    """The spread of mean(a) - mean(b) for values 0 or 1 of the same n >= 1 samples: [n] each."""
    both, neither = int(((a == 1) & (b == 1)).sum()), int(((a == 0) & (b == 0)).sum())
    only_a, only_b = int((a > b).sum()), int((a < b).sum())
    ends = newcombe(both, only_a, only_b, neither)
    return Spread(ends, _error_of(ends), ends)


def wilson(successes: int, n: int) -> Interval:
    """Wilson's 95 % score interval of `successes` in n >= 1 trials."""
    return _score_interval(successes / n, n)


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> Interval:
    """Newcombe's 95 % interval (method 10) of the difference a - b of paired proportions, n >= 1."""
    n = both + only_a + only_b + neither
    p, q = (both + only_a) / n, (both + only_b) / n
    (p_low, p_high), (q_low, q_high) = _score_interval(p, n), _score_interval(q, n)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    excess = float(both * neither - only_a * only_b)
    # The correction keeps the correlation below 1, so that equal verdicts do not mean certainty.
    corrected = max(0.0, excess - n / 2) if excess > 0 else excess
    phi = corrected / math.sqrt(margins) if margins else 0.0
    down, up, q_down, q_up = p - p_low, p_high - p, q - q_low, q_high - q
    below = math.sqrt(down**2 - 2 * phi * down * q_up + q_up**2)
    above = math.sqrt(up**2 - 2 * phi * up * q_down + q_down**2)
    return max(-1.0, p - q - below), min(1.0, p - q + above)


def widest(values: Sequence[float], scale: Interval) -> Interval:
    """An interval for the mean of n >= 1 values that do not determine one, by their scale alone.

    All equal: of other draws a share up to Wilson's upper end of 0 in n may lie at either end of the
    scale. Else Wilson's interval at the mean's place in the scale: no values with that mean vary more.
    """
    low, high = scale
    n, mean = len(values), math.fsum(values) / len(values)
    if min(values) == max(values):
        share = _score_interval(0.0, n)[1]
        return mean - share * (mean - low), mean + share * (high - mean)
    ends = _score_interval((mean - low) / (high - low), n)
    return low + ends[0] * (high - low), low + ends[1] * (high - low)


def _score_interval(p: float, n: int) -> Interval:
    square = Z * Z / n
    centre = (p + square / 2) / (1 + square)
    half = math.sqrt(square * (p * (1 - p) + square / 4)) / (1 + square)
    # The ends at 0 and 1 are exact; rounding must not move them.
    return (0.0 if p <= 0 else min(p, centre - half)), (1.0 if p >= 1 else max(p, centre + half))


def _error_of(ends: Interval) -> float:
    return (ends[1] - ends[0]) / (2 * Z)


def resample_indices(n: int, resamples: int) -> Iterator[IntArray]:
    """Indices 0..n-1 drawn with replacement, as blocks [rows, n] that add up to `resamples` rows.

    Every call starts from a fresh PCG64(0): a dataset's interval depends on its own scores alone.
    """
    if n * resamples <= _KEPT:
        yield _kept_indices(n, resamples)
        return
    yield from _drawn_indices(n, resamples)


@lru_cache(maxsize=4)
def _kept_indices(n: int, resamples: int) -> IntArray:
    blocks = list(_drawn_indices(n, resamples))
    return np.concatenate(blocks) if blocks else np.empty((0, n), dtype=np.int64)


def _drawn_indices(n: int, resamples: int) -> Iterator[IntArray]:
    generator = np.random.Generator(np.random.PCG64(SEED))
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        yield generator.integers(0, n, size=(min(rows, resamples - start), n))


def resampled_means(values: Sequence[float], resamples: int) -> FloatArray:
    """The mean of `values` (length n >= 1) in each resample: [resamples]."""
    array = np.asarray(values, dtype=np.float64)
    blocks = [array.take(indices).mean(axis=1) for indices in resample_indices(len(array), resamples)]
    return np.concatenate(blocks) if blocks else np.empty(0)


def resampled_ratios(parts: NDArray[Any], wholes: NDArray[Any], resamples: int) -> FloatArray:
    """sum(parts) / sum(wholes) in each resample of their n pairs, [n] each: [resamples]."""
    blocks = [
        parts[drawn].sum(axis=1) / wholes[drawn].sum(axis=1)
        for drawn in resample_indices(len(parts), resamples)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0)


# --- questions asked several times ---------------------------------------------------------------


def resampled_two_ways(scores: FloatArray, resamples: int) -> FloatArray:
    """Means of scores [questions, trials, figures] with questions and trials both redrawn.

    Every trial has its few-shots and its seed, so the draw of trials holds their choice. With one trial only
    questions are drawn. The spread is slightly too wide rather than too narrow (Owen 2007). Returns
    [resamples, figures].
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    # How often each is drawn says as much as which ones are.
    rows, columns = (
        generator.multinomial(n, np.full(n, 1 / n), size=resamples) / n for n in scores.shape[:2]
    )
    means: FloatArray = np.stack(
        [((rows @ one) * columns).sum(axis=1) for one in np.moveaxis(scores, 2, 0)], 1
    )
    return means


def resampled_within(questions: Sequence[FloatArray], resamples: int) -> FloatArray:
    """Means over questions of the mean of their scores, with answers redrawn within redrawn questions.

    For scores whose trials are not known: what all questions of a trial share is not in it.

    Args:
        questions: the scores of each question's answers: [answers, figures].
        resamples: how many.

    Returns:
        [resamples, figures].
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = generator.integers(0, len(questions), size=(resamples, len(questions)))
    means = np.empty((*drawn.shape, questions[0].shape[1]))
    for index, scores in enumerate(questions):
        places = np.nonzero(drawn == index)
        rows = max(1, _CHUNK // scores.size)
        for start in range(0, len(places[0]), rows):
            some = tuple(axis[start : start + rows] for axis in places)
            means[some] = scores[generator.integers(0, len(scores), size=(len(some[0]), len(scores)))].mean(1)
    averages: FloatArray = means.mean(axis=1)
    return averages


def variance_shares(scores: FloatArray, *, trials_known: bool = True) -> dict[str, float | None] | None:
    """Where the variance of scores [questions, trials] comes from: shares that add up to 1.

    By the analysis of variance: some `questions` are harder than others, some `trials` (few-shots and seed)
    are better than others on all questions, and `within` is the rest; that of trials is part of it (None)
    where they are not known. A component below 0, which is a matter of chance, counts as 0. None: it takes
    two questions, two trials and scores that differ.
    """
    number, trials = scores.shape
    if min(number, trials) < 2 or scores.min() == scores.max():
        return None
    rows, mean = scores.mean(axis=1), scores.mean()
    columns = scores.mean(axis=0) if trials_known else np.full(trials, mean)
    between_rows = trials * ((rows - mean) ** 2).sum() / (number - 1)
    between_columns = number * ((columns - mean) ** 2).sum() / (trials - 1)
    rest = scores - rows[:, None] - (columns - mean)
    within = (rest**2).sum() / ((number - 1 if trials_known else number) * (trials - 1))
    parts = [max(0.0, between_rows - within) / trials, max(0.0, between_columns - within) / number, within]
    of_questions, of_trials, rest_share = (float(part / math.fsum(parts)) for part in parts)
    return {
        "questions": of_questions,
        "trials": of_trials if trials_known else None,
        "within": rest_share,
    }
