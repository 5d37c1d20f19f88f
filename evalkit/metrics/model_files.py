"""The paths of COMET's files.

Nothing heavy is imported here: a missing model is reported before torch is loaded.
"""

from pathlib import Path

from evalkit.core.config import CometConfig, MetricsConfig
from evalkit.metrics.metric import MetricUnavailableError
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
PREPARE = "evalkit prepare suite=mt"


def comet_files(config: MetricsConfig, offline: bool) -> tuple[Path, Path]:
    """The paths of COMET's (checkpoint, encoder): local, in the hub's cache, or fetched.

    Raises:
        MetricUnavailableError: not here, and could not be fetched.
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
