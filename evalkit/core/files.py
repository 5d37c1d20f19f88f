"""Reading files that people or other programs wrote: bytes, text, JSON, JSON Lines, CSV and YAML.

Every mistake is one `InputError` that names the file, the line and the field. Text is UTF-8, with or
without a byte order mark. In JSON, a pair of surrogate escapes becomes one character; a lone surrogate (half
a character) is refused, because it can be neither encoded nor sent to a model.
"""

import csv
import io
import json
import re
import stat
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from functools import cache
from hashlib import file_digest
from pathlib import Path
from typing import Any, TypeVar

import yaml

from evalkit.core.errors import InputError, first_line, foreign
from evalkit.core.reasons import Reason
from evalkit.core.text import did_you_mean, everywhere, half_character, may_hold_half_characters, unicode_text

JsonObject = dict[str, Any]
Options = TypeVar("Options")

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# Other encodings of Japanese text; the stricter one first.
_OTHER_ENCODINGS = (("euc_jp", "EUC-JP"), ("cp932", "CP932"))
_PLAIN = re.compile(r"[\w-][\w.-]*")
# With anchors and aliases a few lines of YAML can expand to more values than fit in memory.
_MOST_VALUES = 1_000_000
# The C loader of YAML is recursive: a stack overflow would end the process.
_MOST_LEVELS = 100
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# --- bytes and text ------------------------------------------------------------------------------


def read_bytes(path: Path, what: str = "the file") -> bytes:
    """The content of a file.

    Args:
        path: the file.
        what: its name in the message.

    Raises:
        InputError: nothing there, no permission, or something that is no file (a folder, a pipe).
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        # Reading a pipe without a writer would block forever.
        if kind != stat.S_IFREG:
            raise InputError(f"cannot read {what}: it is {_KINDS.get(kind, 'no file')}", where=path)
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            Reason(f"cannot read {what}: {{error}}", error=error.strerror or error), where=path
        ) from None
    except ValueError as error:
        # A path with a NUL, or one that the locale's encoding cannot spell.
        raise InputError(f"cannot read {what}: {error}", where=repr(str(path))) from None


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read_text(path: Path, what: str = "the file") -> str:
    """The content of a text file, see `read_bytes` and `decode`."""
    return decode(read_bytes(path, what), path)


def decode(data: bytes, where: object) -> str:
    """UTF-8 text, a byte order mark at its head removed.

    Raises:
        InputError: other bytes; says the line, and the encoding where it can be told.
    """
    try:
        return data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        # The two bytes alone do not prove UTF-16, but nothing better is known.
        name = "UTF-16" if data.startswith(_UTF16) else _encoding_of(data)
        line = data.removeprefix(_BOM).count(b"\n", 0, error.start) + 1
        fix = f"if it is {name}: iconv -f {name} -t UTF-8 FILE > NEW" if name else "save it as UTF-8"
        raise InputError(
            f"not UTF-8 text: {error.reason} at byte {error.start}", where=f"{where}, line {line}", fix=fix
        ) from None


def _encoding_of(data: bytes) -> str | None:
    for codec, name in _OTHER_ENCODINGS:
        try:
            data.decode(codec)
        except UnicodeDecodeError:
            continue
        return name
    return None


def refuse_half_characters(value: Any, where: object) -> None:
    """Refuses a JSON value with half a character in one of its texts.

    Raises:
        InputError: names the field.
    """
    for place, text in _texts(value, ""):
        if half := half_character(text):
            raise InputError(
                f"half a character: the surrogate {half} stands alone",
                where=f"{where}{f', field {place}' if place else ''}",
                fix="write the whole character, or take it out: some program cut the text in its middle",
            )


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    # The place is printed, so a key with a lone surrogate is escaped.
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = ascii(key)[1:-1] if isinstance(key, str) and half_character(key) else str(key)
            below = f"{place}.{name}" if place else name
            if isinstance(key, str):
                yield below, key
            yield from _texts(inner, below)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{index}]")


# --- JSON ----------------------------------------------------------------------------------------


def read_json(path: Path, what: str = "the file", *, mend: bool = False) -> Any:
    """The one JSON value of a file.

    Raises:
        InputError: see `read_bytes`, `decode` and `parse_json`.
    """
    return parse_json(read_text(path, what), path, mend=mend)


def read_json_object(path: Path, what: str = "the file") -> JsonObject:
    """`read_json` of a file that must hold an object."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise InputError("a JSON object was expected", where=path)
    return value


def parse_json(text: str, where: object, *, line: bool = True, mend: bool = False) -> Any:
    """One JSON value.

    Args:
        text: JSON.
        where: the file, or the file and the line.
        line: whether the message adds the line; False where `where` has it.
        mend: a model or a service wrote it: half a character becomes U+FFFD instead of an error.

    Raises:
        InputError: not JSON, a key twice in one object, nested too deeply, or half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if mend:
            return everywhere(value, unicode_text)
        if may_hold_half_characters(text):
            refuse_half_characters(value, where)
        return value
    except InputError:
        raise
    except json.JSONDecodeError as error:
        place = f", line {error.lineno}" if line else ""
        raise InputError(
            Reason("not JSON: {error}", error=error.msg), where=f"{where}{place}, column {error.colno}"
        ) from None
    except RecursionError:
        raise InputError("not readable JSON: it is nested too deeply", where=where) from None
    except ValueError as error:
        # A key twice, or a number with thousands of digits.
        raise InputError(f"not readable JSON: {error}", where=where) from None


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return found


def read_rows(path: Path, *, mend: bool = False) -> Iterator[tuple[str, JsonObject]]:
    """The objects of a JSON Lines file, each with its place (`file, line n`); blank lines are skipped.

    Args:
        path: the file.
        mend: a model or a service wrote it, see `parse_json`.

    Raises:
        InputError: no such file, not UTF-8, or a line that is not a JSON object.
    """
    yield from parse_rows(read_bytes(path), str(path), mend=mend)


def parse_rows(data: bytes, name: str, *, mend: bool = False) -> Iterator[tuple[str, JsonObject]]:
    """`read_rows` of bytes already in memory."""
    for place, row in parse_lines(decode(data, name), name, mend=mend):
        if not isinstance(row, dict):
            raise InputError("a JSON object was expected", where=place)
        yield place, row


def parse_lines(text: str, name: object, *, mend: bool = False) -> Iterator[tuple[str, Any]]:
    """The JSON value of every line that is not blank, with its place (`file, line n`)."""
    # Split on newlines only: answers may hold U+2028 and other characters `splitlines` cuts at.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{name}, line {number}"
            yield place, parse_json(line, place, line=False, mend=mend)


# --- fields --------------------------------------------------------------------------------------


def text_field(row: JsonObject, key: str, place: str) -> str:
    """A string field of a row."""
    if not isinstance(row, dict) or not isinstance(value := row.get(key), str):
        raise InputError("a string was expected", where=f"{place}, field {key}")
    return value


def int_field(row: JsonObject, key: str, place: str) -> int:
    """A whole-number field of a row; older files write ids as strings."""
    value = row.get(key)
    # No id has more digits, and Python refuses to convert thousands of them.
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError("a whole number was expected", where=f"{place}, field {key}")
    return value


def texts_field(row: JsonObject, key: str, place: str) -> tuple[str, ...]:
    """A field that holds a list of strings, not empty."""
    value = row.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise InputError("a list of strings was expected", where=f"{place}, field {key}")
    return tuple(value)


def check_types(made: Any) -> None:
    """Checks a dataclass made from JSON, and those inside it, against their annotations.

    Raises:
        TypeError: names the field.
    """
    for name, hint in typing.get_type_hints(type(made)).items():
        if not fits(getattr(made, name), hint):
            raise TypeError(f"the field {name} holds something else than {typing.cast(Any, hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value (or a dataclass made of one) is of the annotated type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return any(value == part for part in parts)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(key, parts[0]) and fits(inner, parts[1]) for key, inner in value.items()
        )
    if origin in (list, tuple):
        return isinstance(value, origin) and all(fits(inner, parts[0]) for inner in value)
    if is_dataclass(hint) and type(value) is hint:
        check_types(value)
        return True
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


# --- CSV -----------------------------------------------------------------------------------------


def parse_table(
    text: str, where: object, delimiter: str = ",", columns: Sequence[str] = (), *, exact: bool = True
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV or TSV text by the columns of its header, each with its place (`file, line n`).

    Args:
        text: the table.
        where: the file.
        delimiter: the separator of cells.
        columns: what the header must have.
        exact: whether every row must have as many cells as the header.

    Raises:
        InputError: a column is missing or there twice, a row has another number of cells than the
            header, or the quoting is broken.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = list(reader.fieldnames or ())
        if twice := [name for name in header if header.count(name) > 1]:
            raise InputError(f"the column {twice[0]!r} is there twice", where=f"{where}, line 1")
        if missing := [name for name in columns if name not in header]:
            raise InputError(f"columns are missing: {', '.join(missing)}", where=where)
        for row in reader:
            place = f"{where}, line {reader.line_num}"
            if exact and (None in row or None in row.values()):
                raise InputError(f"the header has {len(header)} cells", where=place)
            yield place, row
    except csv.Error as error:
        raise InputError(f"not CSV: {error}", where=f"{where}, line {reader.line_num}") from None


# --- YAML ----------------------------------------------------------------------------------------


# The same language, parsed in C where the library was built with it.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values only, and no key twice in one mapping."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called for every mapping before its keys are read; again where `<<` merges it into another."""
        if id(node) not in self._checked:
            self._checked.add(id(node))
            seen = set()
            for key, _ in node.value:
                name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
                if name in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                if name is not None and not name[0].endswith(":merge"):
                    seen.add(name)
        super().flatten_mapping(node)


class _AsWritten(_Loader):
    """Numbers, true and false, and dates as the text that the file has."""


for _tag in ("bool", "int", "float", "timestamp"):
    _AsWritten.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_scalar)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, loaded safely.

    Raises:
        InputError: no such file, not YAML (with the line), a key twice in one mapping, values that
            contain themselves or expand without measure by aliases, or half a character.
    """
    text = read_text(path)
    try:
        _check_depth(text, path)
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise InputError(f"not YAML: {problem}", where=f"{path}{line}") from None
    except InputError:
        raise
    # For invalid dates and numbers the library raises exceptions of many classes.
    except Exception as error:
        raise InputError(f"not readable YAML: {error}", where=path) from None
    _check_size(value, path)
    refuse_half_characters(value, path)
    return value


def _check_depth(text: str, path: Path) -> None:
    level = 0
    for event in yaml.parse(text, Loader=_Loader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > _MOST_LEVELS:
            line = f", line {event.start_mark.line + 1}" if event.start_mark else ""
            raise InputError("not readable YAML: it is nested too deeply", where=f"{path}{line}")


def _check_size(value: Any, path: Path) -> None:
    counted = 0
    around: set[int] = set()

    def count(inner: Any) -> None:
        nonlocal counted
        counted += 1
        if counted > _MOST_VALUES or id(inner) in around:
            raise InputError("not readable YAML: an alias (*name) repeats without end", where=path)
        if isinstance(inner, dict | list):
            around.add(id(inner))
            for part in inner.values() if isinstance(inner, dict) else inner:
                count(part)
            around.discard(id(inner))

    count(value)


def read_options(
    path: Path, kind: type[Options], what: str, *, mend: Callable[[dict[Any, Any]], dict[Any, Any]] = dict
) -> Options:
    """A YAML file as an instance of a dataclass.

    Args:
        path: the file.
        kind: the dataclass its keys and values must fit.
        what: the file in words, for the message: `task file`.
        mend: makes today's keys and values of those of an earlier version.

    Raises:
        InputError: see `read_yaml`; an unknown key (with the near ones), a value of another type, or a
            word without quotes for a text that YAML takes for something else.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{what} is not valid: keys and values were expected", where=path)
    with foreign(f"{what} is not valid", where=path):
        _check_texts(content, kind, what, path)
        try:
            made = OmegaConf.to_object(
                OmegaConf.merge(_schema(typing.cast(Any, kind)), as_text(mend(content)))
            )
        except OmegaConfBaseException as error:
            key = error.full_key or "?"
            problem = first_line(error)
            if isinstance(error, ConfigKeyError):
                problem += did_you_mean(key.rpartition(".")[2], sorted(_names(kind)))
            raise InputError(f"{what} is not valid: {problem}", where=f"{path}, field {key}") from None
    assert isinstance(made, kind)
    return made


def _check_texts(content: dict[Any, Any], kind: Any, what: str, path: Path) -> None:
    """Refuses a text that YAML reads as another one: yes as true, 012 as 10, 2024-01-01 as a date."""
    for keys, value in _not_texts(content, kind, ()):
        written = yaml.load(read_text(path), Loader=_AsWritten)
        for key in keys:
            written = written[key]
        if isinstance(value, bool | date) or str(value) != written:
            shown = str(value).lower() if isinstance(value, bool) else value
            raise InputError(
                f"{what} is not valid: a text was expected, and YAML reads {written} as {shown}",
                where=f"{path}, field {'.'.join(map(str, keys))}",
                fix=f'write it in quotes: "{written}"',
            )


def _not_texts(value: Any, hint: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The numbers, dates, true and false that stand where texts are wanted, each with the keys to it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is str and isinstance(value, bool | int | float | date):
        yield keys, value
    elif origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from _not_texts(value, part, keys)
    elif origin is list and isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _not_texts(inner, parts[0], (*keys, index))
    elif isinstance(value, dict):
        hints = typing.get_type_hints(hint) if is_dataclass(hint) else {}
        for key, inner in value.items():
            yield from _not_texts(inner, parts[1] if origin is dict else hints.get(key, Any), (*keys, key))


@cache
def _schema(kind: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.structured(kind)


def _names(kind: Any) -> set[str]:
    """The keys of a dataclass and of those inside it."""
    names: set[str] = set()
    for field, hint in zip(fields(kind), typing.get_type_hints(kind).values(), strict=False):
        names.add(field.name)
        for part in (hint, *typing.get_args(hint)):
            if is_dataclass(part):
                names |= _names(part)
    return names


def as_text(value: Any) -> Any:
    """A value for OmegaConf in which every `${` is text.

    Otherwise `${oc.env:NAME}` in a file somebody else wrote would read this machine's environment.
    """
    if isinstance(value, str):
        # A backslash before `${` would escape the escape.
        return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)
    if isinstance(value, dict):
        return {key: as_text(inner) for key, inner in value.items()}
    return [as_text(inner) for inner in value] if isinstance(value, list) else value


def plain_name(name: str) -> str:
    """A dataset's name from somebody else's file, once it is sure to name a file inside its folder.

    Raises:
        InputError: separators, or a dot at the beginning.
    """
    if not _PLAIN.fullmatch(name):
        raise InputError(f"{name!r} is no name of a dataset: it could lead out of the folder")
    return name
