"""A user's own data: rows of a JSON, JSONL, CSV or TSV file, or of a hub dataset, as samples.

The task YAML says which columns are input and output (`evalkit.tasks.spec.DataSpec`, docs/own-tasks.md).
"""

import hashlib
import math
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.errors import EvalkitError, FetchError, InputError, UnreachableError, first_line
from evalkit.core.files import (
    decode,
    parse_json,
    parse_lines,
    parse_table,
    read_bytes,
    refuse_half_characters,
)
from evalkit.core.text import canonical_json, did_you_mean, text_sha256
from evalkit.core.types import Row
from evalkit.metrics.ifeval import gold_of
from evalkit.services.hub import hub_unreachable, set_offline
from evalkit.tasks.spec import DataSpec, TaskSpec

FORMATS = (".json", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True)
class OwnData:
    """The examples and the samples of a task, and the sha256 of what they were read from."""

    few_shots: list[Row]
    samples: list[Row]
    sha256: dict[str, str]


@dataclass(frozen=True)
class _Table:
    """Records with the place each was found at (for messages)."""

    name: str
    records: Sequence[tuple[str, Any]]
    sha256: str


def load_own(spec: TaskSpec, *, offline: bool = False) -> OwnData:
    """The data of a task that has its own.

    Raises:
        InputError: no such file, a malformed one, a missing column, a value that is no text, no rows.
        FetchError: the hub dataset is not available; an `UnreachableError` offline or without a network.
        EvalkitError: the library `datasets` is not installed.
    """
    data = spec.data
    assert data is not None
    if data.file is not None:
        table = _file(Path(data.file))
        examples = _file(Path(data.few_shots_file)) if data.few_shots_file else None
    else:
        table = _hub(data, data.split, offline)
        examples = _hub(data, data.few_shots_split, offline) if data.few_shots_split else None
    rows = _rows(table, spec, data)
    sha256 = {"data": table.sha256}
    if examples is None:
        few_shots, rows = rows[: data.few_shots], rows[data.few_shots :]
    else:
        few_shots = _rows(examples, spec, data)
        sha256["few_shots"] = examples.sha256
    if not rows:
        kept = f" ({len(few_shots)} are kept as examples: data.few_shots)" if few_shots else ""
        raise InputError(f"{spec.name}: no rows to evaluate{kept}", where=table.name)
    return OwnData(few_shots, rows, sha256)


def _rows(table: _Table, spec: TaskSpec, data: DataSpec) -> list[Row]:
    return [
        Row(
            _value(data.input, "input", record, place),
            gold_of(record, place) if spec.verbatim else _value(data.output, "output", record, place),
        )
        for place, record in table.records
    ]


def _value(source: str, option: str, record: Any, where: str) -> str:
    """A column's text, or a template (`質問：{question}`) filled with columns."""
    if not isinstance(record, Mapping):
        raise InputError("a record with named columns was expected", where=where)
    if source in record:
        return _text(record[source], source, where)
    try:
        parts = list(_parts(source))
    except ValueError as error:
        raise InputError(f"data.{option} is not a template: {error}", where=f"{source!r}") from None
    if not any(column is not None for _, column in parts):
        raise _missing(source, option, record, where)
    filled = []
    for literal, column in parts:
        filled.append(literal)
        if column is not None:
            if column not in record:
                raise _missing(column, option, record, where)
            filled.append(_text(record[column], column, where))
    return "".join(filled)


def _parts(template: str) -> Iterator[tuple[str, str | None]]:
    """The literal texts of a template, each with the column that follows it.

    A column is all that stands in its braces: there are no formats (`:`) and conversions (`!`).
    """
    for literal, column, form, conversion in string.Formatter().parse(template):
        if column is not None:
            column += (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        yield literal, column


def _missing(column: str, option: str, record: Mapping[str, Any], where: str) -> InputError:
    known = [str(name) for name in record if name is not None]
    return InputError(
        f"there is no column {column!r}{did_you_mean(column, known)}",
        where=where,
        fix=f"data.{option} in the task file; the columns are {', '.join(known)}",
    )


def _text(value: Any, column: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = str(value)
        if isinstance(value, int) or math.isfinite(value):
            return found
    else:
        found = type(value).__name__
    raise InputError(f"the column {column!r} holds {found}, not a text or a number", where=where)


def _file(path: Path) -> _Table:
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"data files end in {', '.join(FORMATS)}", where=path)
    data = read_bytes(path, "the data file")
    text = decode(data, path)
    readers: dict[str, Callable[[str, Path], Iterable[tuple[str, Any]]]] = {
        ".json": _json,
        ".jsonl": parse_lines,
        ".csv": parse_table,
        ".tsv": lambda text, path: parse_table(text, path, "\t"),
    }
    records = list(readers[path.suffix.lower()](text, path))
    return _Table(str(path), records, hashlib.sha256(data).hexdigest())


def _json(text: str, path: Path) -> Iterable[tuple[str, Any]]:
    value = parse_json(text, path)
    # A file in llm-jp-eval's own layout keeps its records under `samples`.
    records = value.get("samples") if isinstance(value, dict) else value
    if not isinstance(records, list):
        raise InputError("a list of records, or an object with the list samples, was expected", where=path)
    return [(f"{path}, record {index}", record) for index, record in enumerate(records)]


def _hub(data: DataSpec, split: str, offline: bool) -> _Table:
    try:
        import datasets
    except ImportError:
        raise EvalkitError(
            "hub datasets need the library datasets",
            where=f"data.hub: {data.hub}",
            fix="pip install 'evalkit[hub]', or save the data as JSONL and use data.file",
        ) from None
    where = f"{data.hub}{f' ({data.subset})' if data.subset else ''}, split {split}"
    # Without a network the library would try again and again.
    why = "offline=true fetches nothing" if offline else hub_unreachable()
    undo = set_offline(why is not None)
    try:
        loaded = datasets.load_dataset(data.hub, data.subset, split=split, revision=data.revision)
    # The library raises whatever its many readers raise.
    except Exception as error:
        line = first_line(error)
        kind = FetchError if why is None else UnreachableError
        raise kind(
            f"{why + ', and ' if why else ''}the hub dataset could not be loaded: {line}",
            where=where,
            fix="check data.hub, data.subset and data.split, or run prepare on a machine with a network",
        ) from None
    finally:
        undo()
    records = [(f"{where}, row {index}", record) for index, record in enumerate(loaded)]
    for place, record in records:
        refuse_half_characters(record, place)
    digest = text_sha256("\n".join(canonical_json(record) for _, record in records))
    return _Table(where, records, digest)
