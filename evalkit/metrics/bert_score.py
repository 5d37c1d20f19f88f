"""bert_score_ja_f1 and bert_score_en_f1: bert-score's F1 with its default model for the language.

An extra (`evalkit[bertscore]`) that is off by default; these scores enter no category.
"""

from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evalkit.core.config import MetricsConfig
from evalkit.core.errors import foreign
from evalkit.core.files import file_sha256
from evalkit.metrics.metric import MetricUnavailableError, Triple
from evalkit.metrics.model_files import PREPARE
from evalkit.services.hub import locate

CODE_VERSION = "1"
# bert-score's default models by their current names on the hub.
MODELS = {"ja": "google-bert/bert-base-multilingual-cased", "en": "FacebookAI/roberta-large"}
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json|vocab.txt|vocab.json")
FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.*",
    "merges.txt",
    "model.safetensors",
)
_WEIGHTS = "model.safetensors"


def bert_files(language: str, config: MetricsConfig, offline: bool) -> Path:
    """The folder of bert-score's default model for ja or en.

    No option chooses it: `config` is part of the signature of `ModelMetric.fetch`.

    Raises:
        MetricUnavailableError: not here, and could not be fetched.
    """
    return locate(
        MODELS[language],
        REQUIRED,
        FILES,
        offline=offline,
        option="metrics.bert_score",
        command=f"{PREPARE} metrics.bert_score=true",
        raises=MetricUnavailableError,
    )


def open_bert_score(language: str, config: MetricsConfig, offline: bool) -> "BertScore":
    """bert-score's F1 with its default model for ja or en.

    Raises:
        MetricUnavailableError: the library is not installed, or the model could not be fetched.
    """
    return BertScore(bert_files(language, config, offline), default_layers(language))


def default_layers(language: str) -> int:
    """The hidden layer bert-score takes of its default model for a language.

    Raises:
        MetricUnavailableError: the library is not installed.
    """
    try:
        from bert_score.utils import lang2model, model2layers
    except ImportError as error:
        raise MetricUnavailableError(
            f"BERTScore needs a library that is not installed: {error.name}",
            fix="pip install 'evalkit[bertscore]'",
        ) from error
    return int(model2layers[lang2model[language]])


class BertScore:
    """bert-score over one model.

    Args:
        folder: the model with its tokenizer.
        layers: the hidden layer whose embeddings are compared.
        device: cpu, cuda ...; None: a GPU when there is one.
    """

    def __init__(self, folder: Path, layers: int, device: str | None = None) -> None:
        from bert_score import BERTScorer

        if "t5" in str(folder):
            raise MetricUnavailableError(
                "bert-score takes any model whose path contains t5 for a T5 model",
                where=folder,
                fix="put the hub's cache elsewhere: HF_HOME=DIR",
            )
        with foreign("the model of BERTScore cannot be loaded", where=folder, raises=MetricUnavailableError):
            self._scorer = BERTScorer(model_type=str(folder), num_layers=layers, device=device)
            _restore_tokenizer(self._scorer, folder)
            weights = bytes.fromhex(file_sha256(folder / _WEIGHTS))
            digest = sha256(weights + bytes([layers])).hexdigest()
        self.version = f"{CODE_VERSION} (bert-score {version('bert-score')}, model {digest[:12]})"

    def score(self, triples: Sequence[Triple]) -> list[float]:
        """F1 of mt against ref, in order; 0.0 for an empty translation."""
        if not triples:
            return []
        _, _, f1 = self._scorer.score([t["mt"] for t in triples], [t["ref"] for t in triples])
        return [float(value) for value in f1]


def _restore_tokenizer(scorer: Any, folder: Path) -> None:
    """Gives bert-score 0.3.13 the tokenizer behaviour it relies on, which transformers 5 has dropped.

    It gets the special tokens of an empty sentence by a method that was removed, and passes
    `add_prefix_space=True` to RoBERTa's `encode`, which now ignores it.
    """
    from transformers import AutoTokenizer, RobertaTokenizer

    tokenizer = scorer._tokenizer
    if isinstance(tokenizer, RobertaTokenizer):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, add_prefix_space=True, local_files_only=True, trust_remote_code=False
        )
        scorer._tokenizer = tokenizer
    if not hasattr(tokenizer, "build_inputs_with_special_tokens"):
        tokenizer.build_inputs_with_special_tokens = lambda ids: ids or tokenizer.encode("")
