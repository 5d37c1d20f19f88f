"""Answers to the questions of pfgen -> scores of answers, questions and the set, with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.core.types import Sample, Score
from evalkit.metrics import intervals as statistics
from evalkit.metrics.pfgen import (
    VERSION,
    AnswerScore,
    Question,
    category_scores,
    score_answers,
    set_figures,
    tables_of,
)
from evalkit.records.results import DatasetRates, Figure
from evalkit.scoring.scores import Measured, TaskScores
from evalkit.tasks.pfgen import MAX_NEW_TOKENS
from evalkit.tasks.spec import TaskSpec

DATASET = "pfgen"
FIGURES = ("score", "fluency", "truthfulness", "helpfulness", "length")
# The score of the published ground truth, which no scale ends at.
GROUND_TRUTH = 1.05
SPEC = TaskSpec(
    name=DATASET,
    instruction="",
    output_length=MAX_NEW_TOKENS,
    metrics=list(FIGURES),
    counts="score",
    license="Apache-2.0",
    citation="Imajo et al. (2025), arXiv 2502.09316",
)


@dataclass(frozen=True)
class PfgenScores:
    """The scores of a set of answers.

    Attributes:
        task: with a score for each question, and in its `repeats` one for each answer.
        details: for the section `run` of the result: the published figures, those of aspects and categories,
            what was resampled, and the shares of the variance.
    """

    task: TaskScores
    details: dict[str, Any]


def score_pfgen(
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[str]],
    resamples: int,
    *,
    trials_known: bool,
    tables: Path | None = None,
) -> PfgenScores:
    """Scores answers to one or more questions.

    Args:
        questions: those of the benchmark; one without answers is left out.
        answers: by question id, one or more; with `trials_known` the i-th answers of all are one trial.
        resamples: of the bootstrap.
        trials_known: trials are resampled, else answers within questions.
        tables: where tables are kept; None: in the cache folder.
    """
    questions = [question for question in questions if answers.get(question.id)]
    scored = {one.id: score_answers(one, tables_of(one, folder=tables), answers[one.id]) for one in questions}
    values = [np.array([_values(answer) for answer in scored[one.id]]) for one in questions]
    equal = len({len(rows) for rows in values}) == 1
    trials_known = trials_known and equal
    distribution = (
        statistics.resampled_two_ways(np.stack(values), resamples)
        if trials_known
        else statistics.resampled_within(values, resamples)
    )
    published = set_figures(scored)
    means = [
        math.fsum(column) / len(values)
        for column in zip(*(rows.mean(axis=0) for rows in values), strict=True)
    ]
    # The protocol adds up rounded parts, and so its parts differ from plain means in the fifth digit.
    parts = (math.fsum(published.fluency.values()), math.fsum(published.truthfulness.values()))
    means[1:4] = [round(parts[0], 5), round(parts[1], 5), published.helpfulness]
    measured = {}
    for place, name in enumerate(FIGURES):
        spread = statistics.of_statistic(means[place], distribution[:, place], len(values))
        figure = Figure(means[place], len(values), spread.error, spread.interval, VERSION)
        measured[name] = Measured(figure, spread.carried)
    shares = (
        statistics.variance_shares(np.stack(values)[:, :, 0], trials_known=trials_known) if equal else None
    )
    texts = [text for one in questions for text in answers[one.id]]
    rates = DatasetRates(
        metrics=list(FIGURES),
        n=len(questions),
        empty=sum(not text for text in texts) / len(texts),
        truncated=None,
        out_of_format=None,
    )
    details = {
        "trials": published.trials,
        "aspects": {"fluency": published.fluency, "truthfulness": published.truthfulness},
        "categories": category_scores(questions, scored),
        "published": {
            "score": published.score,
            "score_std": published.score_std,
            "length": published.length,
            "length_std": published.length_std,
            "helpfulness": published.helpfulness,
            "average": published.average,
        },
        "resampled": "questions and trials" if trials_known else "questions, and answers within questions",
        "variance": asdict(shares) if shares else None,
        "ground_truth": GROUND_TRUTH,
    }
    samples = tuple(Sample(one.id, one.text, "") for one in questions)
    rows = tuple(_question(one.id, answers[one.id], scored[one.id]) for one in questions)
    return PfgenScores(TaskScores(SPEC, samples, rows, measured, rates, ()), details)


def _values(answer: AnswerScore) -> list[float]:
    """The values of an answer in the order of `FIGURES`."""
    fluency, truthfulness = math.fsum(answer.fluency.values()), math.fsum(answer.truthfulness.values())
    return [answer.score, fluency, truthfulness, answer.helpfulness, float(answer.length)]


def _question(key: str, texts: Sequence[str], scores: Sequence[AnswerScore]) -> Score:
    columns = [_values(answer) for answer in scores]
    repeats = tuple(
        Score(f"{key}/{trial}", text, dict(zip(FIGURES, column, strict=True)), missing=answer.missing)
        for trial, (text, column, answer) in enumerate(zip(texts, columns, scores, strict=True), start=1)
    )
    means = [math.fsum(column) / len(columns) for column in zip(*columns, strict=True)]
    return Score(key, texts[0], dict(zip(FIGURES, means, strict=True)), repeats=repeats)
