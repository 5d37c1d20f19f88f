"""Models from a hub, kept in the hub library's own cache."""

import sys
import threading
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evalkit.core.errors import (
    EvalkitError,
    FetchError,
    InputError,
    UnreachableError,
    first_line,
    no_connection,
)
from evalkit.core.progress import AddBar, Bar, bars
from evalkit.core.reasons import Reason
from evalkit.core.words import t

_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
# Copies of the weights in other layouts than the one transformers reads.
_COPIES = ["original/*", "onnx/*", "consolidated*", "*.gguf"]


def snapshot(
    name: str, *, revision: str | None, remote_code: bool, offline: bool, prepare: str, weights: bool = True
) -> Path:
    """The local folder of a hub repository at `revision` (default: its newest commit).

    Args:
        name: repository, `owner/name`.
        revision: commit, tag or branch.
        remote_code: fetch the repository's own Python files too.
        offline: use what the cache holds and open no connection.
        prepare: the command that fetches this model, for error messages.
        weights: fetch the weights, not only config and tokenizer.

    Returns:
        A folder whose name is the commit.

    Raises:
        InputError: no such repository or revision, or a name that cannot be one.
        UnreachableError: not in the cache, and offline or no network.
        FetchError: no access, or a connection that breaks off.
    """
    patterns = [*_SMALL_FILES, *(["*.safetensors"] if weights else []), *(["*.py"] if remote_code else [])]
    found = _download(name, patterns, local_only=offline, revision=revision, ignore_patterns=_COPIES)
    if isinstance(found, Exception):
        raise _snapshot_error(found, name, revision, offline=offline, prepare=prepare)
    return found


def _snapshot_error(
    error: Exception, name: str, revision: str | None, *, offline: bool, prepare: str
) -> EvalkitError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{name}@{revision}" if revision else name
    match error:
        case HFValidationError():
            fix = "model.path=FOLDER or model.path=owner/name"
            return InputError("neither a folder nor a hub name", where=name, fix=fix)
        # A GatedRepoError is a RepositoryNotFoundError.
        case GatedRepoError():
            return FetchError(
                "the hub gives this model only to people who accepted its terms",
                where=where,
                fix="accept them on the model's page, then log in: hf auth login",
            )
        case RepositoryNotFoundError() | RevisionNotFoundError():
            return InputError(
                "the hub knows no such model or revision (or it is private)",
                where=where,
                fix="check model.path and model.revision; for a private model: hf auth login",
            )
        case LocalEntryNotFoundError() if offline:
            what = "the model is not in the hub cache, and offline=true fetches nothing"
            return UnreachableError(what, where=where, fix=f"on a machine with a network: {prepare}")
    why = unreachable(error)
    if why is None and isinstance(error, LocalEntryNotFoundError):
        why = f"the hub cannot be reached ({first_line(error.__cause__ or error)})"
    if why is not None:
        what = f"{why}, and the model is not in the hub cache"
        return UnreachableError(what, where=where, fix=f"on a machine with a network: {prepare}")
    what = f"the model could not be fetched: {first_line(error)}"
    return FetchError(what, where=where, fix=f"again: {prepare}")


def unreachable(error: BaseException) -> str | None:
    """That the hub cannot be reached, and why; None where something else went wrong."""
    if (why := no_connection(error)) is None:
        return None
    from huggingface_hub import constants

    return f"no network: {urlsplit(constants.ENDPOINT).hostname} is unreachable ({why})"


def set_offline(offline: bool) -> Callable[[], None]:
    """Keeps the hub's libraries from the network, or allows it; returns what undoes that.

    They read HF_HUB_OFFLINE once, when they are imported, which may be before this.
    """
    key = "HF_HUB_OFFLINE"
    names = {"huggingface_hub.constants", "datasets.config"} & sys.modules.keys()
    before = {name: vars(sys.modules[name])[key] for name in names}
    for name in names:
        vars(sys.modules[name])[key] = offline

    def undo() -> None:
        for name, value in before.items():
            vars(sys.modules[name])[key] = value

    return undo


def hub_unreachable() -> str | None:
    """Why the hub cannot be reached now; None where it answers, whatever it says."""
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=10.0)
    except httpx.HTTPError as error:
        return unreachable(error)
    return None


def locate(
    name: str,
    required: Sequence[str],
    wanted: Sequence[str],
    *,
    offline: bool,
    option: str,
    command: str,
    raises: type[EvalkitError],
) -> Path:
    """The folder that holds the named files of a model: a local one, the hub's cache, or fetched.

    Args:
        name: a local folder (or a file in it, given back as it is) or a hub name `owner/model`.
        required: files that must be there, relative to the folder; one of `a|b` is enough.
        wanted: patterns of the files to fetch.
        offline: look at local folders and the hub's cache only.
        option: the option that names the model, for the message.
        command: what fetches it on a machine with a connection, for the message.
        raises: the class of the error.

    Raises:
        EvalkitError: of the class `raises`: not here, and not fetched; the message has the command.
    """
    local = Path(name).expanduser()
    if local.exists():
        return local
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise raises(f"there is no file or folder {name}", where=f"option {option}")
    cached = _download(name, wanted, local_only=True)
    if isinstance(cached, Path) and _complete(cached, required):
        return cached
    if offline:
        raise raises(
            Reason("{name} is not in the hub's cache, and nothing may be fetched now", name=name), fix=command
        )
    fetched = _download(name, wanted, local_only=False)
    if isinstance(fetched, Exception):
        if unreachable(fetched):
            text = "{name} is not in the hub's cache, and the hub is unreachable (no network)"
            raise raises(Reason(text, name=name), fix=command)
        raise raises(
            Reason("{name} could not be fetched: {error}", name=name, error=first_line(fetched)), fix=command
        )
    if not _complete(fetched, required):
        raise raises(
            Reason("{name} does not hold {files}", name=name, files=", ".join(required)),
            where=f"option {option}",
        )
    return fetched


def _download(name: str, wanted: Sequence[str], *, local_only: bool, **options: Any) -> Path | Exception:
    """The folder of a repository with the wanted files, or why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # The base of the hub's errors is the error of its HTTP library, httpx or httpx2 by version.
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
    options |= {"allow_patterns": list(wanted), "local_files_only": local_only}
    try:
        with bars() as add:
            return Path(snapshot_download(name, tqdm_class=_reporting(name, add), **options))
    except kinds as error:
        return error


def _reporting(name: str, add: AddBar) -> Any:
    """A class like the hub library's own progress bars, whose bytes a bar of ours shows."""
    from tqdm import tqdm

    bar: Bar | None = None
    # Several files are fetched at once, each in a thread of its own.
    lock = threading.Lock()

    class Reporting(tqdm):  # type: ignore[misc]
        """Draws nothing."""

        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options | {"file": StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> Any:
            nonlocal bar
            drawn = super().update(n)
            if self.unit == "B" and self.total:
                with lock:
                    bar = bar or add(t("fetching {name}", name=name), None, "bytes")
                    # Bytes received and bytes written are counted apart.
                    bar.update(max(bar.done, int(self.n)), max(bar.total or 0, int(self.total)))
            return drawn

    return Reporting


def _complete(folder: Path, required: Sequence[str]) -> bool:
    return all(any((folder / option).is_file() for option in name.split("|")) for name in required)
