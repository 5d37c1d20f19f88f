"""Answers to the questions of pfgen -> scores of answers, questions and the set, with intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evalkit.core.types import Sample, Score
from evalkit.metrics import intervals as statistics
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
from evalkit.scoring.scores import GivenAnswer, Measured, TaskScores, answer_rates
from evalkit.tasks.pfgen import SPEC

# The score of the published ground truth, which no scale ends at.
GROUND_TRUTH = 1.05
# What a score says of an answer that did not end by itself.
_STATUS = {"length": "cut_off", "error": "failed"}


def score_pfgen(
    questions: Sequence[PfgenQuestion],
    answers: Mapping[str, GivenAnswer],
    resamples: int,
    *,
    trials_known: bool,
) -> tuple[TaskScores, dict[str, Any]]:
    """Scores answers to one or more questions.

    Args:
        questions: those of the benchmark; one without answers is left out.
        answers: by question and trial (`Q01/1`), as `evalkit.tasks.pfgen.answer_of` gives them.
        resamples: of the bootstrap.
        trials_known: the answers of one number are a trial, and trials are resampled; else answers within
            questions, as also where a trial lacks answers.

    Returns:
        A score for each question, with one for each answer in its `repeats`; and for the section `run` of the
        result the published figures, those of aspects and categories, and what the spread consists of.
    """
    trials: dict[str, list[str]] = {one.id: [] for one in questions}
    for key in sorted(answers, key=lambda key: int(key.partition("/")[2])):
        name, _, trial = key.partition("/")
        trials[name].append(trial)
    questions = [one for one in questions if trials[one.id]]
    given = {one.id: [answers[f"{one.id}/{trial}"] for trial in trials[one.id]] for one in questions}
    scored = {
        one.id: score_answers(one, tables_of(one), [answer.text for answer in given[one.id]])
        for one in questions
    }
    values = [np.array([answer.values for answer in found]) for found in scored.values()]
    trials_known &= all(trials[one.id] == trials[questions[0].id] for one in questions)
    shares = None
    if len(set(map(len, values))) == 1:
        shares = statistics.variance_shares(np.stack(values)[:, :, 0], trials_known=trials_known)
    if trials_known:
        distribution = statistics.resampled_two_ways(np.stack(values), resamples)
    else:
        distribution = statistics.resampled_within(values, resamples)
    published = set_figures(scored)
    aspects = {part: published.pop(part) for part in ("fluency", "truthfulness")}
    columns = zip(*(rows.mean(axis=0) for rows in values), strict=True)
    means = [math.fsum(column) / len(values) for column in columns]
    # The protocol adds up rounded parts, and so its parts differ from plain means in the fifth digit.
    means[1:3] = [round(math.fsum(part.values()), 5) for part in aspects.values()]
    means[3] = published["helpfulness"]
    measured = {}
    for name, mean, resampled in zip(FIGURES, means, distribution.T, strict=True):
        spread = statistics.of_statistic(mean, resampled, len(values))
        figure = Figure(mean, len(values), spread.error, spread.interval, VERSION)
        measured[name] = Measured(figure, spread.carried)
    rows = tuple(_question(name, trials[name], given[name], found) for name, found in scored.items())
    categories: dict[str, list[float]] = {}
    for one, found in zip(questions, values, strict=True):
        categories.setdefault(one.category, []).append(math.fsum(found[:, 0]) / len(found))
    details = {
        "trials": min(map(len, values)),
        "aspects": aspects,
        "categories": {name: math.fsum(own) / len(own) for name, own in categories.items()},
        "published": published,
        "resampled": "questions and trials" if trials_known else "questions, and answers within questions",
        "variance": shares,
        "ground_truth": GROUND_TRUTH,
    }
    every = [answer for of_question in given.values() for answer in of_question]
    rates = answer_rates(SPEC, every, [answer.text for answer in every], list(FIGURES), len(questions))
    samples = tuple(Sample(one.id, one.text, "") for one in questions)
    return TaskScores(SPEC, samples, rows, measured, rates, ()), details


def _question(
    name: str, trials: Sequence[str], answers: Sequence[GivenAnswer], scores: Sequence[AnswerScore]
) -> Score:
    repeats = []
    for trial, given, score in zip(trials, answers, scores, strict=True):
        status = given.status or _STATUS.get(given.finish_reason or "") or (None if given.text else "empty")
        values: dict[str, float | None] = dict(zip(FIGURES, score.values, strict=True))
        repeats.append(
            Score(f"{name}/{trial}", given.text, values, status, given.thought, missing=score.missing)
        )
    columns = zip(*(score.values for score in scores), strict=True)
    means = [math.fsum(column) / len(scores) for column in columns]
    return Score(name, repeats[0].prediction, dict(zip(FIGURES, means, strict=True)), repeats=tuple(repeats))
