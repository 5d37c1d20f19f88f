"""The kinds of metrics: per sample, per dataset (a correlation), by instructions, and by a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

from evalkit.core.config import MetricsConfig
from evalkit.core.errors import EvalkitError

if TYPE_CHECKING:
    from evalkit.metrics.intervals import FloatArray, Interval


class Triple(TypedDict):
    """The input of a model-based metric for one sample: source, prediction, gold."""

    src: str
    mt: str
    ref: str


class MetricUnavailableError(EvalkitError):
    """A metric's model or library is not installed here; every other metric is still reported.

    `what` is the reason and `fix` the command that fetches what is missing.
    """


@dataclass(frozen=True)
class SampleMetric:
    """A number per sample, a pure function of (prediction, gold); a dataset's value is the mean.

    `version` changes whenever a value can change. `also_report` names metrics that are
    reported wherever this one is. `scale` holds the least and the greatest value; `binary`: a value is
    one of these two.
    """

    name: str
    version: str
    score: Callable[[str, str], float]
    also_report: tuple[str, ...] = ()
    scale: "Interval | None" = (0.0, 1.0)
    binary: bool = False


@dataclass(frozen=True)
class CorrelationMetric:
    """One number per dataset.

    Attributes:
        parse: prediction -> number.
        score: (predicted numbers, gold numbers), each of length n -> the correlation.
        resample: the same on every bootstrap resample: (x, y, resamples) -> float64 [resamples].
    """

    name: str
    version: str
    parse: Callable[[str], float]
    score: Callable[[Sequence[float], Sequence[float]], float]
    resample: Callable[[Sequence[float], Sequence[float], int], "FloatArray"]


Mode = Literal["strict", "loose"]


@dataclass(frozen=True)
class InstructionMetric:
    """How many instructions were followed (`evalkit.metrics.ifeval`).

    The value is the share of all passed instructions of a dataset, or (`whole`) of the samples that passed
    all of theirs; a sample's own value is the same for it alone.
    """

    name: str
    version: str
    mode: Mode
    whole: bool


class ModelScorer(Protocol):
    """A loaded metric model; `version` names its code and its weights."""

    @property
    def version(self) -> str:
        """The metric version of the values this scorer gives."""

    def score(self, triples: Sequence[Triple]) -> list[float]:
        """One number per triple, in order."""


@dataclass(frozen=True)
class ModelMetric:
    """A number per sample from a model that is loaded once for all datasets.

    `fetch(config, offline)` gets its files, `open(config, offline)` loads it; both raise
    `MetricUnavailableError` when that fails. Where `wanted(config)` is false the metric is not
    computed and does not count as missing.
    """

    name: str
    fetch: Callable[[MetricsConfig, bool], object]
    open: Callable[[MetricsConfig, bool], ModelScorer]
    wanted: Callable[[MetricsConfig], bool] = lambda config: True


Metric = SampleMetric | CorrelationMetric | InstructionMetric | ModelMetric
