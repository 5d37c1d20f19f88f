"""Paired statistics against SciPy, statsmodels and a plain bootstrap written out here."""

from typing import Any

import numpy as np
import pytest

from evalkit.leaderboard.paired import (
    PairedScores,
    average_difference,
    correlation_difference,
    holm,
    mcnemar,
    mean_difference,
    share_difference,
)
from evalkit.metrics import METRICS
from evalkit.metrics.metric import CorrelationMetric


def pairs(seed: int, n: int = 60, shift: float = 0.0) -> PairedScores:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=n)
    return PairedScores(common + rng.normal(size=n) + shift, common + rng.normal(size=n))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 9), (12, 12), (40, 17), (0, 30)])
def test_mcnemar_is_that_of_statsmodels(wins: int, losses: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar as independent

    expected = independent([[5, wins], [losses, 7]], exact=True).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected, abs=1e-12)


def test_binary_scores_are_tested_by_mcnemar() -> None:
    a = np.array([1, 1, 1, 0, 1, 1, 0, 1], dtype=float)
    b = np.array([0, 0, 1, 0, 0, 1, 1, 0], dtype=float)
    found = mean_difference(PairedScores(a, b), 1000)
    assert (found.test, found.value) == ("McNemar", 0.375 - 0.125 + 0.125)
    assert found.p == pytest.approx(2 * (0.5**5 + 5 * 0.5**5))


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.9])
def test_the_exact_permutation_test_is_that_of_scipy(shift: float) -> None:
    from scipy.stats import permutation_test

    given = pairs(3, n=11, shift=shift)
    expected = permutation_test(
        (given.a, given.b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert mean_difference(given, 10).p == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5])
def test_the_monte_carlo_permutation_test_is_near_that_of_scipy(shift: float) -> None:
    from scipy.stats import permutation_test

    given = pairs(5, n=80, shift=shift)
    expected = permutation_test(
        (given.a, given.b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    # Three standard errors of two estimates with 10,000 and 20,000 draws.
    assert mean_difference(given, 10).p == pytest.approx(expected.pvalue, abs=0.02)


def test_the_interval_is_that_of_a_plain_paired_bootstrap() -> None:
    from scipy.stats import bootstrap

    given = pairs(7, n=100, shift=0.4)
    found = mean_difference(given, 10_000).ci95
    expected = bootstrap(
        (given.a - given.b,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found is not None
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_pairing_makes_intervals_narrower_than_those_of_the_models_alone() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    given = PairedScores(hard + 0.1 * rng.normal(size=200), hard)
    found = mean_difference(given, 2000).ci95
    alone = 2 * 1.96 * np.std(given.a, ddof=1) / np.sqrt(200)
    assert found is not None and (found[1] - found[0]) < alone / 3


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_the_difference_of_correlations_is_that_of_its_definition(name: str) -> None:
    from scipy.stats import rankdata

    metric = METRICS[name]
    assert isinstance(metric, CorrelationMetric)
    rng = np.random.default_rng(4)
    gold = np.round(rng.uniform(0, 5, size=40), 1)
    given = PairedScores(np.round(gold + rng.normal(size=40), 1), np.round(gold + 3 * rng.normal(size=40), 1))
    found = correlation_difference(metric, given, gold, 4000)

    def score(one: Any, other: Any) -> Any:
        """The correlation of each row of one with the same row of the other, by its definition."""
        if name == "spearman":
            one, other = rankdata(one, axis=-1), rankdata(other, axis=-1)
        one, other = (each - each.mean(axis=-1, keepdims=True) for each in (one, other))
        return (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))

    assert score(given.a, gold) == pytest.approx(metric.score(given.a.tolist(), gold.tolist()))
    chosen = rng.integers(0, 40, size=(1500, 40))
    a, b, g = given.a[chosen], given.b[chosen], gold[chosen]
    draws = score(a, g) - score(b, g)
    swap = rng.integers(0, 2, size=(1500, 40)).astype(bool)
    golds = np.broadcast_to(gold, swap.shape)
    nulls = score(np.where(swap, given.b, given.a), golds) - score(np.where(swap, given.a, given.b), golds)
    assert found.ci95 == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=0.05)
    p = (1 + sum(abs(null) >= abs(found.value) for null in nulls)) / 1501
    assert found.p == pytest.approx(p, abs=0.03)


def test_an_average_is_stratified_by_dataset() -> None:
    first, second = pairs(1, n=30, shift=0.5), pairs(2, n=70)
    found = average_difference([mean_difference(first, 8000, 0), mean_difference(second, 8000, 1)])
    gaps = [first.a - first.b, second.a - second.b]
    assert found.value == pytest.approx((gaps[0].mean() + gaps[1].mean()) / 2)

    rng = np.random.default_rng(9)
    draws = [np.mean([rng.choice(gap, size=len(gap)).mean() for gap in gaps]) for _ in range(8000)]
    assert found.ci95 == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=0.03)
    nulls = [
        np.mean([(gap * rng.choice((-1, 1), size=len(gap))).mean() for gap in gaps]) for _ in range(8000)
    ]
    expected = np.mean([abs(null) >= abs(found.value) for null in nulls])
    assert found.p == pytest.approx(expected, abs=0.02)


def test_p_values_are_uniform_where_nothing_differs() -> None:
    values = [mean_difference(pairs(seed, n=20), 1, seed).p or 0.0 for seed in range(200)]
    assert 0.02 <= np.mean(np.array(values) < 0.05) <= 0.10


def test_holm_is_that_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    values = [0.01, 0.04, 0.03, 0.005, 0.8, 0.03]
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1].tolist())
    assert holm([]) == []


def test_equal_verdicts_leave_a_width_and_equal_scores_of_another_kind_none() -> None:
    same = np.array([1.0, 0.0, 1.0, 1.0, 0.0] * 20)
    binary = mean_difference(PairedScores(same, same), 100, binary=True).ci95
    assert binary is not None and binary[0] < 0 < binary[1]
    graded = mean_difference(PairedScores(same / 2, same / 2), 100, scale=(0.0, 1.0))
    assert graded.ci95 is None
    # In a mean the second counts with the widest interval of its scale.
    both = average_difference([mean_difference(PairedScores(same, same), 100, binary=True), graded]).ci95
    assert both is not None and both[0] < binary[0] / 2 and binary[1] / 2 < both[1]
    assert mean_difference(PairedScores(same[:4] / 2, same[1:5] / 2), 100).ci95 is None
    golds = np.arange(100.0)
    metric = METRICS["pearson"]
    assert isinstance(metric, CorrelationMetric)
    assert correlation_difference(metric, PairedScores(golds, golds), golds, 100).ci95 is None


@pytest.mark.parametrize("seed", range(5))
def test_paired_intervals_contain_their_difference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for n in (1, 2, 5, 40):
        a, b = rng.integers(0, 2, size=(2, n)).astype(float)
        found = mean_difference(PairedScores(a, b), 50, binary=True)
        assert found.ci95 is not None and found.ci95[0] <= found.value <= found.ci95[1]
        assert -1 <= found.ci95[0] < found.ci95[1] <= 1


def test_the_difference_of_shares_resamples_prompts_with_their_instructions() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 4, size=80)
    a, b = rng.binomial(sizes, 0.7), rng.binomial(sizes, 0.5)
    found = share_difference(PairedScores(a / sizes, b / sizes), sizes.astype(float), 4000)
    assert found.value == pytest.approx(a.sum() / sizes.sum() - b.sum() / sizes.sum())
    drawn = rng.integers(0, 80, size=(4000, 80))
    ratios = (a - b)[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    assert found.ci95 == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])), abs=0.02)
    signs = rng.choice([-1, 1], size=(10_000, 80))
    hits = np.abs(signs @ (a - b)) >= abs((a - b).sum())
    assert found.p == pytest.approx(hits.mean(), abs=0.01)
    # One instruction each: a plain difference of means.
    ones = np.ones(80)
    same = share_difference(PairedScores((a > 0) * 1.0, (b > 0) * 1.0), ones, 100)
    assert same.value == pytest.approx(mean_difference(PairedScores((a > 0) * 1.0, (b > 0) * 1.0), 100).value)
