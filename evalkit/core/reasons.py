"""Sentences as data: why a result is partial, what differs, what was left out."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

_FIELD = re.compile(r"\{(\w+)\}")


class Reason(str):
    """An English sentence that keeps its template and fields, so that it can be shown in another language.

    As a string it is the English text, in files and messages as anywhere. A field may be a reason
    itself, or several (joined with semicolons). `evalkit.core.words.shown` renders it.
    """

    template: str
    fields: Mapping[str, "str | Sequence[str]"]

    def __new__(cls, template: str, /, **fields: object) -> Self:
        """`template` names its fields in braces; a value that is no reason is kept as its text."""
        kept = {name: _kept(value) for name, value in fields.items()}
        made = super().__new__(cls, filled(template, kept))
        made.template, made.fields = template, kept
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return (self.template,), dict(self.fields)


def filled(template: str, fields: Mapping[str, "str | Sequence[str]"]) -> str:
    """A template with its {fields} filled in; what it does not name is left out."""

    def value(found: re.Match[str]) -> str:
        field = fields.get(found[1], found[0])
        return field if isinstance(field, str) else "; ".join(field)

    return _FIELD.sub(value, template)


def _kept(value: object) -> "str | Sequence[str]":
    if isinstance(value, str):
        return value
    if isinstance(value, tuple | list):
        return tuple(one if isinstance(one, str) else str(one) for one in value)
    return str(value)


def sentences_in(content: Any) -> dict[str, Any]:
    """The data of every reason in a JSON-like content, by its English text."""
    found: dict[str, Any] = {}
    if isinstance(content, Reason):
        found[str(content)] = _as_json(content)
    elif isinstance(content, Mapping):
        for value in content.values():
            found |= sentences_in(value)
    elif isinstance(content, list | tuple):
        for value in content:
            found |= sentences_in(value)
    return found


def with_sentences(content: Any, sentences: object) -> Any:
    """A JSON content in which every text that `sentences` (as of `sentences_in`) knows is a reason again.

    Data that does not give the text it is kept for is left aside.
    """
    if not isinstance(sentences, Mapping):
        return content
    known = {text: reason for text, data in sentences.items() if (reason := _from_json(data)) == text}
    return _replaced(content, known) if known else content


def _replaced(content: Any, known: Mapping[str, Reason]) -> Any:
    if isinstance(content, str):
        return known.get(content, content)
    if isinstance(content, dict):
        return {key: _replaced(value, known) for key, value in content.items()}
    if isinstance(content, list):
        return [_replaced(value, known) for value in content]
    return content


def _as_json(value: str | Sequence[str]) -> Any:
    if isinstance(value, Reason):
        fields = {name: _as_json(field) for name, field in value.fields.items()}
        return {"template": value.template, "fields": fields}
    return str(value) if isinstance(value, str) else [_as_json(one) for one in value]


def _from_json(data: Any) -> Any:
    if isinstance(data, dict) and isinstance(data.get("template"), str):
        fields = data.get("fields")
        if isinstance(fields, dict):
            return Reason(
                data["template"], **{str(name): _from_json(value) for name, value in fields.items()}
            )
    if isinstance(data, list):
        return tuple(map(_from_json, data))
    return data if isinstance(data, str) else ""
