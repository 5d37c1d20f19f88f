"""Win rates and biases: the tie rules of section 9, and figures by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.mtbench.ratings import Side
from evalkit.mtbench.win_rates import (
    Match,
    bias,
    game_sides,
    side_by_ratings,
    spearman,
    win_rates,
)

SIDES: tuple[Side, ...] = ("model_1", "model_2", "tie", "error")


def match(game_1: Side, game_2: Side, lengths: tuple[int, int] | None = None, **names: str) -> Match:
    return Match(1, 1, names.get("one", "a"), names.get("two", "b"), game_1, game_2, lengths)


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("A", "B", "model_1"),
        ("B", "A", "model_2"),
        ("A", "A", "tie"),
        ("B", "B", "tie"),
        ("tie", "tie", "tie"),
        ("tie", "A", "tie"),
        ("A", "tie", "tie"),
        ("error", "B", "error"),
        ("A", "error", "error"),
    ],
)
def test_outcomes(first: Any, second: Any, outcome: str) -> None:
    assert match(*game_sides(first, second)).outcome == outcome


def test_win_rates_by_hand() -> None:
    """a against b: 2 wins, 1 loss, 1 tie; b against c: 1 win; an error counts nowhere."""
    rates = win_rates(
        [
            match("model_1", "model_1"),
            match("model_1", "model_1"),
            match("model_2", "model_2"),
            match("model_1", "model_2"),
            match("model_1", "model_1", one="b", two="c"),
            match("error", "model_1"),
        ]
    )
    assert list(rates) == ["a", "b", "c"]
    a, b, c = rates["a"], rates["b"], rates["c"]
    assert (a.n, a.wins, a.losses, a.ties, a.win_rate_adjusted) == (4, 2, 1, 1, 2.5 / 4)
    assert (b.n, b.wins, b.losses, b.ties, b.win_rate) == (5, 2, 2, 1, 2 / 5)
    assert (c.n, c.loss_rate) == (1, 1.0)


@given(st.lists(st.tuples(st.sampled_from(SIDES), st.sampled_from(SIDES)), max_size=30))
def test_two_models_mirror_each_other(games: list[tuple[Side, Side]]) -> None:
    rates = win_rates([match(*pair) for pair in games])
    if rates:
        assert rates["a"].wins == rates["b"].losses
        assert rates["a"].win_rate_adjusted + rates["b"].win_rate_adjusted == pytest.approx(1)
    counted = sum("error" not in pair for pair in games)
    assert all(rate.n == counted for rate in rates.values())


def test_biases_by_hand() -> None:
    found = bias(
        [
            match("model_1", "model_1", (200, 100)),  # consistent, the longer wins
            match("model_2", "model_2", (300, 100)),  # consistent, the shorter wins
            match("model_1", "model_2", (10, 20)),  # the first position both times
            match("model_2", "model_1", (10, 20)),  # the second position both times
            match("tie", "model_1", (10, 10)),
            match("error", "tie", (10, 20)),
        ]
    )
    assert (found.matches, found.errors, found.games) == (5, 1, 10)
    assert found.consistent == 2 / 5
    assert (found.favours_first, found.favours_second) == (1 / 5, 1 / 5)
    assert found.longer_wins == 1 / 2
    # Verdicts by position: (1st, 2nd), (2nd, 1st), (1st, 1st), (2nd, 2nd), (tie, 2nd).
    assert (found.first, found.second, found.tie) == (0.4, 0.5, 0.1)


def test_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    first, second = [1.0, 2.0, 2.0, 5.0, 9.0], [3.0, 1.0, 4.0, 4.0, 8.0]
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2], [1, 2]) is None


def test_ratings_decide_with_a_margin() -> None:
    assert side_by_ratings(7, 7.1) == "tie"
    assert side_by_ratings(7.25, 7) == "model_1"
    assert side_by_ratings(6, 7) == "model_2"
    assert side_by_ratings(None, 7) == "error"
