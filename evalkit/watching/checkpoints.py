"""Checkpoint folders: which there are, in which order, and whether everything of one is there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.leaderboard.steps import step_of
from evalkit.models.files import TOKENIZER_MODELS

INDEX = "model.safetensors.index.json"
# Names of one shard of several: model-00002-of-00007.safetensors
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_LENGTH_BYTES = 8
# The format's own limit; anything above is no header.
_LONGEST_HEADER = 100_000_000

# Name, size and time of change of every file.
Signature = tuple[tuple[str, int, int], ...]


def candidates(folder: Path) -> list[Path]:
    """The sub-folders that are checkpoints, whole or not, in the order of their training steps."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".") and _looks_like_one(path)]
    return sorted(found, key=_order)


def signature(folder: Path) -> Signature:
    """What changes when anything is written into a folder."""
    return tuple(sorted(_files(folder)))


def problem(folder: Path, *, needs_tokenizer: bool) -> str | None:
    """Why a checkpoint is not whole, None when it is.

    Looks at what tells an unfinished or damaged copy without reading the weights: JSON that ends in
    the middle, shards that are missing, files shorter than their own header says.
    """
    try:
        if "model_type" not in _json(folder / "config.json"):
            return "config.json names no model_type"
        if needs_tokenizer and not any((folder / name).is_file() for name in TOKENIZER_MODELS):
            return "it has no tokenizer (model.tokenizer=FOLDER gives one to all)"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / name).exists():
                _json(folder / name)
        return _weights_problem(folder)
    except _DamagedError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"


class _DamagedError(Exception):
    pass


def _looks_like_one(path: Path) -> bool:
    try:
        return path.is_dir() and ((path / "config.json").exists() or any(path.glob("*.safetensors*")))
    except OSError:
        return False


def _order(path: Path) -> tuple[int, str, int, str]:
    step = step_of(path.name)
    return (0, step[0], step[1], path.name) if step else (1, "", 0, path.name)


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    for path in folder.rglob("*"):
        try:
            state = path.stat()
        except OSError:
            # It has gone since, or is a link whose target is not there yet.
            yield str(path.relative_to(folder)), -1, -1
        else:
            yield str(path.relative_to(folder)), state.st_size, state.st_mtime_ns


def _weights_problem(folder: Path) -> str | None:
    there = {path.name for path in folder.glob("*.safetensors")}
    wanted = _wanted_files(folder, there)
    if not wanted:
        return "it has no *.safetensors weights"
    if missing := sorted(wanted - there):
        return f"weights are missing: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
    return next(filter(None, (_file_problem(folder / name) for name in sorted(there))), None)


def _wanted_files(folder: Path, there: set[str]) -> set[str]:
    if (folder / INDEX).exists():
        weight_map = _json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise _DamagedError(f"{INDEX} names no weights")
        return {str(name) for name in weight_map.values()}
    wanted = set(there)
    for name in there:
        if shard := _SHARD.fullmatch(name):
            # Shards without an index: it is written last.
            raise _DamagedError(f"{name} is one of {int(shard[2])} shards, and {INDEX} is not there")
    return wanted


def _file_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file: 8 bytes of length, a JSON header, then the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or not 0 < length <= min(size - _LENGTH_BYTES, _LONGEST_HEADER):
            return f"{path.name} is not a whole safetensors file"
        try:
            header = json.loads(file.read(length))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            data = max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            return f"{path.name} has a damaged header"
    expected = _LENGTH_BYTES + length + data
    return None if size == expected else f"{path.name} has {size:,} bytes, its header says {expected:,}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _DamagedError(f"it has no {path.name}") from None
    except (ValueError, RecursionError):
        raise _DamagedError(f"{path.name} is not whole JSON") from None
    if not isinstance(content, dict):
        raise _DamagedError(f"{path.name} is not a JSON object")
    return content
