"""Answers to the questions of pfgen -> scores of answers, questions and the set, with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evalkit.core.types import Sample, Score
from evalkit.metrics import intervals as statistics
from evalkit.metrics.intervals import FloatArray
from evalkit.metrics.pfgen import (
    VERSION,
    AnswerScore,
    Figures,
    Question,
    category_scores,
    score_answers,
    set_figures,
    tables_of,
)
from evalkit.records.results import Figure
from evalkit.scoring.scores import GivenAnswer, Measured, TaskScores, answer_rates
from evalkit.tasks.pfgen import FIGURES, SPEC

# The score of the published ground truth, which no scale ends at.
GROUND_TRUTH = 1.05
# What a score says of an answer that did not end by itself.
_STATUS = {"length": "cut_off", "error": "failed"}
_PUBLISHED = ("score", "score_std", "length", "length_std", "helpfulness", "average")


def score_pfgen(
    questions: Sequence[Question],
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
    keys: dict[str, list[str]] = {one.id: [] for one in questions}
    for key in sorted(answers, key=lambda key: int(key.partition("/")[2])):
        keys[key.partition("/")[0]].append(key)
    questions = [one for one in questions if keys[one.id]]
    scored = {
        one.id: score_answers(one, tables_of(one), [answers[key].text for key in keys[one.id]])
        for one in questions
    }
    values = [np.array([_values(answer) for answer in scored[one.id]]) for one in questions]
    equal = len({len(rows) for rows in values}) == 1
    trials_known &= len({tuple(key[len(name) :] for key in keys[name]) for name in scored}) == 1
    if trials_known:
        distribution = statistics.resampled_two_ways(np.stack(values), resamples)
    else:
        distribution = statistics.resampled_within(values, resamples)
    figures = set_figures(scored)
    measured = _measured(values, figures, distribution)
    single = np.stack(values)[:, :, 0] if equal else None
    shares = None if single is None else statistics.variance_shares(single, trials_known=trials_known)
    details = {
        "trials": min(map(len, values)),
        "aspects": {"fluency": figures.fluency, "truthfulness": figures.truthfulness},
        "categories": category_scores(questions, scored),
        "published": {name: getattr(figures, name) for name in _PUBLISHED},
        "resampled": "questions and trials" if trials_known else "questions, and answers within questions",
        "variance": asdict(shares) if shares else None,
        "ground_truth": GROUND_TRUTH,
    }
    rows = tuple(_question(one.id, keys[one.id], answers, scored[one.id]) for one in questions)
    given = [answers[key] for one in questions for key in keys[one.id]]
    rates = answer_rates(SPEC, given, [answer.text for answer in given], list(FIGURES), len(questions))
    samples = tuple(Sample(one.id, one.text, "") for one in questions)
    return TaskScores(SPEC, samples, rows, measured, rates, ()), details


def _measured(
    values: Sequence[FloatArray], published: Figures, distribution: FloatArray
) -> dict[str, Measured]:
    """The figures of the set with their intervals, from each question's values: [answers, figures]."""
    columns = zip(*(rows.mean(axis=0) for rows in values), strict=True)
    means = [math.fsum(column) / len(values) for column in columns]
    # The protocol adds up rounded parts, and so its parts differ from plain means in the fifth digit.
    parts = (math.fsum(published.fluency.values()), math.fsum(published.truthfulness.values()))
    means[1:4] = [round(parts[0], 5), round(parts[1], 5), published.helpfulness]
    measured = {}
    for place, name in enumerate(FIGURES):
        spread = statistics.of_statistic(means[place], distribution[:, place], len(values))
        figure = Figure(means[place], len(values), spread.error, spread.interval, VERSION)
        measured[name] = Measured(figure, spread.carried)
    return measured


def _values(answer: AnswerScore) -> list[float]:
    """The values of an answer in the order of `FIGURES`."""
    fluency, truthfulness = math.fsum(answer.fluency.values()), math.fsum(answer.truthfulness.values())
    return [answer.score, fluency, truthfulness, answer.helpfulness, float(answer.length)]


def _question(
    name: str, keys: Sequence[str], answers: Mapping[str, GivenAnswer], scores: Sequence[AnswerScore]
) -> Score:
    repeats = []
    for key, answer in zip(keys, scores, strict=True):
        given = answers[key]
        values: dict[str, float | None] = dict(zip(FIGURES, _values(answer), strict=True))
        status = given.status or _STATUS.get(given.finish_reason or "") or (None if given.text else "empty")
        repeats.append(Score(key, given.text, values, status, given.thought, missing=answer.missing))
    columns = zip(*map(_values, scores), strict=True)
    means = [math.fsum(column) / len(scores) for column in columns]
    return Score(name, repeats[0].prediction, dict(zip(FIGURES, means, strict=True)), repeats=tuple(repeats))
