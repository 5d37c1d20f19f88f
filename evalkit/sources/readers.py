"""Upstream files as text, JSON, TSV, CSV and XML; every error names the file, the place and the URL."""

import codecs
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from evalkit.core import files
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.types import Row
from evalkit.sources.pins import SourceFile

# The files of one source by role, in the order of the table.
SourceFiles = Mapping[str, Sequence[SourceFile]]


class SourceError(EvalkitError):
    """An upstream file is not what its converter expects."""

    def __init__(self, what: str, file: SourceFile, place: str = "") -> None:
        super().__init__(
            what,
            where=f"{file.path}{', ' + place if place else ''}\n  from:  {file.url}",
            fix="delete the file and fetch it again; if it stays so, upstream has changed",
        )


def decode(data: bytes, file: SourceFile, place: str = "") -> str:
    """UTF-8 text, a byte order mark at its head removed.

    Raises:
        SourceError: other bytes than UTF-8.
    """
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"not UTF-8 text: {error.reason} at byte {error.start}", file, place) from None


def text_of(file: SourceFile) -> str:
    """The whole file as text."""
    return decode(file.path.read_bytes(), file)


def json_of(file: SourceFile) -> Any:
    """The whole file as one JSON value."""
    return parse_json(text_of(file), file)


def parse_json(text: str, file: SourceFile, place: str = "") -> Any:
    """One JSON value.

    Raises:
        SourceError: not JSON, a key twice in one object, nested too deeply, or a lone surrogate.
    """
    try:
        return files.parse_json(text, place, line=not place)
    except InputError as error:
        raise SourceError(error.what, file, str(error.where or "").removeprefix(", ")) from None


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object in an upstream file, and its place there for error messages."""

    value: Any
    file: SourceFile
    place: str = ""

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """The value of a field.

        Raises:
            SourceError: not a JSON object, no such field, or the value is of another kind.
        """
        if not isinstance(self.value, dict):
            raise SourceError("a JSON object was expected", self.file, self.place)
        if key not in self.value:
            raise SourceError(f"the field {key!r} is missing", self.file, self.place)
        found = self.value[key]
        if not isinstance(found, kind) or isinstance(found, bool):
            raise SourceError(f"the field {key!r} holds a {type(found).__name__}", self.file, self.place)
        return found

    def text(self, key: str) -> str:
        """The text of a field."""
        return str(self.get(key, str))

    def items(self, key: str) -> "Iterator[Record]":
        """The items of a field that holds a list."""
        path = f"{self.place}.{key}" if self.place else key
        for index, item in enumerate(self.get(key, list)):
            yield Record(item, self.file, f"{path}[{index}]")


def json_lines(file: SourceFile) -> Iterator[Record]:
    """Every line of a JSON Lines file."""
    for number, line in enumerate(text_of(file).split("\n"), start=1):
        if line.strip():
            yield Record(parse_json(line, file, f"line {number}"), file, f"line {number}")


def json_list(file: SourceFile) -> Iterator[Record]:
    """Every item of a file that is one JSON array."""
    value = json_of(file)
    if not isinstance(value, list):
        raise SourceError("a JSON array was expected", file)
    for index, item in enumerate(value):
        yield Record(item, file, f"item {index}")


def tab_separated(file: SourceFile, columns: dict[int, str]) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) for every line after the header; tabs separate, quotes mean nothing.

    Args:
        file: the table.
        columns: position -> title of the columns that will be read; they must be in the header.

    Raises:
        SourceError: another header, or a line with another number of cells.
    """
    lines = text_of(file).split("\n")
    if lines[-1] == "":
        lines.pop()
    if lines and lines[0].endswith("\r"):
        raise SourceError("the line ends were changed (CR LF where upstream has LF)", file, "line 1")
    header = lines[0].split("\t") if lines else []
    for position, title in columns.items():
        if position >= len(header) or header[position].strip() != title:
            raise SourceError(f"column {position + 1} should be {title!r}", file, "line 1")
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise SourceError(
                f"{len(cells)} cells where the header has {len(header)}", file, f"line {number}"
            )
        yield f"line {number}", cells


def comma_separated(text: str, file: SourceFile, place: str, width: int) -> list[list[str]]:
    """The rows of a CSV text without a header; line ends inside quoted cells are kept.

    Raises:
        SourceError: a row that has not `width` cells, or broken quoting.
    """
    rows = []
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), start=1):
            if len(cells) != width:
                raise SourceError(
                    f"{len(cells)} cells where {width} were expected", file, f"{place}row {number}"
                )
            rows.append(cells)
    except csv.Error as error:
        raise SourceError(f"not CSV: {error}", file, f"{place}row {len(rows) + 1}") from None
    return rows


def xml_of(data: bytes | str, file: SourceFile, place: str = "") -> ElementTree.Element:
    """The root element of an XML document.

    Raises:
        SourceError: not well-formed.
    """
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError) as error:
        raise SourceError(f"not XML: {error}", file, place) from None


def unique(ids: Iterable[tuple[str, Any]], file: SourceFile) -> None:
    """Checks that no two records of a file have the same id.

    Args:
        ids: (place, id) of every record.
        file: the file the records are from.

    Raises:
        SourceError: names the second place.
    """
    seen: dict[Any, str] = {}
    for place, identifier in ids:
        if identifier in seen:
            raise SourceError(f"the id {identifier!r} was already used at {seen[identifier]}", file, place)
        seen[identifier] = place


def with_unique_ids(records: Iterable[Record], key: str, kind: type | tuple[type, ...]) -> list[Record]:
    """The records of one file as a list, after checking that the field `key` is of that kind and unique.

    Raises:
        SourceError: as `Record.get` and `unique`.
    """
    listed = list(records)
    if listed:
        unique(((record.place, record.get(key, kind)) for record in listed), listed[0].file)
    return listed


def per_file(files: SourceFiles, rows_of: Callable[[SourceFile], list[Row]]) -> dict[str, list[list[Row]]]:
    """role -> the rows of each of its files."""
    return {role: [rows_of(file) for file in found] for role, found in files.items()}
