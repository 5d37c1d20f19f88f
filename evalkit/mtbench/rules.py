"""The aggregation rules of the protocol notes: which scores each implementation keeps, and what it averages.

Source: section 8 of the MT-Bench protocol notes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from evalkit.mtbench.ratings import HIGHEST, LOWEST

MINUS_ONE = -1.0


class Overall(Enum):
    """What the average is a mean of: the category means, or all scores."""

    categories = "categories"
    scores = "scores"


@dataclass(frozen=True, slots=True)
class Scored:
    """One score that enters the tables; -1 is the reference's mark for a failed judgment.

    `answer` numbers the answers to one question. `repeat` numbers the judgments of one answer,
    which become one score first; None (a replayed log): every row counts by itself.
    """

    question_id: int
    category: str
    turn: int
    score: float
    answer: int = 0
    repeat: int | None = None


def _all(score: float) -> bool:
    return True


def _not_minus_one(score: float) -> bool:
    return score != MINUS_ONE


def _whole_in_range(score: float) -> bool:
    return LOWEST <= score <= HIGHEST and score == int(score)


@dataclass(frozen=True)
class Rule:
    """How one implementation turns scores into numbers.

    `divisor` turns the scale of 10 into the rule's own. `merge_turns`: the rows of a (question,
    turn) become their mean first. `per_answer`: the mean over answers of each answer's own figures.
    `last_turn`: only turn 2 counts.
    """

    keeps: Callable[[float], bool]
    overall: Overall
    merge_turns: bool = False
    per_answer: bool = False
    last_turn: bool = False
    divisor: float = 1.0

    def counts(self, row: Scored) -> bool:
        """Whether the rule keeps a score."""
        return self.keeps(row.score) and not (self.last_turn and row.turn != 2)


RULES: Mapping[str, Rule] = {
    "llm_leaderboard": Rule(_all, Overall.categories),
    "show_result": Rule(_not_minus_one, Overall.scores),
    "g_leaderboard": Rule(_not_minus_one, Overall.categories, merge_turns=True),
    "nejumi_4": Rule(_not_minus_one, Overall.categories, merge_turns=True, divisor=10.0),
    "llm_jp_judge": Rule(_whole_in_range, Overall.scores),
    "swallow": Rule(_not_minus_one, Overall.scores, per_answer=True),
    "swallow_instruct": Rule(_not_minus_one, Overall.scores, divisor=10.0),
    "flexeval": Rule(_whole_in_range, Overall.scores, last_turn=True),
}
