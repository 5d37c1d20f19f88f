"""Checkpoints as a training run leaves them: tiny random models, written by transformers."""

import shutil
import time
from pathlib import Path

from evalkit.core.config import RandomShape
from evalkit.engines.local.random_model import byte_tokenizer, random_model


def save(folder: Path, seed: int, *, shards: bool = False, tokenizer: bool = True) -> Path:
    """Writes a checkpoint; `shards`: with its weights in several files and an index."""
    tokens = byte_tokenizer()
    model = random_model(RandomShape(layers=2, seed=seed), tokens, None)
    model.save_pretrained(folder, **({"max_shard_size": "100KB"} if shards else {}))
    if tokenizer:
        tokens.save_pretrained(folder)
    return folder


def copy_slowly(source: Path, target: Path, seconds: float, pieces: int = 40) -> None:
    """Copies a checkpoint in small pieces: config first, then the weights bit by bit, tokenizer last."""
    target.mkdir()
    shutil.copy(source / "config.json", target)
    for path in sorted(source.glob("*.safetensors")):
        content = path.read_bytes()
        size = -(-len(content) // pieces)
        with (target / path.name).open("wb") as file:
            for begin in range(0, len(content), size):
                file.write(content[begin : begin + size])
                file.flush()
                time.sleep(seconds / pieces)
    for path in source.iterdir():
        if not (target / path.name).exists():
            shutil.copy(path, target)
