"""Intervals against SciPy, statsmodels, published examples, exact coverage, and what must always hold."""

import time

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.proportion import proportion_confint

from evalkit.metrics import intervals as statistics
from evalkit.metrics.intervals import Interval, Spread

RNG = np.random.default_rng(20241101)


def known(ends: Interval | None) -> Interval:
    assert ends is not None and ends[0] < ends[1]
    return ends


def part(ends: Interval) -> Spread:
    return Spread(ends, 0.1, ends)


# --- proportions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 5, 10, 37, 100, 2000])
def test_wilson_is_that_of_statsmodels(n: int) -> None:
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        expected = proportion_confint(successes, n, method="wilson")
        assert statistics.wilson(successes, n) == pytest.approx(expected, abs=1e-12)


def test_wilson_always_has_a_width_contains_the_rate_and_moves_with_it() -> None:
    for n in (1, 3, 10, 100, 1319):
        ends = [statistics.wilson(successes, n) for successes in range(n + 1)]
        for successes, (low, high) in enumerate(ends):
            assert 0 <= low <= successes / n <= high <= 1 and low < high
        assert ends == sorted(ends) and [high for _, high in ends] == sorted(high for _, high in ends)
        assert ends[0][0] == 0.0 and ends[-1][1] == 1.0
    widths = [np.subtract(*statistics.wilson(n // 5, n)[::-1]) for n in (5, 10, 50, 100, 1000, 10_000)]
    assert widths == sorted(widths, reverse=True)


def test_wilson_covers_as_often_as_it_says() -> None:
    """Exact: the binomial probability of every outcome whose interval holds the truth."""
    n, truths = 100, np.linspace(0.01, 0.99, 99)
    ends = np.array([statistics.wilson(successes, n) for successes in range(n + 1)])
    covered = [
        scipy.stats.binom.pmf(np.arange(n + 1), n, p)[(ends[:, 0] <= p) & (p <= ends[:, 1])].sum()
        for p in truths
    ]
    assert min(covered) > 0.88 and 0.94 < np.mean(covered) < 0.965


def test_zero_right_of_a_hundred_is_not_certain() -> None:
    for value, ends in ((0.0, (0.0, 0.0370)), (1.0, (0.9630, 1.0))):
        spread = statistics.of_mean([value] * 100, 10_000, binary=True)
        assert known(spread.interval) == pytest.approx(ends, abs=5e-5)
        assert spread.carried == spread.interval
        assert spread.error == pytest.approx(0.0370 / (2 * 1.96), abs=1e-4)


def test_binary_errors_are_those_of_the_mean() -> None:
    values = [1.0, 1.0, 0.0, 1.0, 0.0]
    spread = statistics.of_mean(values, 0, binary=True)
    assert spread.error == pytest.approx(scipy.stats.sem(values))
    assert spread.interval == pytest.approx(proportion_confint(3, 5, method="wilson"))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Newcombe 1998, Stat. Med. 17:2635, method 10.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        # Altman et al., Statistics with Confidence, 2000.
        ((14, 5, 0, 22), (0.0115, 0.2265)),
        # Bentur et al. 2009, as in Fagerland et al. 2014.
        ((1, 1, 7, 12), (-0.507, -0.026)),
    ],
)
def test_paired_proportions_as_published(table: tuple[int, int, int, int], expected: Interval) -> None:
    digits = 4 if expected[0] > 0 else 3
    assert statistics.newcombe(*table) == pytest.approx(expected, abs=0.5 * 10**-digits)
    both, only_a, only_b, neither = table
    a = np.repeat([1.0, 1.0, 0.0, 0.0], table)
    b = np.repeat([1.0, 0.0, 1.0, 0.0], table)
    assert statistics.of_paired(a, b).interval == statistics.newcombe(*table)
    low, high = statistics.newcombe(both, only_b, only_a, neither)
    assert (-high, -low) == pytest.approx(statistics.newcombe(*table)), "the other way round"


def test_paired_intervals_always_have_a_width_and_contain_the_difference() -> None:
    for n in (1, 2, 3, 7):
        for both in range(n + 1):
            for only_a in range(n + 1 - both):
                for only_b in range(n + 1 - both - only_a):
                    table = (both, only_a, only_b, n - both - only_a - only_b)
                    low, high = known(statistics.newcombe(*table))
                    assert -1 <= low <= (only_a - only_b) / n <= high <= 1, table
    for right in (0, 1, 50, 99, 100):
        low, high = known(statistics.newcombe(right, 0, 0, 100 - right))
        assert high - low > 0.005, "equal verdicts do not mean certainty"


def test_paired_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    for shares in ((0.5, 0.15, 0.05, 0.3), (0.1, 0.02, 0.02, 0.86), (0.8, 0.05, 0.1, 0.05)):
        drawn = rng.multinomial(100, shares, size=3000)
        ends = np.array([statistics.newcombe(*map(int, row)) for row in drawn])
        truth = shares[1] - shares[2]
        assert 0.93 < np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) <= 0.99, shares


# --- means of several figures --------------------------------------------------------------------


def test_mover_gives_newcombes_interval_of_two_proportions() -> None:
    """Newcombe 1998, Stat. Med. 17:873, method 10: 56/70 - 48/80; the second is counted by its failures."""
    spread = statistics.of_sum(
        [56 / 70, 32 / 80], [part(statistics.wilson(56, 70)), part(statistics.wilson(32, 80))], [1, 1]
    )
    low, high = known(spread.interval)
    assert (low - 1, high - 1) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_mover_is_the_normal_interval_where_its_parts_are() -> None:
    errors, values = np.array([0.02, 0.05, 0.03]), np.array([0.3, 0.6, 0.8])
    parts = [part((v - statistics.Z * e, v + statistics.Z * e)) for v, e in zip(values, errors, strict=True)]
    spread = statistics.of_sum(values.tolist(), parts)
    error = np.sqrt((errors**2).sum()) / 3
    assert spread.error == pytest.approx(error)
    assert known(spread.interval) == pytest.approx(
        (values.mean() - statistics.Z * error, values.mean() + statistics.Z * error)
    )


def test_an_average_of_proportions_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    for truths in ((0.02, 0.5, 0.9), (0.0, 0.01, 0.3), (1.0, 0.98, 0.97)):
        hits = 0
        for _ in range(2000):
            right = [int(rng.binomial(100, p)) for p in truths]
            parts = [part(statistics.wilson(k, 100)) for k in right]
            low, high = known(statistics.of_sum([k / 100 for k in right], parts).interval)
            assert 0 <= low <= high <= 1
            hits += low - 1e-12 <= np.mean(truths) <= high + 1e-12
        assert 0.93 < hits / 2000 <= 1.0, truths


def test_an_average_of_none_right_keeps_the_width() -> None:
    parts = [statistics.of_mean([0.0] * 100, 100, binary=True)] * 9
    low, high = known(statistics.of_sum([0.0] * 9, parts).interval)
    assert (low, high) == (0.0, pytest.approx(0.0370 / 3, abs=1e-4))


def test_a_silent_part_brings_the_widest_interval_of_its_scale() -> None:
    sure = statistics.of_mean([0.0, 1.0] * 50, 100, binary=True)
    silent = statistics.of_mean([0.0] * 100, 100, scale=(0.0, 1.0))
    assert silent.interval is None and silent.error is None
    assert silent.carried == pytest.approx(statistics.wilson(0, 100))
    low, high = known(statistics.of_sum([0.5, 0.0], [sure, silent]).interval)
    assert high - 0.25 > 0.25 - low and low == pytest.approx(0.25 - (0.5 - known(sure.interval)[0]) / 2)
    # Without a part that has an interval, or with one whose scale has no ends, there is no interval.
    assert statistics.of_sum([0.0, 0.0], [silent, silent]) == Spread(
        carried=statistics.of_sum([0.0, 0.0], [part(known(silent.carried))] * 2).interval
    )
    assert statistics.of_sum([0.5, 0.8], [sure, Spread()]) == Spread()
    assert statistics.of_sum([], []) == Spread()


@pytest.mark.parametrize("values", [[3.0] * 4, [0.0] * 9, [10.0] * 2, [1.0, 2.0, 9.5], [0.0, 10.0]])
def test_the_widest_interval_contains_the_mean_and_stays_on_the_scale(values: list[float]) -> None:
    low, high = known(statistics.widest(values, (0.0, 10.0)))
    assert 0 <= low <= np.mean(values) <= high <= 10


# --- the bootstrap -------------------------------------------------------------------------------


def test_the_resamples_are_those_of_pcg64_seed_0() -> None:
    values = RNG.random(100)
    indices = np.random.Generator(np.random.PCG64(0)).integers(0, 100, size=(10_000, 100))
    expected = values[indices].mean(axis=1)
    assert np.array_equal(statistics.resampled_means(values.tolist(), 10_000), expected)
    low, high = known(statistics.of_mean(values.tolist(), 10_000).interval)
    ordered = np.sort(expected)
    assert ordered[240] <= low <= ordered[260] and ordered[9740] <= high <= ordered[9760]


def test_large_datasets_are_drawn_in_blocks_of_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.random(37).tolist()
    whole = statistics.resampled_means(values, 1000)
    monkeypatch.setattr(statistics, "_CHUNK", 37 * 64)
    assert np.array_equal(statistics.resampled_means(values, 1000), whole)
    monkeypatch.setattr(statistics, "_CHUNK", 5)
    assert np.array_equal(statistics.resampled_means(values, 1000), whole)


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    values = RNG.normal(size=80)
    ours = statistics.of_mean(values.tolist(), 10_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(5)
    )
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.interval == pytest.approx(theirs.confidence_interval, abs=0.04 * width)
    assert ours.error == pytest.approx(scipy.stats.sem(values), rel=1e-12)
    drawn = statistics.of_statistic(values.mean(), statistics.resampled_means(values.tolist(), 10_000), 80)
    assert drawn.error == pytest.approx(theirs.standard_error, rel=0.04)
    assert drawn.interval == ours.interval


def test_values_that_do_not_tell_have_no_interval() -> None:
    scale = (0.0, 1.0)
    for values in ([0.3] * 100, [0.1] * 7, [0.0] * 100, [0.2, 0.4, 0.9, 0.1], [0.5]):
        spread = statistics.of_mean(values, 1000, scale=scale)
        assert spread.interval is None and spread.error is None and spread.carried is not None
        assert statistics.of_mean(values, 1000) == Spread()
    assert known(statistics.of_mean([0.2, 0.4, 0.9, 0.1, 0.3], 1000).interval)


def test_a_statistic_that_no_resample_moves_has_no_interval() -> None:
    assert statistics.of_statistic(1.0, 1.0 + 1e-16 * RNG.normal(size=500), 100) == Spread()
    assert statistics.of_statistic(0.5, RNG.random(500), 4) == Spread()
    assert statistics.of_statistic(0.5, np.empty(0), 100) == Spread()
    low, high = known(statistics.of_statistic(1.0, RNG.random(500) * 0.9, 100).interval)
    assert high == 1.0 and low < 0.1, "the estimate is always inside"


def test_without_resamples_only_closed_forms_are_given() -> None:
    assert statistics.of_mean([0.0, 1.0, 1.0], 0, binary=True).interval == statistics.wilson(2, 3)
    values = [0.1, 0.4, 0.2, 0.9, 0.5]
    assert statistics.of_mean(values, 0) == Spread(error=pytest.approx(scipy.stats.sem(values)))


def test_a_whole_suite_takes_seconds() -> None:
    started = time.process_time()
    for _ in range(23):
        statistics.of_mean(RNG.random(100).tolist(), 10_000)
    assert time.process_time() - started < 5


# --- questions asked several times ---------------------------------------------------------------


def crossed(questions: int, trials: int, spread: tuple[float, float, float]) -> statistics.FloatArray:
    """Scores [questions, trials] with these standard deviations between questions, trials and within."""
    rng = np.random.default_rng(7)
    return (
        rng.normal(0, spread[0], (questions, 1))
        + rng.normal(0, spread[1], (1, trials))
        + rng.normal(0, spread[2], (questions, trials))
    )


def test_variance_shares_by_hand_and_of_known_components() -> None:
    by_questions = statistics.variance_shares(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert by_questions == {"questions": 1.0, "trials": 0.0, "within": 0.0}
    by_trials = statistics.variance_shares(np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert by_trials == {"questions": 0.0, "trials": 1.0, "within": 0.0}
    shares = statistics.variance_shares(crossed(400, 400, (3.0, 2.0, 1.0)))
    expected = {"questions": 9 / 14, "trials": 4 / 14, "within": 1 / 14}
    assert shares == pytest.approx(expected, abs=0.06)
    unknown = statistics.variance_shares(crossed(400, 400, (3.0, 0.0, 1.0)), trials_known=False)
    assert unknown is not None and unknown.pop("trials") is None
    assert unknown == pytest.approx({"questions": 0.9, "within": 0.1}, abs=0.02)
    assert statistics.variance_shares(np.ones((5, 5))) is None
    assert statistics.variance_shares(crossed(5, 1, (1.0, 1.0, 1.0))) is None


def test_two_ways_holds_what_all_questions_of_a_trial_share() -> None:
    scores = crossed(50, 10, (0.1, 1.0, 0.1))
    two_ways = statistics.resampled_two_ways(scores[:, :, None], 4000)
    # The variance of the mean: that of the trials' means over their number, nearly all of it.
    assert np.std(two_ways) == pytest.approx(np.std(scores.mean(axis=0)) / np.sqrt(10), rel=0.05)
    assert np.mean(two_ways) == pytest.approx(scores.mean(), abs=0.02)
    assert np.std(statistics.resampled_within(list(scores[:, :, None]), 4000)) < np.std(two_ways) / 2


def test_within_redraws_questions_and_their_answers() -> None:
    scores = crossed(40, 20, (1.0, 0.0, 2.0))
    resampled = statistics.resampled_within(list(scores[:, :, None]), 4000)
    expected = np.sqrt(np.var(scores.mean(axis=1)) / 40 + scores.var(axis=1).mean() / (40 * 20))
    assert np.std(resampled) == pytest.approx(expected, rel=0.05)
    uneven = statistics.resampled_within([np.ones((n, 2)) for n in (1, 2, 3)], 50)
    assert uneven.tolist() == [[1.0, 1.0]] * 50


def test_with_one_trial_questions_alone_are_redrawn() -> None:
    scores = crossed(30, 1, (1.0, 0.0, 0.0))
    for resampled in (
        statistics.resampled_two_ways(scores[:, :, None], 4000),
        statistics.resampled_within(list(scores[:, :, None]), 4000),
    ):
        assert np.std(resampled) == pytest.approx(np.std(scores) / np.sqrt(30), rel=0.05)
