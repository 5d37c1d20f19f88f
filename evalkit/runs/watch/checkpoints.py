"""Checkpoint folders: which there are, in which order, and whether everything of one is there."""

from collections.abc import Iterator
from pathlib import Path

from evalkit.core.errors import InputError
from evalkit.core.text import step_of
from evalkit.engines.models.folder_files import TOKENIZER_MODELS
from evalkit.engines.models.whole import INDEX, check_whole

# Name, size and time of change of every file.
Signature = tuple[tuple[str, int, int], ...]


def candidates(folder: Path) -> list[Path]:
    """The sub-folders that are checkpoints, whole or not, in the order of their training steps.

    A link to one of them, such as `latest`, is not another one.
    """
    return sorted(filter(_looks_like_one, folder.iterdir()), key=_order)


def signature(folder: Path) -> Signature:
    """What changes when anything is written into a folder."""
    return tuple(sorted(_files(folder)))


def problem(folder: Path, *, needs_tokenizer: bool) -> str | None:
    """Why a checkpoint is not whole, None when it is; see `check_whole`."""
    try:
        check_whole(folder)
    except InputError as error:
        return error.what
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    if needs_tokenizer and not any((folder / name).is_file() for name in TOKENIZER_MODELS):
        return "it has no tokenizer (model.tokenizer=FOLDER gives one to all)"
    return None


def _looks_like_one(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    try:
        if path.is_symlink() and path.resolve().is_relative_to(path.parent.resolve()):
            return False
        named = (path / "config.json").exists() or (path / INDEX).exists()
        return path.is_dir() and (named or any(path.glob("*.safetensors")))
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
            # Removed meanwhile, or a link whose target does not exist yet.
            yield str(path.relative_to(folder)), -1, -1
        else:
            yield str(path.relative_to(folder)), state.st_size, state.st_mtime_ns
