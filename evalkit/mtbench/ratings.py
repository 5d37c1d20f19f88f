"""The judge's text -> a rating: the reference's parser and a strict one, and pairwise verdicts.

Source: section 7 of the MT-Bench protocol notes (FastChat's parser and where it crashes).
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

RatingStatus = Literal["ok", "out_of_range", "unparsed", "malformed"]
RatingRule = Literal["double_bracket", "single_bracket", "strict", "none"]
Winner = Literal["A", "B", "tie", "error"]
Side = Literal["model_1", "model_2", "tie", "error"]

# `\d` is any Unicode digit on purpose: the reference matches full-width digits, then crashes on them.
_RATINGS: tuple[tuple[RatingRule, re.Pattern[str]], ...] = (
    ("double_bracket", re.compile(r"\[\[(\d+\.?\d*)\]\]")),
    ("single_bracket", re.compile(r"\[(\d+\.?\d*)\]")),
)
# What llm-jp-judge reads; everything else is no rating.
_WHOLE = re.compile(r"\[\[(10|[1-9])\]\]")
_PAIRS = (
    re.compile(r"\[\[(\d+\.?\d*),\s?(\d+\.?\d*)\]\]"),
    re.compile(r"\[(\d+\.?\d*),\s?(\d+\.?\d*)\]"),
)
_VERDICTS: tuple[tuple[str, Winner], ...] = (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie"))
# The digits that Python reads as a number: ASCII, an integer without leading zeros (but for zero).
_LITERAL = re.compile(r"0+|[1-9][0-9]*|[0-9]+\.[0-9]*")
_AT_THE_END = re.compile(r"\[\[([0-9]+)\]\][\s\"'”’」*_`.。．]*\Z")

LOWEST, HIGHEST = 1, 10
# What a pairwise prompt may ask for (`output_format` in the prompt file).
VERDICT_FORMAT, PAIR_FORMAT = "[[A]]", "[[rating_a,rating_b]]"
# Two ratings this close are a tie when a pair is decided by ratings.
TIE_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Rating:
    """What a parser reads in a judgment.

    `value` is None where nothing was found (`unparsed`) and where the reference would crash
    (`malformed`); `out_of_range` keeps the value outside 1 to 10 that the reference gives.
    """

    value: float | None
    status: RatingStatus
    rule: RatingRule


def parse_rating(text: str | None) -> Rating:
    """The reference's rating: the first `[[number]]`, else the first `[number]`.

    The number is an int or a float as Python reads the digits. A missing text, an integer with
    leading zeros and digits that are not ASCII, on which the reference crashes, are `malformed`;
    so is a number that is too large for a float, of which there is no mean.
    """
    if text is None:
        return Rating(None, "malformed", "none")
    for rule, pattern in _RATINGS:
        if found := pattern.search(text):
            value = _literal(found[1])
            if value is None:
                return Rating(None, "malformed", rule)
            return Rating(value, "ok" if LOWEST <= value <= HIGHEST else "out_of_range", rule)
    return Rating(None, "unparsed", "none")


def parse_whole(text: str | None) -> Rating:
    """llm-jp-judge's rating: the first whole number from 1 to 10 in double brackets, else none."""
    found = _WHOLE.search(text or "")
    return Rating(int(found[1]), "ok", "double_bracket") if found else Rating(None, "unparsed", "none")


def parse_strict(text: str | None) -> Rating:
    """An integer from 1 to 10 in double brackets at the end of the judgment, else no value."""
    found = _AT_THE_END.search(text or "")
    if not found:
        return Rating(None, "unparsed", "none")
    digits = found[1]
    if digits not in _SCALE:
        return Rating(None, "out_of_range", "strict")
    return Rating(int(digits), "ok", "strict")


_SCALE = frozenset(str(value) for value in range(LOWEST, HIGHEST + 1))


def parse_pair(text: str | None, output_format: str = VERDICT_FORMAT) -> Winner:
    """The winner of a game, read as the prompt's output format says.

    `[[a,b]]` rates both answers. Of several verdicts A wins over B, and B over a tie.
    """
    text = text or ""
    if output_format != PAIR_FORMAT:
        return next((winner for mark, winner in _VERDICTS if mark in text), "error")
    found = next((found for pattern in _PAIRS if (found := pattern.search(text))), None)
    first, second = (_literal(digits) for digits in found.groups()) if found else (None, None)
    return "error" if first is None or second is None else winner_of(first, second)


def winner_of(first: float, second: float) -> Winner:
    """Which of two ratings wins; a difference of up to 0.1 is a tie."""
    if abs(first - second) <= TIE_MARGIN:
        return "tie"
    return "A" if first > second else "B"


def _literal(digits: str) -> float | None:
    # By hand: Python's own parser of literals fails when two threads use it at once
    # (SystemError in 3.11), and a traceback printed in another thread uses it.
    if not _LITERAL.fullmatch(digits):
        return None
    try:
        value = float(digits) if "." in digits else int(digits)
        return value if math.isfinite(value) else None
    except (ValueError, OverflowError):
        return None
