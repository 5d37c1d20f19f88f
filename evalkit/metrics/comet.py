"""comet_wmt22: Unbabel/wmt22-comet-da without the unbabel-comet package, whose requirements conflict.

from evalkit.metrics.comet import Comet
Comet("wmt22-comet-da", encoder="xlm-roberta-large").score([{"src": ..., "mt": ..., "ref": ...}])
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from evalkit.core.assets import cache_dir
from evalkit.core.errors import foreign
from evalkit.core.files import file_sha256
from evalkit.core.progress import bar
from evalkit.core.text import text_sha256
from evalkit.core.words import t
from evalkit.metrics.comet_model import (
    Estimator,
    SentenceEncoder,
    check_hparams,
    checkpoint_paths,
    load_state,
)
from evalkit.metrics.embedding_cache import Embedding, EmbeddingCache
from evalkit.metrics.metric import MetricUnavailableError, Triple
from evalkit.metrics.model_files import ENCODER_FILES

CODE_VERSION = "1"
ROWS_PER_SHARD = 8192


class Comet:
    """A COMET regression model of wmt22-comet-da's design.

    Sentences are embedded once each, in batches sorted by length; embeddings are kept on disk by
    content, so sources and references are embedded only once. The encoder is loaded when the first
    sentence without an embedding appears.

    Args:
        checkpoint: `model.ckpt`, or the folder above `checkpoints/`; hparams.yaml is in the same folder.
        encoder: a folder with the encoder's tokenizer and config; its weights are in the checkpoint.
        device: auto (a GPU when there is one), cpu, cuda, cuda:1 ...
        batch_size: sentences per batch.
        dtype: of the encoder. float32 gives unbabel-comet's scores; bfloat16 is faster on a GPU and
            a named deviation.
        cache: the folder for embeddings; by default `comet` in evalkit's cache.

    Raises:
        MetricUnavailableError: files are missing, unreadable or of another design.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        encoder: str | Path,
        device: str = "auto",
        batch_size: int = 32,
        dtype: str = "float32",
        cache: str | Path | None = None,
    ) -> None:
        weights, hparams = checkpoint_paths(Path(checkpoint).expanduser())
        check_hparams(hparams)
        self._encoder_folder = Path(encoder).expanduser()
        self._state = load_state(weights)
        with foreign("the COMET checkpoint cannot be used", where=weights, raises=MetricUnavailableError):
            self._estimator = Estimator(self._state)
        self._encoder: SentenceEncoder | None = None
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._batch_size = max(1, batch_size)
        self._dtype = dtype
        model = _model_hash(weights, self._encoder_folder)
        self.version = f"{CODE_VERSION} (model {model[:12]}, {dtype})"
        root = Path(cache) if cache is not None else cache_dir() / "comet"
        self._cache = EmbeddingCache(root / f"{model[:32]}-{dtype}")

    def score(self, triples: Sequence[Triple]) -> list[float]:
        """The segment scores of src, mt and ref, in order."""
        if not triples:
            return []
        sides = (
            [_encodable(triple["src"]) for triple in triples],
            [_encodable(triple["mt"]) for triple in triples],
            [_encodable(triple["ref"]) for triple in triples],
        )
        self._embed(text for side in sides for text in side)
        src, mt, ref = (self._stacked(side) for side in sides)
        return [float(score) for score in self._estimator(src, mt, ref)]

    def _stacked(self, texts: Iterable[str]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self._cache[text_sha256(text)] for text in texts]))

    def _embed(self, texts: Iterable[str]) -> None:
        new = {key: text for text in texts if (key := text_sha256(text)) not in self._cache}
        if not new:
            return
        encoder = self._loaded_encoder()
        # Batches of similar length need little padding. The longest sentences come first, so that the
        # memory either runs out at once or suffices to the end.
        order = sorted(
            zip(new, encoder.token_ids(list(new.values())), strict=True), key=lambda e: (-len(e[1]), e[0])
        )
        rows: dict[str, Embedding] = {}
        with bar(t("sentences for COMET"), len(order)) as progress:
            while progress.done < len(order):
                batch = order[progress.done : progress.done + self._batch_size]
                try:
                    embedded = encoder([ids for _, ids in batch])
                except torch.OutOfMemoryError:
                    self._halve_batches()
                    continue
                rows.update((key, row.numpy()) for (key, _), row in zip(batch, embedded, strict=True))
                progress.advance(len(batch))
                if len(rows) >= ROWS_PER_SHARD:
                    self._cache.add(rows)
                    rows = {}
        self._cache.add(rows)

    def _halve_batches(self) -> None:
        if self._batch_size == 1:
            raise MetricUnavailableError(
                "COMET does not fit into the memory of the GPU, even one sentence at a time",
                fix="metrics.comet.device=cpu",
            )
        self._batch_size //= 2
        torch.cuda.empty_cache()

    def _loaded_encoder(self) -> SentenceEncoder:
        if self._encoder is None:
            dtype = getattr(torch, self._dtype)
            with foreign(
                "COMET's encoder cannot be loaded", where=self._encoder_folder, raises=MetricUnavailableError
            ):
                self._encoder = SentenceEncoder(self._state, self._encoder_folder, self._device, dtype)
        return self._encoder


def _encodable(text: str) -> str:
    # A JSON file may hold a lone surrogate, which a tokenizer cannot encode.
    return text.encode("utf-8", "replace").decode("utf-8")


def _model_hash(weights: Path, encoder: Path) -> str:
    """The sha256 of all that decides an embedding: the checkpoint, the encoder's config and tokenizer."""
    digest = sha256()
    files = [encoder / name for name in ENCODER_FILES if (encoder / name).is_file()]
    if not files:
        raise MetricUnavailableError(
            "the encoder's config and tokenizer are not there",
            where=encoder,
            fix="metrics.comet.encoder must be a folder with config.json and a tokenizer",
        )
    for path in (weights, *files):
        digest.update(f"{path.name}:{file_sha256(path)}\n".encode())
    return digest.hexdigest()
