"""Expected values: section 7 of the MT-Bench protocol notes, and the parser as it is described there."""

import ast
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.mtbench.ratings import (
    PAIR_FORMAT,
    parse_pair,
    parse_rating,
    parse_strict,
    parse_whole,
    winner_of,
)


@pytest.mark.parametrize(
    ("text", "value", "status", "rule"),
    [
        ("Rating: [[5]]", 5, "ok", "double_bracket"),
        ("[[7.5]]", 7.5, "ok", "double_bracket"),
        ("[[9.]]", 9.0, "ok", "double_bracket"),
        ("the matrix [[1]] ... Rating: [[8]]", 1, "ok", "double_bracket"),
        ("see [3], so [[8]]", 8, "ok", "double_bracket"),
        ("as in a[0], rating 8", 0, "out_of_range", "single_bracket"),
        ("[[11]]", 11, "out_of_range", "double_bracket"),
        ("[[0]]", 0, "out_of_range", "double_bracket"),
        ("[[100]]", 100, "out_of_range", "double_bracket"),
        ("[[00]]", 0, "out_of_range", "double_bracket"),
        ("[[05.5]]", 5.5, "ok", "double_bracket"),
        ("[[05]]", None, "malformed", "double_bracket"),
        ("[[007]]", None, "malformed", "double_bracket"),
        ("[[８]]", None, "malformed", "double_bracket"),
        ("[８]", None, "malformed", "single_bracket"),
        ("[[ 5 ]]", None, "unparsed", "none"),
        ("[[5/10]]", None, "unparsed", "none"),
        ("評価：5", None, "unparsed", "none"),
        ("［［5］］", None, "unparsed", "none"),
        ("$ERROR$", None, "unparsed", "none"),
        ("", None, "unparsed", "none"),
        (None, None, "malformed", "none"),
        # A judge that cannot stop counting: no float holds it, and no mean could be taken.
        (f"[[{'1' * 400}]]", None, "malformed", "double_bracket"),
        (f"[[{'1' * 400}.]]", None, "malformed", "double_bracket"),
        (f"[[{'1' * 5000}]]", None, "malformed", "double_bracket"),
    ],
)
def test_reference_parser(text: str | None, value: float | None, status: str, rule: str) -> None:
    rating = parse_rating(text)
    assert (rating.value, rating.status, rating.rule) == (value, status, rule)
    assert type(rating.value) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Rating: [[5]]", 5),
        ("[[10]]", 10),
        ("not [[0]], [[11]] or [[7.5]], nor [5]: [[3]], not [[4]]", 3),
        ("[[05]] [[８]] [[100]] [9]", None),
        ("", None),
        (None, None),
    ],
)
def test_the_parser_of_llm_jp_judge(text: str | None, value: int | None) -> None:
    """Section 14: the first whole number from 1 to 10 in double brackets."""
    rating = parse_whole(text)
    assert (rating.value, rating.status) == (value, "ok" if value else "unparsed")


@given(st.text(alphabet="[]0123456789.８ ab評", max_size=30))
def test_value_is_what_the_description_gives(text: str) -> None:
    found = re.search(r"\[\[(\d+\.?\d*)\]\]", text) or re.search(r"\[(\d+\.?\d*)\]", text)
    rating = parse_rating(text)
    if found is None:
        assert rating.status == "unparsed"
        return
    try:
        expected = ast.literal_eval(found.group(1))
    except SyntaxError:
        assert (rating.value, rating.status) == (None, "malformed")
    else:
        assert rating.value == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("good. Rating: [[8]]", 8),
        ("例 [[1]] 。評価：[[10]]。\n", 10),
        ('"[[3]]"', 3),
        ("[[8]] and more words", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("[[7.5]]", None),
        ("[[08]]", None),
        ("[8]", None),
        ("[[８]]", None),
        (None, None),
    ],
)
def test_strict_parser_takes_a_whole_number_at_the_end(text: str | None, value: int | None) -> None:
    assert parse_strict(text).value == value


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("[[A]]", "A"),
        ("[[B]]", "B"),
        ("[[C]]", "tie"),
        ("[[C]] or [[B]]", "B"),
        ("[[B]] then [[A]]", "A"),
        ("[[D]]", "error"),
        ("A", "error"),
        (None, "error"),
    ],
)
def test_verdicts(text: str | None, winner: str) -> None:
    assert parse_pair(text) == winner


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("[[7, 5]]", "A"),
        ("[[5,7]]", "B"),
        ("[[7.1,7]]", "tie"),
        ("[8, 9.5]", "B"),
        ("[[7,  5]]", "error"),
        ("[[05,1]]", "error"),
        ("[[7]]", "error"),
    ],
)
def test_rating_pairs(text: str, winner: str) -> None:
    assert parse_pair(text, PAIR_FORMAT) == winner


def test_a_tenth_is_still_a_tie() -> None:
    assert winner_of(7.5, 7.5) == "tie"
    assert winner_of(7.7, 7.5) == "A"
    assert winner_of(7.25, 7.5) == "B"
