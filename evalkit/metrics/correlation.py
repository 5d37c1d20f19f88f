"""pearson and spearman between predicted and gold numbers of a whole dataset, -1..1.

A prediction that is not a number counts as -2.0 and an undefined correlation (constant predictions) as
0.0: the rules of llm-jp-eval v1.3.1.
"""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalkit.metrics.intervals import FloatArray, IntArray

NO_NUMBER = -2.0
_NOT_NUMERIC = re.compile(r"[^0-9.]")


def parse_number(prediction: str) -> float:
    """The number left when everything but ASCII digits and points is dropped, else -2.0."""
    try:
        return float(_NOT_NUMERIC.sub("", prediction))
    except ValueError:
        return NO_NUMBER


def pearson(predicted: Sequence[float], golds: Sequence[float]) -> float:
    """SciPy's Pearson correlation of two sequences of length n; 0.0 where it is undefined."""
    from scipy.stats import pearsonr

    return _defined(pearsonr, predicted, golds)


def spearman(predicted: Sequence[float], golds: Sequence[float]) -> float:
    """SciPy's Spearman rank correlation of two sequences of length n; 0.0 where it is undefined."""
    from scipy.stats import spearmanr

    return _defined(spearmanr, predicted, golds)


def _defined(correlation: Callable[..., Any], predicted: Sequence[float], golds: Sequence[float]) -> float:
    if len(golds) < 2:
        return 0.0
    with warnings.catch_warnings():
        # The protocol defines the value for constant input: no warning.
        warnings.simplefilter("ignore")
        value = float(correlation(golds, predicted)[0])
    return 0.0 if math.isnan(value) else value


def resampled_pearson(predicted: Sequence[float], golds: Sequence[float], resamples: int) -> "FloatArray":
    """Pearson's correlation in each bootstrap resample: [resamples]."""
    return _resampled(tuple(predicted), tuple(golds), resamples, ranked=False)


def resampled_spearman(predicted: Sequence[float], golds: Sequence[float], resamples: int) -> "FloatArray":
    """Spearman's correlation in each bootstrap resample, ranks taken anew in each: [resamples]."""
    return _resampled(tuple(predicted), tuple(golds), resamples, ranked=True)


# A board compares each run with several others.
@lru_cache(maxsize=16)
def _resampled(
    predicted: tuple[float, ...], golds: tuple[float, ...], resamples: int, *, ranked: bool
) -> "FloatArray":
    import numpy as np

    from evalkit.metrics.intervals import resample_indices

    columns = [np.asarray(predicted, dtype=np.float64), np.asarray(golds, dtype=np.float64)]
    blocks = [
        row_correlations(*(_row_ranks(c, rows) if ranked else c[rows] for c in columns))
        for rows in resample_indices(len(golds), resamples)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0)


def row_correlations(x: "FloatArray", y: "FloatArray") -> "FloatArray":
    """The correlation of each row of two arrays [rows, n]; one may be [1, n]. A constant row gives 0.0."""
    import numpy as np

    constant = (x == x[:, :1]).all(axis=1) | (y == y[:, :1]).all(axis=1)
    # A prediction may be any number of digits, up to infinity: undefined is 0.0, not a warning.
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        x = x - x.mean(axis=1, keepdims=True)
        y = y - y.mean(axis=1, keepdims=True)
        scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
        correlation = (x * y).sum(axis=1) / scale
    return np.where(constant | ~np.isfinite(correlation), 0.0, correlation)


def _row_ranks(values: "FloatArray", indices: "IntArray") -> "FloatArray":
    """Average ranks within each resample: values [n], indices [rows, n] -> [rows, n].

    A resample holds only the values of the dataset, so counting each distinct value is enough (and faster
    than SciPy's rankdata): its rank is the number of smaller entries plus half of (its own count + 1).
    """
    import numpy as np

    distinct, codes = np.unique(values, return_inverse=True)
    rows, kinds = len(indices), len(distinct)
    drawn = codes[indices]
    offsets = np.arange(rows)[:, None] * kinds
    counts = np.bincount((drawn + offsets).ravel(), minlength=rows * kinds).reshape(rows, kinds)
    ranks = counts.cumsum(axis=1) - counts + (counts + 1) / 2
    return np.asarray(np.take_along_axis(ranks, drawn, axis=1), dtype=np.float64)
