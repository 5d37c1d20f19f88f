"""The files of pfgen-bench: its questions with their references, and the pool of few-shots."""

from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path

from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.files import parse_json, read_bytes, read_rows, text_field
from evalkit.core.types import Sample
from evalkit.metrics.pfgen import Question
from evalkit.sources.fetch import Fetcher
from evalkit.sources.mirror import Mirror
from evalkit.sources.pins import pins_of

# Of the data of every published set that can be compared: `metadata_hash` in its result.json.
DATA_HASH = "13581cc9df3fb849ec9293bcec2b03de1a48ecc2"


def fetch_files(mirror: Path | None = None, *, offline: bool = False) -> dict[str, Path]:
    """The pinned files from the mirror, the cache or the network, by their names in the cache.

    Raises:
        EvalkitError: a file is not to be had, or is not the pinned one.
    """
    pins, fetcher = pins_of("pfgen"), Fetcher(Mirror.open(mirror) if mirror else None, offline)
    found, files = fetcher.fetch(pins), {}
    for pin in pins:
        if isinstance(file := found[pin], EvalkitError):
            raise file
        files[fetcher.cached(pin).name] = file.path
    return files


def fetch_data(
    mirror: Path | None = None, *, offline: bool = False
) -> tuple[tuple[Question, ...], tuple[Sample, ...]]:
    """The questions with their references, and the pairs that few-shots are drawn from.

    Raises:
        EvalkitError: a file is not to be had, or is not the pinned one.
    """
    *data, pool = fetch_files(mirror, offline=offline).values()
    return read_data(data), read_pool(pool)


def read_data(paths: Sequence[Path]) -> tuple[Question, ...]:
    """The questions of `Q01.json` to `Q50.json`, in this order, with their references.

    Raises:
        InputError: a file is missing, or they are not the published ones.
    """
    contents = [read_bytes(path, "a question of pfgen") for path in paths]
    found = sha1("".join(sha1(content).hexdigest() for content in contents).encode()).hexdigest()
    if found != DATA_HASH:
        raise InputError(
            f"not the published data of pfgen: its hash is {found}, not {DATA_HASH}",
            where=paths[0].parent if paths else None,
            fix="evalkit prepare suite=pfgen",
        )
    rows = [parse_json(content.decode(), path) for content, path in zip(contents, paths, strict=True)]
    keys = ("question_id", "question", "category", "keywords", "answers")
    return tuple(Question(*(row[key] for key in keys)) for row in rows)


def read_pool(path: Path) -> tuple[Sample, ...]:
    """The pairs that few-shots are drawn from (`questions.jsonl`), by question id, in the file's order."""
    return tuple(
        Sample(f"Q{number:02}", text_field(row, "question", place), text_field(row, "answer", place))
        for number, (place, row) in enumerate(read_rows(path), start=1)
    )
