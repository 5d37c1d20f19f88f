"""The metrics by name. Nothing heavy is imported here: each metric loads what it needs when used."""

from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec

from evalkit.core.config import MetricsConfig
from evalkit.core.errors import InputError
from evalkit.core.text import did_you_mean
from evalkit.metrics import bert_score, bleu, correlation, match, rouge
from evalkit.metrics.metric import (
    CorrelationMetric,
    InstructionMetric,
    Metric,
    MetricUnavailableError,
    ModelMetric,
    ModelScorer,
    SampleMetric,
)
from evalkit.metrics.model_files import comet_files

_PERCENT = (0.0, 100.0)


def open_comet(config: MetricsConfig, offline: bool) -> ModelScorer:
    """Unbabel/wmt22-comet-da as configured.

    Raises:
        MetricUnavailableError: a file is missing or unreadable.
    """
    checkpoint, encoder = comet_files(config, offline)
    from evalkit.metrics.comet import Comet

    return Comet(
        checkpoint,
        encoder=encoder,
        device=config.comet.device,
        batch_size=config.comet.batch_size,
        dtype=config.comet.precision.value,
    )


_ALL: tuple[Metric, ...] = (
    SampleMetric("exact_match", "1", match.exact_match, binary=True),
    SampleMetric("char_f1", "1", match.char_f1),
    SampleMetric("set_f1", "1", match.set_f1),
    CorrelationMetric(
        "pearson", "1", correlation.parse_number, correlation.pearson, correlation.resampled_pearson
    ),
    CorrelationMetric(
        "spearman", "1", correlation.parse_number, correlation.spearman, correlation.resampled_spearman
    ),
    SampleMetric("bleu_ja", "1", bleu.character_bleu, ("sentence_bleu_ja",), _PERCENT),
    SampleMetric("bleu_en", "1", bleu.character_bleu, ("sentence_bleu_en",), _PERCENT),
    SampleMetric("sentence_bleu_ja", "1", bleu.sentence_bleu_ja, scale=_PERCENT),
    SampleMetric("sentence_bleu_en", "1", bleu.sentence_bleu_en, scale=_PERCENT),
    *(
        ModelMetric(
            f"bert_score_{language}_f1",
            fetch=partial(bert_score.bert_files, language),
            open=partial(bert_score.open_bert_score, language),
            wanted=lambda config: config.bert_score,
        )
        for language in ("ja", "en")
    ),
    ModelMetric("comet_wmt22", fetch=comet_files, open=open_comet),
    *(
        SampleMetric(kind, "1", partial(rouge.f_measure, kind))
        for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")
    ),
    InstructionMetric("instruction_strict", "1", "strict", whole=False),
    InstructionMetric("prompt_strict", "1", "strict", whole=True),
    InstructionMetric("instruction_loose", "1", "loose", whole=False),
    InstructionMetric("prompt_loose", "1", "loose", whole=True),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


# What brings a metric's packages: an extra of evalkit, with the modules, by how the metric's name begins.
_EXTRAS = {
    ("instruction_", "prompt_"): ("ifeval", ("ja_sentence_segmenter", "janome", "langdetect")),
    ("rouge",): ("rouge", ("fugashi", "rouge_score", "unidic_lite")),
    ("bert_score_",): ("bertscore", ("bert_score",)),
}


def metric_names() -> list[str]:
    """The names a task may list, in the order of the table above."""
    return list(METRICS)


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        InputError: unknown name; the message lists near names.
    """
    if name not in METRICS:
        raise InputError(
            f"unknown metric {name!r}{did_you_mean(name, METRICS)}", fix=f"one of {', '.join(METRICS)}"
        )
    return METRICS[name]


def wanted_metrics(names: Iterable[str], config: MetricsConfig) -> list[str]:
    """The metrics to compute for a task that lists `names`: those that are not switched off, each
    followed by the metrics that are always reported with it.
    """
    expanded: dict[str, None] = {}
    for name in names:
        metric = get_metric(name)
        if isinstance(metric, ModelMetric) and not metric.wanted(config):
            continue
        expanded[name] = None
        if isinstance(metric, SampleMetric):
            expanded.update(dict.fromkeys(metric.also_report))
    return list(expanded)


def missing_packages(names: Iterable[str], config: MetricsConfig) -> dict[str, str]:
    """The modules that metrics among `names` need and that are not installed, each with evalkit's extra."""
    found: dict[str, str] = {}
    for name in wanted_metrics(dict.fromkeys(names), config):
        for starts, (extra, modules) in _EXTRAS.items():
            if name.startswith(starts):
                found |= {module: extra for module in modules if find_spec(module) is None}
    return found


def fetch_models(
    names: Iterable[str], config: MetricsConfig, *, offline: bool = False
) -> dict[str, MetricUnavailableError | None]:
    """Fetches the model files of the metrics among `names` that need them: None, or the error."""
    outcome: dict[str, MetricUnavailableError | None] = {}
    for name in wanted_metrics(dict.fromkeys(names), config):
        metric = get_metric(name)
        if isinstance(metric, ModelMetric):
            try:
                metric.fetch(config, offline)
                outcome[name] = None
            except MetricUnavailableError as error:
                outcome[name] = error
    return outcome
