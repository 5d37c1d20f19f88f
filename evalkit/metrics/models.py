"""The metrics that need a model of their own: where its files are, and how it is opened.

Files are looked for before anything heavy is imported, so a missing model costs nothing.
"""

from pathlib import Path

from evalkit.core.config import CometConfig, Dtype, MetricsConfig
from evalkit.metrics.base import MetricUnavailableError, ModelScorer
from evalkit.services.hub import locate

CHECKPOINT_FILES = ("checkpoints/model.ckpt", "hparams.yaml")
ENCODER_REQUIRED = ("config.json", "tokenizer.json|sentencepiece.bpe.model")
ENCODER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
)
# bert-score's default models by their present names on the hub.
BERT_MODELS = {"ja": "google-bert/bert-base-multilingual-cased", "en": "FacebookAI/roberta-large"}
BERT_REQUIRED = ("config.json", "model.safetensors", "tokenizer.json|vocab.txt|vocab.json")
BERT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.*",
    "merges.txt",
    "model.safetensors",
)
PREPARE = "python -m evalkit prepare suite=mt"


def comet_files(config: MetricsConfig, offline: bool) -> tuple[Path, Path]:
    """The places of COMET's (checkpoint, encoder): local paths, the hub's cache, or fetched.

    Raises:
        MetricUnavailableError: not here, and not fetched.
    """
    comet, standard = config.comet, CometConfig()
    command = PREPARE
    for option in ("checkpoint", "encoder"):
        if getattr(comet, option) != getattr(standard, option):
            command += f" metrics.comet.{option}={getattr(comet, option)}"
    checkpoint = locate(
        comet.checkpoint,
        CHECKPOINT_FILES,
        CHECKPOINT_FILES,
        offline=offline,
        option="metrics.comet.checkpoint",
        command=command,
        raises=MetricUnavailableError,
    )
    encoder = locate(
        comet.encoder,
        ENCODER_REQUIRED,
        ENCODER_FILES,
        offline=offline,
        option="metrics.comet.encoder",
        command=command,
        raises=MetricUnavailableError,
    )
    return checkpoint, encoder


def open_comet(config: MetricsConfig, offline: bool) -> ModelScorer:
    """Unbabel/wmt22-comet-da as configured.

    Raises:
        MetricUnavailableError: a file is missing or unreadable.
    """
    checkpoint, encoder = comet_files(config, offline)
    from evalkit.metrics.comet import Comet

    dtype = Dtype.float32 if config.comet.dtype is Dtype.auto else config.comet.dtype
    return Comet(
        checkpoint,
        encoder=encoder,
        device=config.comet.device,
        batch_size=config.comet.batch_size,
        dtype=dtype.value,
    )


def bert_score_is_on(config: MetricsConfig) -> bool:
    """BERTScore is computed on request only: it enters no category and needs two more models."""
    return config.bert_score


def bert_files(language: str, offline: bool) -> Path:
    """The folder of bert-score's default model for ja or en.

    Raises:
        MetricUnavailableError: not here, and not fetched.
    """
    return locate(
        BERT_MODELS[language],
        BERT_REQUIRED,
        BERT_FILES,
        offline=offline,
        option="metrics.bert_score",
        command=f"{PREPARE} metrics.bert_score=true",
        raises=MetricUnavailableError,
    )


def open_bert_score(language: str, offline: bool) -> ModelScorer:
    """bert-score's F1 with its default model for ja or en.

    Raises:
        MetricUnavailableError: the library or the model is not here.
    """
    folder = bert_files(language, offline)
    from evalkit.metrics.bert_score import BertScore, default_layers

    return BertScore(folder, default_layers(language))
