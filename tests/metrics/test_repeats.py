"""avg@n and pass@k against enumeration, seeds, and intervals and tests that take the question as the unit."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from evalkit.core.errors import InputError
from evalkit.leaderboard.paired import PairedScores, mean_difference
from evalkit.metrics import intervals as statistics
from evalkit.metrics.repeats import (
    check_repeats,
    measure,
    pass_at_k,
    question_values,
    repeated_name,
    sample_seed,
)

RNG = np.random.default_rng(20260401)

# --- the figures ---------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    """Every subset of k of n samples, counted."""
    for n in range(1, 11):
        for right, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([1] * right + [0] * (n - right), k))
            assert pass_at_k(n, right, k) == sum(map(any, subsets)) / len(subsets)


def test_pass_at_k_is_the_product_form_too() -> None:
    for n in (1, 2, 7, 30, 200):
        for right, k in itertools.product(range(0, n + 1, max(1, n // 30)), range(1, n + 1, max(1, n // 30))):
            product = math.prod((1 - Fraction(k, i) for i in range(n - right + 1, n + 1)), start=Fraction(1))
            expected = Fraction(1) if n - right < k else 1 - product
            assert pass_at_k(n, right, k) == float(expected)


def test_pass_at_k_of_many_samples_is_exact_at_its_ends() -> None:
    assert pass_at_k(10_000, 0, 5_000) == 0.0 and pass_at_k(10_000, 10_000, 1) == 1.0
    assert pass_at_k(10_000, 1, 1) == 1e-4 and pass_at_k(10_000, 9_999, 2) == 1.0


def test_one_value_per_question() -> None:
    questions = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert question_values(questions) == [0.25, 0.5, 0.0, 1.0]
    assert question_values(questions, 2) == [0.5, pytest.approx(5 / 6), 0.0, 1.0]
    assert question_values([[0.2, 0.4], [1.0]]) == [pytest.approx(0.3), 1.0]
    assert question_values(questions, 1) == question_values(questions)
    assert measure(questions, 100)[0] == 0.4375 and measure(questions, 100, k=4)[0] == 0.75


def test_k_is_in_the_name() -> None:
    assert repeated_name("exact_match", n=4) == "exact_match_avg@4"
    assert repeated_name("exact_match", n=4, k=2) == "exact_match_pass@2"


# --- seeds ---------------------------------------------------------------------------------------


def test_seeds_stay_what_they_are() -> None:
    """A kept run is continued with the same seeds: these numbers must not change."""
    assert [sample_seed(42, "jamp/dev/0", repeat) for repeat in range(2)] == [1_071_002_017, 1_467_748_510]
    assert sample_seed(42, "例/dev/0", 0) == 863_354_189


def test_seeds_differ_and_fit_every_engine() -> None:
    keys = list(itertools.product((0, 42), [f"jamp/dev/{index}" for index in range(100)], range(16)))
    seeds = {sample_seed(*key) for key in keys}
    assert len(seeds) >= len(keys) - 1
    assert min(seeds) >= 0 and 2**30 < max(seeds) < 2**31
    # An id and a repeat do not run into each other.
    assert sample_seed(1, "a/1", 11) != sample_seed(1, "a/11", 1) != sample_seed(11, "a/1", 1)


# --- intervals and tests -------------------------------------------------------------------------


def test_the_interval_resamples_questions_and_keeps_their_samples_together() -> None:
    """Every resample of 6 questions, counted, against the bootstrap."""
    questions = [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0]]
    for k in (None, 2):
        values = np.array(question_values(questions, k))
        every = values[np.array(list(itertools.product(range(6), repeat=6)))].mean(axis=1)
        value, spread = measure(questions, 20_000, k=k, binary=True)
        assert value == pytest.approx(values.mean())
        assert spread.interval == pytest.approx(np.percentile(every, [2.5, 97.5]), abs=0.02)
        # The deviation of the resamples, for a sample of 6.
        assert spread.error == pytest.approx(every.std() * math.sqrt(6 / 5))


def test_more_samples_of_the_same_questions_do_not_make_them_more_questions() -> None:
    once = [[float(right)] for right in RNG.integers(0, 2, 40)]
    _, single = measure(once, 10_000, binary=False)
    _, copied = measure([scores * 25 for scores in once], 10_000, binary=False)
    assert copied.interval == single.interval and copied.error == single.error
    assert single.error is not None
    naive = statistics.of_mean([right for scores in once for right in scores * 25], 10_000).error
    assert naive is not None and naive < single.error / 4


@pytest.mark.parametrize("right", [0, 1])
def test_one_verdict_per_question_gets_the_interval_of_a_share(right: int) -> None:
    wilson = statistics.wilson(50 * right, 50)
    assert measure([[right]] * 50, 100, binary=True)[1].interval == wilson
    assert measure([[right, 0, 0]] * 50, 100, k=3)[1].interval == wilson
    several = measure([[right] * 3] * 50, 100, binary=True, scale=(0.0, 1.0))[1]
    assert several.interval is None and several.carried is not None
    low, high = several.carried
    assert low <= right <= high and low < high


def test_the_paired_test_swaps_whole_questions() -> None:
    """Every swap of 8 questions, counted; samples of one question never part."""
    a = RNG.integers(0, 2, (8, 4)).tolist()
    b = RNG.integers(0, 2, (8, 4)).tolist()
    pairs = PairedScores(np.array(question_values(a)), np.array(question_values(b)))
    found = mean_difference(pairs, 10_000, binary=False, scale=(0.0, 1.0))
    totals = [sum(one) - sum(other) for one, other in zip(a, b, strict=True)]
    swaps = [
        abs(sum(sign * gap for sign, gap in zip(signs, totals, strict=True)))
        for signs in itertools.product((-1, 1), repeat=8)
    ]
    assert found.test == "permutation"
    assert found.p == sum(total >= abs(sum(totals)) for total in swaps) / len(swaps)
    assert found.value == pytest.approx(sum(totals) / 32)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ks", "where", "fix"), [((1, 8), "pass@8", "samples=8"), ((0,), "pass@0", "from 1 to 4")]
)
def test_bad_numbers_are_one_message(ks: tuple[int, ...], where: str, fix: str) -> None:
    with pytest.raises(InputError) as error:
        check_repeats(4, ks)
    assert error.value.where == where and fix in str(error.value.fix)


def test_good_numbers_pass() -> None:
    check_repeats(1, (1,))
    check_repeats(10, (1, 10))


def test_pass_at_k_of_other_scores_is_refused() -> None:
    with pytest.raises(InputError, match="0 and 1"):
        question_values([[0.5, 1.0]], 1)
    with pytest.raises(InputError, match="pass@3 of 2 samples"):
        measure([[0, 1, 1], [0, 1]], 100, k=3)
