"""Answers to the questions of pfgen -> scores of answers, questions and the set, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from evalkit.core.types import Score
from evalkit.metrics import intervals
from evalkit.metrics.pfgen import (
    FIGURES,
    VERSION,
    AnswerScore,
    PfgenQuestion,
    score_answers,
    set_figures,
    tables_of,
)
from evalkit.records.results import Figure
from evalkit.scoring.scores import GivenAnswer, Measured, TaskAnswers, TaskScores, answer_rates

# The score of the published ground truth, which no scale ends at.
GROUND_TRUTH = 1.05
# What a score says of an answer that did not end by itself.
_STATUS = {"length": "cut_off", "error": "failed"}


def score_pfgen(
    questions: Sequence[PfgenQuestion],
    answers: TaskAnswers,
    resamples: int,
    cut: Callable[[str], str] | None,
) -> tuple[list[TaskScores], dict[str, Any]]:
    """Scores answers to one or more questions.

    Args:
        questions: those of the benchmark.
        answers: by question and trial (`Q01/1`); a question without answers is left out.
        resamples: of the bootstrap.
        cut: takes the answer out of a completion. None: a published set, whose answers are cut and whose
            trials are not known. There, and where a trial lacks answers, not trials but answers within
            questions are resampled.

    Returns:
        The scores of the only dataset; and what the section `run` of the result says of it: the published
        figures, those of aspects and categories, and what the spread consists of.
    """
    known = {one.id: one for one in questions}
    given = {sample: _answers_to(sample.id, answers, cut) for sample in answers.samples}
    given = {sample: own for sample, own in given.items() if own}
    scored = {
        sample.id: score_answers(one := known[sample.id], tables_of(one), [a.text for a in own.values()])
        for sample, own in given.items()
    }
    values = [np.array([answer.values for answer in found]) for found in scored.values()]
    means = [[fmean(column) for column in of_question.T] for of_question in values]
    trials_known = cut is not None and len({tuple(own) for own in given.values()}) == 1
    published = set_figures(scored)
    aspects = {part: published.pop(part) for part in ("fluency", "truthfulness")}
    # The protocol adds up rounded parts, which differ from plain means in the fifth digit.
    parts = {part: round(sum(own.values()), 5) for part, own in aspects.items()}
    parts["helpfulness"] = published["helpfulness"]
    categories: dict[str, list[float]] = {}
    for name, (score, *_) in zip(scored, means, strict=True):
        categories.setdefault(known[name].category, []).append(score)
    details = {
        "trials": min(map(len, values)),
        "aspects": aspects,
        "categories": {name: fmean(scores) for name, scores in categories.items()},
        "published": published,
        **_spread(values, trials_known),
        "ground_truth": GROUND_TRUTH,
    }
    every = [answer for own in given.values() for answer in own.values()]
    rates = answer_rates(answers.spec, every, [answer.text for answer in every], FIGURES, len(given))
    measured = _measured(values, means, parts, trials_known, resamples)
    rows = tuple(map(_question, scored, given.values(), scored.values(), means))
    return [TaskScores(answers.spec, tuple(given), rows, measured, rates, ())], {answers.spec.name: details}


def _answers_to(
    question: str, answers: TaskAnswers, cut: Callable[[str], str] | None
) -> dict[str, GivenAnswer]:
    """By trial."""
    found = {}
    for key in answers.spec.ids(question, answers.repeats):
        if (answer := answers.completions.get(key)) is not None:
            found[key.rpartition("/")[2]] = replace(answer, text=cut(answer.text)) if cut else answer
    return found


def _measured(
    values: Sequence[intervals.FloatArray],
    means: Sequence[Sequence[float]],
    parts: Mapping[str, float],
    trials_known: bool,
    resamples: int,
) -> dict[str, Measured]:
    """The figures of the set; those in `parts` are given."""
    if trials_known:
        distribution = intervals.resampled_two_ways(np.stack(values), resamples)
    else:
        distribution = intervals.resampled_within(values, resamples)
    measured = {}
    for name, column, drawn in zip(FIGURES, zip(*means, strict=True), distribution.T, strict=True):
        value = parts.get(name, fmean(column))
        spread = intervals.of_statistic(value, drawn, len(values))
        figure = Figure(value, len(values), spread.error, spread.interval, VERSION)
        measured[name] = Measured(figure, spread.carried)
    return measured


def _spread(values: Sequence[intervals.FloatArray], trials_known: bool) -> dict[str, Any]:
    """What was resampled, and the shares of the variance where all questions have equally many answers."""
    numbers = set(map(len, values))
    resampled, shares = "questions", None
    if max(numbers) > 1:
        resampled = "questions and trials" if trials_known else "questions, and answers within questions"
    if len(numbers) == 1:
        shares = intervals.variance_shares(np.stack(values)[:, :, 0], trials_known=trials_known)
    return {"resampled": resampled, "variance": shares}


def _question(
    name: str, given: Mapping[str, GivenAnswer], scores: Sequence[AnswerScore], means: Sequence[float]
) -> Score:
    repeats = []
    for (trial, answer), score in zip(given.items(), scores, strict=True):
        status = _STATUS.get(answer.finish_reason or "", None if answer.text else "empty")
        values: dict[str, float | None] = dict(zip(FIGURES, score.values, strict=True))
        of_one = Score(f"{name}/{trial}", answer.text, values, answer.status or status, answer.thought)
        repeats.append(replace(of_one, missing=score.missing))
    return Score(name, repeats[0].prediction, dict(zip(FIGURES, means, strict=True)), repeats=tuple(repeats))
