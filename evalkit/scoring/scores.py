"""Samples and completions -> scores: per sample, per dataset, with intervals.

Metrics that need a model of their own come last, each loaded once for all datasets; the caller has
freed the language model before.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from evalkit import metrics as registry
from evalkit.core.config import MetricsConfig, ProtocolConfig
from evalkit.core.errors import InputError
from evalkit.core.types import Sample, Score
from evalkit.metrics import intervals as statistics
from evalkit.metrics.base import (
    CorrelationMetric,
    MetricUnavailableError,
    ModelMetric,
    ModelScorer,
    SampleMetric,
    Triple,
)
from evalkit.metrics.prediction import BLANK_LINE, gold, prediction
from evalkit.records.results import DatasetRates, Figure, MissingMetric
from evalkit.tasks.spec import AnswerKind, AnswerSpec, TaskSpec

# With so short a limit nearly every answer is truncated, so the share says nothing.
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


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """A completion that was kept in a run or made elsewhere."""

    text: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class TaskAnswers:
    """A dataset's samples and what was answered to each, by sample id."""

    spec: TaskSpec
    samples: Sequence[Sample]
    completions: Mapping[str, Answer]


@dataclass(frozen=True)
class Measured:
    """One metric over one dataset; `carried` is what it contributes to a mean (`statistics.Spread`)."""

    value: Figure
    carried: statistics.Interval | None


@dataclass(frozen=True)
class TaskScores:
    """The scores of one dataset.

    Attributes:
        spec: the dataset.
        samples: what was scored, in order.
        scores: one per sample, in the order of the samples; correlations have None there.
        measured: by metric name, those that could be computed.
        rates: shares of empty, truncated and ill-formed answers.
        missing: metrics that could not be computed.
    """

    spec: TaskSpec
    samples: tuple[Sample, ...]
    scores: tuple[Score, ...]
    measured: dict[str, Measured]
    rates: DatasetRates
    missing: tuple[MissingMetric, ...]

    @property
    def metric_versions(self) -> dict[str, str]:
        """The version of each computed metric."""
        return {name: measured.value.metric_version for name, measured in self.measured.items()}


def score_tasks(
    tasks: Iterable[TaskAnswers], protocol: ProtocolConfig, metrics: MetricsConfig, *, offline: bool
) -> list[TaskScores]:
    """Scores datasets, in order; each metric model is loaded once for all of them.

    Args:
        tasks: datasets with an answer to every sample.
        protocol: how a completion becomes a prediction.
        metrics: metric models and the number of bootstrap resamples.
        offline: fetch no metric model.

    Raises:
        InputError: a sample has no completion, a dataset has no samples, or the protocol's regular
            expression is not one. A metric that is not available raises nothing: it is in `missing`.
    """
    drafts = [_Draft(task, protocol, metrics) for task in tasks]
    for draft in drafts:
        for name in draft.names:
            metric = registry.get_metric(name)
            if not isinstance(metric, ModelMetric):
                draft.compute(metric)
    for name in dict.fromkeys(name for draft in drafts for name in draft.names):
        metric = registry.get_metric(name)
        if isinstance(metric, ModelMetric):
            _compute_with_model(metric, [d for d in drafts if name in d.names], metrics, offline)
    return [draft.finished() for draft in drafts]


def _compute_with_model(
    metric: ModelMetric, drafts: Sequence["_Draft"], config: MetricsConfig, offline: bool
) -> None:
    try:
        scorer: ModelScorer = metric.open(config, offline)
    except MetricUnavailableError as error:
        for draft in drafts:
            draft.miss(metric.name, error)
        return
    # One call for all datasets: the encoder sees the whole pool of sentences, sorted by length.
    values = scorer.score([triple for draft in drafts for triple in draft.triples()])
    for draft in drafts:
        own, values = values[: len(draft.ids)], values[len(draft.ids) :]
        draft.keep(metric.name, scorer.version, own)


class _Draft:
    """The scores of one dataset while they are computed."""

    def __init__(self, task: TaskAnswers, protocol: ProtocolConfig, metrics: MetricsConfig) -> None:
        if not task.samples:
            raise InputError("there is no sample to score", where=f"dataset {task.spec.name}")
        self.spec = task.spec
        self.samples = tuple(task.samples)
        self.names = registry.wanted_metrics(task.spec.metrics, metrics)
        self.resamples = metrics.resamples
        self.ids = [sample.id for sample in task.samples]
        self.inputs = [sample.input for sample in task.samples]
        self.golds = [gold(sample.gold) for sample in task.samples]
        self.answers = [_answer(task, sample) for sample in task.samples]
        self.predictions = [
            prediction(answer.text, strip=protocol.strip, answer_regex=protocol.answer_regex)
            for answer in self.answers
        ]
        self.values: dict[str, Sequence[float] | None] = {}
        self.measured: dict[str, Measured] = {}
        self.missing: list[MissingMetric] = []

    def compute(self, metric: SampleMetric | CorrelationMetric) -> None:
        """Computes a metric that needs no model."""
        if isinstance(metric, CorrelationMetric):
            self._correlate(metric)
            return
        try:
            values = [metric.score(p, g) for p, g in zip(self.predictions, self.golds, strict=True)]
        except MetricUnavailableError as error:
            self.miss(metric.name, error)
        else:
            self.keep(metric.name, metric.version, values)

    def _correlate(self, metric: CorrelationMetric) -> None:
        predicted = [metric.parse(text) for text in self.predictions]
        golds = [self._gold_number(index) for index in range(len(self.golds))]
        value = metric.score(predicted, golds)
        distribution = metric.resample(predicted, golds, self.resamples)
        spread = statistics.of_statistic(value, distribution, len(golds))
        self.values[metric.name] = None
        self._measure(metric.name, metric.version, value, spread)

    def _gold_number(self, index: int) -> float:
        try:
            return float(self.golds[index])
        except ValueError:
            raise InputError(
                f"a correlation needs numbers as gold answers, found {self.golds[index]!r}",
                where=f"sample {self.ids[index]}",
            ) from None

    def keep(self, name: str, version: str, values: Sequence[float]) -> None:
        """Keeps one value per sample and what follows from them."""
        self.values[name] = values
        self._measure(
            name, version, math.fsum(values) / len(values), metric_spread(name, values, self.resamples)
        )

    def _measure(self, name: str, version: str, value: float, spread: statistics.Spread) -> None:
        whole = Figure(value, len(self.ids), spread.error, spread.interval, version)
        self.measured[name] = Measured(whole, spread.carried)

    def miss(self, name: str, error: MetricUnavailableError) -> None:
        """Notes that a metric could not be computed."""
        self.missing.append(MissingMetric(self.spec.name, name, error.what, error.fix))

    def triples(self) -> list[Triple]:
        """Source, prediction and gold of each sample."""
        return [
            Triple(src=source, mt=predicted, ref=reference)
            for source, predicted, reference in zip(self.inputs, self.predictions, self.golds, strict=True)
        ]

    def finished(self) -> TaskScores:
        """The scores, metrics in the order of the task file."""
        present = [name for name in self.names if name in self.measured]
        scores = tuple(
            Score(id=key, prediction=self.predictions[index], values=self._values_at(index, present))
            for index, key in enumerate(self.ids)
        )
        measured = {name: self.measured[name] for name in present}
        rates = answer_rates(self.spec, self.answers, self.predictions, present)
        return TaskScores(self.spec, self.samples, scores, measured, rates, tuple(self.missing))

    def _values_at(self, index: int, names: Sequence[str]) -> dict[str, float | None]:
        columns = {name: self.values[name] for name in names}
        return {name: None if column is None else column[index] for name, column in columns.items()}


def metric_spread(name: str, values: Sequence[float], resamples: int) -> statistics.Spread:
    """The spread of the mean of a metric's `values` (length n >= 1)."""
    metric = registry.METRICS.get(name)
    if not isinstance(metric, SampleMetric):
        return statistics.of_mean(values, resamples)
    return statistics.of_mean(values, resamples, binary=metric.binary, scale=metric.scale)


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


def _answer(task: TaskAnswers, sample: Sample) -> Answer:
    try:
        return task.completions[sample.id]
    except KeyError:
        raise InputError(
            f"sample {sample.id} has no completion",
            where=f"dataset {task.spec.name}",
            fix="generate it, or go on without it: allow_missing=true",
        ) from None
