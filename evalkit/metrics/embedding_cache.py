"""Sentence embeddings on disk by content: sources and references are the same for every language model.

Each `add` atomically writes one shard, a safetensors file with its rows, their keys and a checksum.
Several processes may read and write. A damaged shard is ignored: its sentences are embedded again.
"""

import json
import logging
import os
import uuid
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

Embedding = NDArray[np.float32]
_ROWS = "embeddings"
_LOG = logging.getLogger(__name__)


class EmbeddingCache:
    """Embeddings [dim] by the sha256 of the sentence, in a folder for one model and dtype."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, Embedding] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            self._rows.update(_read(shard))

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Embedding:
        return self._rows[key]

    def add(self, rows: Mapping[str, Embedding]) -> None:
        """Adds embeddings; where they cannot be written, a warning is logged and they stay in memory."""
        self._rows.update(rows)
        if not rows:
            return
        matrix = np.stack(list(rows.values()))
        metadata = {"keys": json.dumps(list(rows)), "sha256": sha256(matrix.tobytes()).hexdigest()}
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        partial = shard.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({_ROWS: matrix}, partial, metadata=metadata)
            partial.replace(shard)
        except (OSError, SafetensorError) as error:
            _LOG.warning("COMET embeddings cannot be kept in %s: %s", self.folder, error)
            partial.unlink(missing_ok=True)


def _read(shard: Path) -> dict[str, Embedding]:
    try:
        with safe_open(shard, framework="numpy") as file:
            metadata = file.metadata() or {}
            matrix = file.get_tensor(_ROWS)
        if sha256(matrix.tobytes()).hexdigest() != metadata["sha256"]:
            return {}
        return dict(zip(json.loads(metadata["keys"]), matrix, strict=True))
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}
