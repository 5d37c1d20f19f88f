"""The files of pfgen-bench: its questions with their references, and the pool of few-shots."""

from pathlib import Path

from evalkit.core.errors import EvalkitError
from evalkit.core.files import read_json, read_rows, text_field
from evalkit.core.types import Sample
from evalkit.metrics.pfgen import PfgenQuestion
from evalkit.sources.fetch import Fetcher
from evalkit.sources.pins import pins_of

# Of the pinned questions, as upstream hashes them: `metadata_hash` of every published set.
DATA_HASH = "13581cc9df3fb849ec9293bcec2b03de1a48ecc2"


def fetch_files(mirror: Path | None = None, *, offline: bool = False) -> dict[str, Path]:
    """`Q01.json` to `Q50.json`, then the pool: from mirror, cache or network, by their names in the cache.

    Raises:
        EvalkitError: a file is not to be had, or is not the pinned one.
    """
    pins, fetcher = pins_of("pfgen"), Fetcher.of(mirror, offline)
    found, files = fetcher.fetch(pins), {}
    for pin in pins:
        if isinstance(file := found[pin], EvalkitError):
            raise file
        files[fetcher.cached(pin).name] = file.path
    return files


def fetch_data(
    mirror: Path | None = None, *, offline: bool = False
) -> tuple[tuple[PfgenQuestion, ...], tuple[Sample, ...]]:
    """The questions with their references, and the pairs that few-shots are drawn from; see `fetch_files`."""
    *data, pool = fetch_files(mirror, offline=offline).values()
    keys = ("question_id", "question", "category", "keywords", "answers")
    questions = tuple(PfgenQuestion(*(row[key] for key in keys)) for row in map(read_json, data))
    return questions, read_pool(pool)


def read_pool(path: Path) -> tuple[Sample, ...]:
    """The pairs that few-shots are drawn from (`questions.jsonl`), by question id, in the file's order."""
    return tuple(
        Sample(f"Q{number:02}", text_field(row, "question", place), text_field(row, "answer", place))
        for number, (place, row) in enumerate(read_rows(path), start=1)
    )
