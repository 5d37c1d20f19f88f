"""Scores -> tables: which scores each implementation keeps, what it averages, and the intervals.

A figure is one number per scope: turn_1, turn_2, average and each category. Where an original
prints no such figure (categories in show_result, turns in llm_leaderboard) it is the rule applied to
the scores of that scope.

Source: section 8 of the MT-Bench protocol notes.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from statistics import fmean, median, stdev
from typing import TypeVar

import numpy as np

from evalkit.core.config import Reduce
from evalkit.metrics.intervals import (
    FEWEST,
    SEED,
    FloatArray,
    Spread,
    of_statistic,
    of_sum,
    resample_indices,
    widest,
)
from evalkit.mtbench.fastchat import CATEGORIES
from evalkit.mtbench.ratings import HIGHEST, LOWEST

K = TypeVar("K", bound=Hashable)
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
    "llm_leaderboard": Rule(lambda score: True, Overall.categories),
    "show_result": Rule(_not_minus_one, Overall.scores),
    "g_leaderboard": Rule(_not_minus_one, Overall.categories, merge_turns=True),
    "nejumi_4": Rule(_not_minus_one, Overall.categories, merge_turns=True, divisor=10.0),
    "llm_jp_judge": Rule(_whole_in_range, Overall.scores),
    "swallow": Rule(_not_minus_one, Overall.scores, per_answer=True),
    "swallow_instruct": Rule(_not_minus_one, Overall.scores, divisor=10.0),
    "flexeval": Rule(_whole_in_range, Overall.scores, last_turn=True),
}

TURN_SCOPES = {"turn_1": 1, "turn_2": 2}

CategoryMeans = dict[str, float | None]


def scopes(rows: Iterable[Scored]) -> list[str]:
    """The scopes of a table: average, the categories present in card order, turn_1, turn_2."""
    present = {row.category for row in rows}
    known = [name for name in CATEGORIES if name in present]
    return ["average", *known, *sorted(present - set(known)), *TURN_SCOPES]


def table(rows: Sequence[Scored], rule: Rule, reduce: Reduce = Reduce.mean) -> CategoryMeans:
    """One model's figures by scope, unrounded; None where no score is left."""
    kept = _kept(rows, rule, reduce)
    return {scope: _figure(in_scope(kept, scope), rule) for scope in scopes(rows)}


def all_tables(rows: Sequence[Scored], reduce: Reduce = Reduce.mean) -> dict[str, CategoryMeans]:
    """`table` by the name of every rule."""
    return {name: table(rows, rule, reduce) for name, rule in RULES.items()}


def turn_means(rows: Sequence[Scored], reduce: Reduce = Reduce.mean) -> dict[tuple[int, int], float | None]:
    """The mean over the answers by question and turn, the repeats of each reduced first; None: all are -1."""
    kept = _kept(rows, RULES["g_leaderboard"], reduce)
    scores = {(row.question_id, row.turn): row.score for row in kept}
    return {key: scores.get(key) for key in ((row.question_id, row.turn) for row in rows)}


def deviation_over_answers(rows: Sequence[Scored], rule: Rule, reduce: Reduce = Reduce.mean) -> float | None:
    """The sample standard deviation of the average over the answers; None for a single answer."""
    kept = _kept(rows, rule, reduce)
    figures = [_one_figure(part, rule) for part in _groups(kept, lambda row: row.answer).values()]
    return stdev(figures) / rule.divisor if len(figures) > 1 else None


def intervals(
    rows: Sequence[Scored], rule: Rule, resamples: int, reduce: Reduce = Reduce.mean
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals by scope: questions resampled with replacement within categories.

    None for fewer than five questions, and where they all have one score. In a wider scope such a
    category adds the widest interval its ratings allow.
    """
    kept = _kept(rows, rule, reduce)
    return {scope: _spread(in_scope(kept, scope), rule, resamples).interval for scope in scopes(rows)}


def _spread(rows: list[Scored], rule: Rule, resamples: int) -> Spread:
    estimate = _figure(rows, rule)
    if estimate is None:
        return Spread()
    categories = {name: _question_means(group) for name, group in _by_category(rows).items()}
    questions = sum(map(len, categories.values()))
    drawn = of_statistic(estimate, _resampled(rows, rule, resamples), questions)
    silent = [n for n, means in categories.items() if len(means) < FEWEST or min(means) == max(means)]
    if drawn.interval is None or not silent:
        return drawn
    scores = [row.score for row in rows]
    scale = min(LOWEST, *scores) / rule.divisor, max(HIGHEST, *scores) / rule.divisor
    estimates, spreads, weights = [estimate], [drawn], [1.0]
    for name in silent:
        means = [mean / rule.divisor for mean in categories[name]]
        low, high = widest(means, scale)
        share = sum(row.category == name for row in rows) / len(rows)
        # Its mean is part of the estimate already: here it brings its distances alone.
        estimates.append(0.0)
        spreads.append(Spread(carried=(low - fmean(means), high - fmean(means))))
        weights.append(share if rule.overall is Overall.scores else 1 / len(categories))
    return of_sum(estimates, spreads, weights)


def _question_means(rows: Iterable[Scored]) -> list[float]:
    return [fmean(row.score for row in own) for own in _groups(rows, lambda row: row.question_id).values()]


def _kept(rows: Sequence[Scored], rule: Rule, reduce: Reduce) -> list[Scored]:
    kept = [row for row in rows if rule.counts(row)]
    kept = _merged(kept, reduce, lambda row: None if row.repeat is None else row.answer)
    # The rows of one (question, turn) are one figure, whatever answer or repeat they come from.
    return _merged(kept, Reduce.mean, lambda row: 0) if rule.merge_turns else kept


def _merged(rows: list[Scored], reduce: Reduce, answer_of: Callable[[Scored], int | None]) -> list[Scored]:
    groups: dict[tuple[int, ...], list[Scored]] = {}
    for position, row in enumerate(rows):
        answer = answer_of(row)
        key = (row.question_id, row.turn, answer) if answer is not None else (position,)
        groups.setdefault(key, []).append(row)
    return [
        replace(group[0], score=reduced([row.score for row in group], reduce), repeat=None)
        for group in groups.values()
    ]


def reduced(ratings: Sequence[float], reduce: Reduce) -> float:
    """Repeated judgments of one answer as one score."""
    return fmean(ratings) if reduce is Reduce.mean else median(ratings)


def in_scope(rows: list[Scored], scope: str) -> list[Scored]:
    """The rows of a scope."""
    if scope == "average":
        return rows
    if scope in TURN_SCOPES:
        return [row for row in rows if row.turn == TURN_SCOPES[scope]]
    return [row for row in rows if row.category == scope]


def _figure(rows: list[Scored], rule: Rule) -> float | None:
    if not rows:
        return None
    parts = _groups(rows, lambda row: row.answer).values() if rule.per_answer else [rows]
    return fmean(_one_figure(part, rule) for part in parts) / rule.divisor


def _one_figure(rows: list[Scored], rule: Rule) -> float:
    if rule.overall is Overall.scores:
        return fmean(row.score for row in rows)
    return fmean(fmean(row.score for row in group) for group in _by_category(rows).values())


def _by_category(rows: Iterable[Scored]) -> dict[str, list[Scored]]:
    return dict(sorted(_groups(rows, lambda row: row.category).items()))


def _groups(rows: Iterable[Scored], key: Callable[[Scored], K]) -> dict[K, list[Scored]]:
    groups: dict[K, list[Scored]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _resampled(rows: list[Scored], rule: Rule, resamples: int) -> FloatArray:
    """The rule's figure for `rows` in each resample: [resamples]."""
    runs = sorted({row.answer for row in rows}) if rule.per_answer else [None]
    draws = {
        name: _draw_category(group, runs, resamples, stream)
        for stream, (name, group) in enumerate(_by_category(rows).items())
    }
    sums = np.stack([draw[0] for draw in draws.values()])
    counts = np.stack([draw[1] for draw in draws.values()])
    with np.errstate(invalid="ignore", divide="ignore"):
        if rule.overall is Overall.scores:
            figures = sums.sum(axis=0) / counts.sum(axis=0)
        else:
            figures = np.nanmean(sums / counts, axis=0)
    return np.asarray(np.nanmean(figures, axis=0) / rule.divisor, dtype=np.float64)


def _draw_category(
    rows: list[Scored], runs: Sequence[int | None], resamples: int, stream: int
) -> tuple[FloatArray, FloatArray]:
    """Resampled sums and counts of one category's scores: two arrays [runs, resamples]."""
    questions = {question: place for place, question in enumerate(sorted({row.question_id for row in rows}))}
    position = {run: place for place, run in enumerate(runs)}
    sums = np.zeros((len(runs), len(questions)))
    counts = np.zeros_like(sums)
    for row in rows:
        run = position.get(row.answer, 0)
        sums[run, questions[row.question_id]] += row.score
        counts[run, questions[row.question_id]] += 1
    blocks = list(resample_indices(len(questions), resamples))
    # Categories of equal size would otherwise be drawn alike: each gets an order of its own.
    order = np.random.Generator(np.random.PCG64(SEED).jumped(stream + 1)).permutation(resamples)
    drawn = [
        np.concatenate([array[:, block].sum(axis=2) for block in blocks], axis=1) for array in (sums, counts)
    ]
    return drawn[0][:, order], drawn[1][:, order]
