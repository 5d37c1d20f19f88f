"""The files of pfgen-bench: its questions with their references, and published sets of answers."""

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.files import (
    parse_json,
    parse_rows,
    read_bytes,
    read_json_object,
    read_rows,
    text_field,
)
from evalkit.core.text import did_you_mean
from evalkit.core.types import Sample
from evalkit.metrics.pfgen import Question
from evalkit.sources.fetch import Fetcher
from evalkit.sources.mirror import Mirror
from evalkit.sources.pins import pins_of

# Of the data of every published set that can be compared: `metadata_hash` in its result.json.
DATA_HASH = "13581cc9df3fb849ec9293bcec2b03de1a48ecc2"
# A set of 100 trials has a few megabytes; more than this is no set of answers.
_MOST_BYTES = 1 << 30
_PIECE = 1 << 16


@dataclass(frozen=True)
class AnswerSet:
    """A published set of answers.

    Attributes:
        model: its name in config.json beside the answers; None: there is no such file.
        mode: `completion`, `qa` or `chat`, from there too.
        answers: by question id, in the order of the file. It is sorted, so the i-th answers of all questions
            are no trial.
    """

    model: str | None
    mode: str | None
    answers: dict[str, tuple[str, ...]]


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
    return tuple(
        _question(parse_json(content.decode(), path)) for content, path in zip(contents, paths, strict=True)
    )


def _question(row: dict[str, Any]) -> Question:
    return Question(
        row["question_id"], row["question"], row["category"], tuple(row["keywords"]), row["answers"]
    )


def read_pool(path: Path) -> tuple[Sample, ...]:
    """The pairs that few-shots are drawn from (`questions.jsonl`), by question id, in the file's order."""
    return tuple(
        Sample(f"Q{number:02}", text_field(row, "question", place), text_field(row, "answer", place))
        for number, (place, row) in enumerate(read_rows(path), start=1)
    )


def read_answers(path: Path, questions: Sequence[Question], *, allow_missing: bool = False) -> AnswerSet:
    """A published `trials.jsonl` or `trials.jsonl.xz`, with the model's name from config.json beside it.

    Args:
        path: the file.
        questions: all questions of the benchmark.
        allow_missing: take questions with fewer answers than others, or with none.

    Raises:
        InputError: a question that is none of the benchmark's, one without an answer, questions with unequal
            numbers of answers, an xz file that is damaged or cut short, or a line that is not as expected.
    """
    known = {question.text: question.id for question in questions}
    answers: dict[str, list[str]] = {question.id: [] for question in questions}
    last: dict[str, str] = {}
    for place, row in parse_rows(_content(path), str(path)):
        text = text_field(row, "question", place)
        if text not in known:
            raise InputError(
                f"no question of pfgen: {text!r}{did_you_mean(text, known)}", where=f"{place}, field question"
            )
        answers[known[text]].append(text_field(row, "answer", place))
        last[known[text]] = place
    most = max(map(len, answers.values()), default=0)
    if not last:
        raise InputError("there are no answers", where=path)
    for question in questions:
        number = len(answers[question.id])
        if number < most and not allow_missing:
            raise InputError(
                f"question {question.id} ({question.text}) has "
                + (f"{number} answers, others have {most}" if number else "no answer"),
                where=last.get(question.id, path),
                fix="add what is missing, or allow_missing=true for a partial result",
            )
    config = path.with_name("config.json")
    described = read_json_object(config, "the set's configuration") if config.exists() else {}
    model, mode = (
        text_field(described, key, str(config)) if key in described else None for key in ("model", "mode")
    )
    return AnswerSet(model, mode, {key: tuple(texts) for key, texts in answers.items() if texts})


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is an xz file."""
    data = read_bytes(path, "the answers")
    if path.suffix != ".xz":
        return data
    content, problem = bytearray(), ""
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        # In pieces, so that what comes before a damaged place is known.
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while piece and len(content) <= _MOST_BYTES:
                if stream.eof:
                    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
                content += stream.decompress(piece, _MOST_BYTES)
                piece = stream.unused_data
        if len(content) > _MOST_BYTES:
            problem = f"it unpacks to more than {_MOST_BYTES >> 20} MiB"
        elif not stream.eof:
            problem = "it is cut short"
    except lzma.LZMAError as error:
        problem = f"it is damaged ({error})"
    if problem:
        line = content.count(b"\n") + 1
        raise InputError(
            f"not a whole xz file: {problem}", where=f"{path}, line {line}", fix="fetch the file again"
        )
    return bytes(content)
