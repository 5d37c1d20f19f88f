"""What a dataset's answers look like, whatever they score: empty, truncated, out of format."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Protocol

from evalkit.metrics.prediction import BLANK_LINE
from evalkit.records.results import DatasetRates
from evalkit.tasks.spec import AnswerKind, AnswerSpec, TaskSpec

# The length limit ends nearly every answer of so few tokens: it says nothing there.
SHORT_OUTPUT = 3
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*", re.ASCII)


class Answer(Protocol):
    """What scoring needs of a completion; `evalkit.core.types.Completion` is one.

    `finish_reason` None: not known, as for completions made elsewhere.
    """

    @property
    def text(self) -> str:
        """The completion text by the protocol's decoding rule."""

    @property
    def finish_reason(self) -> str | None:
        """stop, stop_string, length, error or None."""


def answer_rates(
    spec: TaskSpec, answers: Sequence[Answer], predictions: Sequence[str], metrics: Sequence[str]
) -> DatasetRates:
    """The shares of a dataset's n >= 1 answers; `predictions` are their compared texts."""
    n = len(answers)
    truncated = None
    if spec.output_length > SHORT_OUTPUT and all(a.finish_reason is not None for a in answers):
        truncated = sum(a.finish_reason == "length" and BLANK_LINE not in a.text for a in answers) / n
    out_of_format = None
    if spec.answer.kind is not AnswerKind.text:
        out_of_format = sum(not well_formed(text, spec.answer) for text in predictions) / n
    return DatasetRates(
        metrics=list(metrics),
        n=n,
        empty=sum(not text.strip() for text in predictions) / n,
        truncated=truncated,
        out_of_format=out_of_format,
    )


def well_formed(text: str, answer: AnswerSpec) -> bool:
    """Whether a prediction is exactly one of the labels, or a decimal number (spaces around it aside)."""
    if answer.kind is AnswerKind.label:
        return text in {unicodedata.normalize("NFKC", label) for label in answer.labels}
    if answer.kind is AnswerKind.number:
        return _NUMBER.fullmatch(text) is not None
    return True
