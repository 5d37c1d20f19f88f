import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from evalkit.metrics import correlation
from evalkit.metrics.correlation import parse_number, pearson, spearman
from tests.metrics.texts import texts

numbers = st.sampled_from([-2.0, 0.0, 0.4, 1.0, 1.6, 2.0, 2.25, 3.0, 3.8, 4.0, 5.0, 12.5])
columns = st.integers(2, 40).flatmap(
    lambda n: st.tuples(st.lists(numbers, min_size=n, max_size=n), st.lists(numbers, min_size=n, max_size=n))
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3.4", 3.4),
        (" 3.4\n", 3.4),
        ("類似度は4です", 4.0),
        ("3.4.5", -2.0),
        ("", -2.0),
        (".", -2.0),
        ("-1", 1.0),
        ("3,000", 3000.0),
        ("1e3", 13.0),
        ("٣", -2.0),
        ("五", -2.0),
    ],
)
def test_a_number_is_what_digits_and_points_leave(text: str, number: float) -> None:
    assert parse_number(text) == number


@given(texts)
def test_parsing_never_fails(text: str) -> None:
    kept = "".join(re.findall("[0-9.]", text))
    expected = float(kept) if re.fullmatch(r"\d+\.?\d*|\.\d+", kept, re.ASCII) else -2.0
    assert parse_number(text) == expected


@settings(max_examples=200, deadline=None)
@given(columns)
def test_values_are_scipys(pair: tuple[list[float], list[float]]) -> None:
    predicted, golds = pair
    for ours, theirs in ((pearson, pearsonr), (spearman, spearmanr)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = float(theirs(golds, predicted)[0])
        assert ours(predicted, golds) == (0.0 if math.isnan(expected) else expected)


def test_undefined_correlations_are_zero() -> None:
    assert pearson([-2.0] * 5, [1, 2, 3, 4, 5]) == 0.0
    assert spearman([-2.0] * 5, [1, 2, 3, 4, 5]) == 0.0
    assert pearson([1.0], [1.0]) == 0.0


@pytest.mark.filterwarnings("error")
def test_a_prediction_of_endless_digits_is_a_number_too() -> None:
    endless = parse_number("9" * 400)
    assert endless == math.inf
    assert pearson([1.0, endless, 2.0], [1, 2, 3]) == 0.0
    assert spearman([1.0, endless, 2.0], [1, 2, 3]) == pytest.approx(0.5)
    for predicted in ([1.0, endless, 2.0], [1e308, 1e308, -1e308]):
        values = correlation.resampled_pearson(predicted, [1, 2, 3], 50)
        assert np.isfinite(values).all()
        assert np.isfinite(correlation.resampled_spearman(predicted, [1, 2, 3], 50)).all()


@pytest.mark.parametrize(
    ("resampled", "scipys"),
    [(correlation.resampled_pearson, pearsonr), (correlation.resampled_spearman, spearmanr)],
)
@pytest.mark.parametrize(("n", "kinds"), [(100, 26), (30, 3), (5, 2)])
def test_each_resample_is_scipys_correlation_of_it(
    resampled: Callable[..., Any], scipys: Callable[..., Any], n: int, kinds: int
) -> None:
    rng = np.random.default_rng(7)
    golds: Sequence[float] = (rng.integers(0, kinds, n) / 5).tolist()
    predicted: Sequence[float] = (np.asarray(golds) + rng.integers(-2, 3, n)).tolist()
    indices = np.random.Generator(np.random.PCG64(0)).integers(0, n, size=(200, n))
    values = resampled(predicted, golds, 200)
    assert values.shape == (200,)
    for row, value in zip(indices, values, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = float(scipys(np.asarray(golds)[row], np.asarray(predicted)[row])[0])
        assert value == pytest.approx(0.0 if math.isnan(expected) else expected, abs=1e-12)
