"""Samples and completions -> scores: per sample, per dataset, with intervals.

Metrics that need a model of their own come last, each loaded once for all datasets; the caller has
freed the language model before.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain

from evalkit import metrics as registry
from evalkit.core.config import MetricsConfig, ProtocolConfig
from evalkit.core.errors import InputError
from evalkit.core.files import parse_json
from evalkit.core.progress import phase
from evalkit.core.types import Sample, Score
from evalkit.core.words import t
from evalkit.metrics import ifeval
from evalkit.metrics import intervals as statistics
from evalkit.metrics.metric import (
    CorrelationMetric,
    InstructionMetric,
    MetricUnavailableError,
    ModelMetric,
    ModelScorer,
    SampleMetric,
    Triple,
)
from evalkit.metrics.prediction import gold, prediction
from evalkit.metrics.repeats import (
    check_repeats,
    measure,
    question_values,
    repeat_ids,
    repeated_name,
    single_name,
)
from evalkit.records.results import DatasetRates, Figure, InstructionRates, MissingMetric, ThoughtRates
from evalkit.tasks.spec import AnswerKind, AnswerSpec, TaskSpec

# With so short a limit nearly every answer is truncated, so the share says nothing.
SHORT_OUTPUT = 3
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """What scoring needs of a completion, whoever made it.

    Attributes:
        text: what is graded.
        finish_reason: None where it is not known.
        status: what became of the answer; None: it was not split from a thought.
        thought_tokens: None: not split, or not counted.
        thought: only where it is not the one in the run's record.
        wrong: there is no answer behind the thought, which is wrong whatever the gold answer is.
        place: where it was read (`file, line n`), for messages; empty: nowhere.
    """

    text: str
    finish_reason: str | None = None
    status: str | None = None
    thought_tokens: int | None = None
    thought: str | None = None
    wrong: bool = False
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class TaskAnswers:
    """A dataset's samples and what was answered to each.

    Attributes:
        spec: the dataset.
        samples: its questions, in order.
        completions: by sample id, or by `repeat_ids` where each was asked several times.
        repeats: answers to each question.
    """

    spec: TaskSpec
    samples: Sequence[Sample]
    completions: Mapping[str, GivenAnswer]
    repeats: int = 1


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
    def counted(self) -> Measured | None:
        """The metric that enters the category, over all answers to a question; None: there is none."""
        counts = self.spec.counts or ""
        return self.measured.get(counts) or next(
            (one for name, one in self.measured.items() if name.startswith(f"{counts}_avg@")), None
        )

    @property
    def metric_versions(self) -> dict[str, str]:
        """The version of each computed metric."""
        return {name: measured.value.metric_version for name, measured in self.measured.items()}


def score_tasks(
    tasks: Iterable[TaskAnswers], protocol: ProtocolConfig, metrics: MetricsConfig, *, offline: bool
) -> list[TaskScores]:
    """Scores datasets, in order; each metric model is loaded once for all. `offline` fetches none.

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
            with phase(t("computing {metric}", metric=name)):
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
        own, values = values[: len(draft.keys)], values[len(draft.keys) :]
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
        self.repeats = task.repeats
        self.pass_at = metrics.pass_at or [task.repeats]
        check_repeats(task.repeats, metrics.pass_at)
        # Everything below has an entry for each answer; those to one question stand together.
        self.keys = [key for sample in task.samples for key in repeat_ids(sample.id, task.repeats)]
        asked = [sample for sample in task.samples for _ in range(task.repeats)]
        self.inputs = [sample.input for sample in asked]
        self.golds = [gold(sample.gold) for sample in asked]
        self.answers = [_answer(task, key) for key in self.keys]
        self.predictions = [
            prediction(
                answer.text,
                strip=protocol.strip,
                answer_regex=protocol.answer_regex,
                verbatim=task.spec.verbatim,
            )
            for answer in self.answers
        ]
        self.values: dict[str, Sequence[float] | None] = {}
        self.measured: dict[str, Measured] = {}
        # The values of the questions by the names of `measured`, where each was asked several times.
        self.of_questions: dict[str, list[float] | None] = {}
        self.missing: list[MissingMetric] = []

    def compute(self, metric: SampleMetric | CorrelationMetric | InstructionMetric) -> None:
        """Computes a metric that needs no model."""
        if isinstance(metric, CorrelationMetric):
            self._correlate(metric)
            return
        try:
            if isinstance(metric, InstructionMetric):
                self._follow(metric)
                return
            rows = zip(self.answers, self.predictions, self.golds, strict=True)
            values = [0.0 if answer.wrong else metric.score(p, g) for answer, p, g in rows]
        except MetricUnavailableError as error:
            self.miss(metric.name, error)
        else:
            self.keep(metric.name, metric.version, values)

    @cached_property
    def verdicts(self) -> list[list[ifeval.Verdict]]:
        """The verdicts on the instructions of each answer; without an answer nothing is followed."""
        asked = [sample for sample in self.samples for _ in range(self.repeats)]
        return [
            ifeval.verdicts(
                ifeval.read_instructions(parse_json(sample.gold, where := f"sample {sample.id}"), where),
                None if answer.finish_reason == "error" or answer.wrong else text,
            )
            for sample, answer, text in zip(asked, self.answers, self.predictions, strict=True)
        ]

    def _follow(self, metric: InstructionMetric) -> None:
        """Instructions count alike, whatever prompt they are in, so the figure is no mean over prompts."""
        shares = [sum(getattr(v, metric.mode) for v in found) / len(found) for found in self.verdicts]
        values = [float(share == 1) if metric.whole else share for share in shares]
        self.keep(metric.name, metric.version, values)
        if not metric.whole:
            n = self.repeats
            name = metric.name if n == 1 else repeated_name(metric.name, n=n)
            starts = range(0, len(self.verdicts), n)
            prompts = [list(chain.from_iterable(self.verdicts[at : at + n])) for at in starts]
            value, spread = ifeval.passed_share(prompts, metric.mode, self.resamples)
            self._measure(name, metric.version, value, spread)

    def _instruction_rates(self) -> InstructionRates | None:
        known = (registry.METRICS[name] for name in self.values)
        metrics = [metric for metric in known if isinstance(metric, InstructionMetric)]
        if not metrics:
            return None
        of_one = self.verdicts[:: self.repeats]
        open_to = [[verdict.unsatisfiable is None for verdict in found] for found in of_one]
        every = [one for found in open_to for one in found]
        share = {True: sum(map(all, open_to)) / len(open_to), False: sum(every) / len(every)}
        impossible = {
            sample.id: [verdict.kind for verdict in found if verdict.unsatisfiable]
            for sample, found in zip(self.samples, of_one, strict=True)
        }
        verdicts = list(chain.from_iterable(self.verdicts))
        return InstructionRates(
            ceiling={metric.name: share[metric.whole] for metric in metrics},
            unsatisfiable={key: kinds for key, kinds in impossible.items() if kinds},
            groups=ifeval.passed_by(verdicts, lambda verdict: verdict.kind.split(":")[1]),
            kinds=ifeval.passed_by(verdicts, lambda verdict: verdict.kind),
        )

    def _correlate(self, metric: CorrelationMetric) -> None:
        """The correlation over the questions, or the mean of those of the first, second, ... answers."""
        n = self.repeats
        golds = [self._gold_number(index) for index in range(0, len(self.golds), n)]
        predicted = [metric.parse(text) for text in self.predictions]
        columns = [predicted[repeat::n] for repeat in range(n)]
        value = math.fsum(metric.score(column, golds) for column in columns) / n
        # Every column is resampled by the same questions.
        distribution, *others = [metric.resample(column, golds, self.resamples) for column in columns]
        for other in others:
            distribution = distribution + other
        spread = statistics.of_statistic(value, distribution / n, len(golds))
        self.values[metric.name] = None
        name = metric.name if n == 1 else repeated_name(metric.name, n=n)
        self.of_questions[name] = None
        self._measure(name, metric.version, value, spread)

    def _gold_number(self, index: int) -> float:
        try:
            return float(self.golds[index])
        except ValueError:
            raise InputError(
                f"a correlation needs numbers as gold answers, found {self.golds[index]!r}",
                where=f"sample {self.keys[index]}",
            ) from None

    def keep(self, name: str, version: str, values: Sequence[float]) -> None:
        """Keeps one value per answer and what follows from them."""
        self.values[name] = values
        if self.repeats == 1:
            spread = metric_spread(name, values, self.resamples)
            self._measure(name, version, math.fsum(values) / len(values), spread)
            return
        n, (binary, scale) = self.repeats, values_of(name)
        questions = [values[start : start + n] for start in range(0, len(values), n)]
        for k in (None, *(self.pass_at if binary else ())):
            key = repeated_name(name, n=n, k=k)
            value, spread = measure(questions, self.resamples, k=k, binary=binary, scale=scale)
            self.of_questions[key] = question_values(questions, k)
            self._measure(key, version, value, spread)

    def _measure(self, name: str, version: str, value: float, spread: statistics.Spread) -> None:
        whole = Figure(value, len(self.samples), spread.error, spread.interval, version)
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
        present = [name for name in self.names if name in self.values]
        rows = [self._score(index, present) for index in range(len(self.keys))]
        measured = self.measured
        if self.repeats > 1:
            n = self.repeats
            rows = [
                self._question(index, rows[index * n : (index + 1) * n]) for index in range(len(self.samples))
            ]
        else:
            measured = {name: self.measured[name] for name in present}
        rates = answer_rates(self.spec, self.answers, self.predictions, list(measured), len(self.samples))
        rates = replace(rates, instructions=self._instruction_rates())
        return TaskScores(self.spec, self.samples, tuple(rows), measured, rates, tuple(self.missing))

    def _score(self, index: int, names: Sequence[str]) -> Score:
        columns = {name: self.values[name] for name in names}
        values = {name: None if column is None else column[index] for name, column in columns.items()}
        answer = self.answers[index]
        score = Score(self.keys[index], self.predictions[index], values, answer.status, answer.thought)
        if not self.spec.verbatim or not names:
            return score
        return replace(score, verdicts=tuple(map(asdict, self.verdicts[index])))

    def _question(self, index: int, repeats: Sequence[Score]) -> Score:
        values = {
            name: None if column is None else column[index] for name, column in self.of_questions.items()
        }
        return Score(self.samples[index].id, repeats[0].prediction, values, repeats=tuple(repeats))


def metric_spread(name: str, values: Sequence[float], resamples: int, samples: int = 1) -> statistics.Spread:
    """The spread of the mean of a metric's `values` (length n >= 1), one for each question.

    `name` may be that of a metric over several answers to each question, of which there are `samples`.
    """
    base = single_name(name)
    binary, scale = values_of(base)
    # pass@k of k answers is one right or wrong for each question, as a single answer is.
    single = base == name or name == repeated_name(base, n=samples, k=samples)
    scale = (0.0, 1.0) if "_pass@" in name else scale
    return statistics.of_mean(values, resamples, binary=binary and single, scale=scale)


def values_of(name: str) -> tuple[bool, statistics.Interval | None]:
    """Whether a metric gives 0 and 1 alone, and the least and the greatest value it gives."""
    metric = registry.METRICS.get(name)
    if isinstance(metric, InstructionMetric):
        return metric.whole, (0.0, 1.0)
    return (metric.binary, metric.scale) if isinstance(metric, SampleMetric) else (False, None)


def answer_rates(
    spec: TaskSpec, answers: Sequence[GivenAnswer], predictions: Sequence[str], metrics: Sequence[str], n: int
) -> DatasetRates:
    """The shares of the answers to a dataset's n >= 1 questions; `predictions` are their compared texts."""
    split = [(one.status, one.thought_tokens) for one in answers if one.status is not None]
    thoughts = ThoughtRates.of(split)
    truncated = None
    if thoughts is not None:
        truncated = thoughts.cut_off
    elif spec.output_length > SHORT_OUTPUT and all(a.finish_reason is not None for a in answers):
        cut = (a.finish_reason == "length" and not any(end in a.text for end in spec.ends) for a in answers)
        truncated = sum(cut) / len(answers)
    out_of_format = None
    if spec.answer.kind in (AnswerKind.label, AnswerKind.number):
        out_of_format = sum(not well_formed(text, spec.answer) for text in predictions) / len(answers)
    return DatasetRates(
        metrics=list(metrics),
        n=n,
        empty=sum(not text.strip() for text in predictions) / len(answers),
        truncated=truncated,
        out_of_format=out_of_format,
        thoughts=thoughts,
    )


def well_formed(text: str, answer: AnswerSpec) -> bool:
    """Whether a prediction is exactly one of the labels, or a decimal number (spaces around it aside)."""
    if answer.kind is AnswerKind.label:
        return text in {unicodedata.normalize("NFKC", label) for label in answer.labels}
    if answer.kind is AnswerKind.number:
        return _NUMBER.fullmatch(text) is not None
    return True


def _answer(task: TaskAnswers, key: str) -> GivenAnswer:
    try:
        return task.completions[key]
    except KeyError:
        raise InputError(
            f"sample {key} has no completion",
            where=f"dataset {task.spec.name}",
            fix="generate it, or go on without it: allow_missing=true",
        ) from None
