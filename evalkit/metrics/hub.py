"""Where a metric model's files lie: a local folder, the hub's cache, or fetched from the hub."""

from collections.abc import Sequence
from pathlib import Path

from evalkit.core.reasons import Reason
from evalkit.metrics.base import MetricUnavailableError


def locate(
    name: str, required: Sequence[str], wanted: Sequence[str], *, offline: bool, option: str, command: str
) -> Path:
    """The folder that holds a model's files.

    Args:
        name: a local folder (or a file in it, given back as it is) or a hub name `owner/model`.
        required: files that must be there, relative to the folder; one of `a|b` is enough.
        wanted: patterns of the files to fetch.
        offline: look at local folders and the hub's cache only.
        option: the option that names the model, for the message.
        command: what fetches it on a machine with a connection, for the message.

    Raises:
        MetricUnavailableError: not here, and not fetched; the message has the command that fetches it.
    """
    local = Path(name).expanduser()
    if local.exists():
        return local
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MetricUnavailableError(f"there is no file or folder {name}", where=f"option {option}")
    cached = _snapshot(name, wanted, local_only=True)
    if isinstance(cached, Path) and _complete(cached, required):
        return cached
    if offline:
        raise MetricUnavailableError(
            Reason("{name} is not in the hub's cache, and nothing may be fetched now", name=name), fix=command
        )
    fetched = _snapshot(name, wanted, local_only=False)
    if isinstance(fetched, Exception):
        raise MetricUnavailableError(
            Reason("{name} could not be fetched: {error}", name=name, error=_first_line(fetched)), fix=command
        )
    if not _complete(fetched, required):
        raise MetricUnavailableError(
            Reason("{name} does not hold {files}", name=name, files=", ".join(required)),
            where=f"option {option}",
        )
    return fetched


def _snapshot(name: str, wanted: Sequence[str], *, local_only: bool) -> Path | Exception:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=list(wanted), local_files_only=local_only))
    except (OSError, ValueError, HfHubHTTPError, httpx.HTTPError) as error:
        return error


def _complete(folder: Path, required: Sequence[str]) -> bool:
    return all(any((folder / option).is_file() for option in name.split("|")) for name in required)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
