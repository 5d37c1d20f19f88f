"""The command line of a multirun -> one command line for each of its jobs.

The rule: values are separated by commas outside quotes and brackets, so `limit=10,20` are two jobs
and `suite.tasks=[jamp,janli]` is one. Options that take a text know nothing else, and a text with
commas of its own is quoted whole: "model.path='/a,b',/c". All other options have Hydra's sweeps
too: `limit=range(10,40,10)`, `model=glob(1.8b*)`.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalkit.cli.options import CommandLine, check_key, group_members
from evalkit.errors import InputError

QUOTES = "'\""
BRACKETS = {"(": ")", "[": "]", "{": "}"}


def expand(line: CommandLine) -> list[CommandLine]:
    """The command line of every job; the values of the last swept option change fastest.

    Raises:
        InputError: an unknown option, an empty value, a quote or bracket that is not closed.
    """
    choices = [[f"{word.partition('=')[0]}={value}" for value in values_of(word)] for word in line.overrides]
    return [
        dataclasses.replace(line, overrides=words, multirun=False, launcher=())
        for words in itertools.product(*choices)
    ]


def values_of(word: str) -> list[str]:
    """The values one word of a multirun stands for, each written as on a command line of its own."""
    key, _, value = word.partition("=")
    kind = check_key(key)
    if kind != "text":
        return _hydra_values(word, key, group=kind == "group")
    if "," in value and Path(value).expanduser().exists():
        raise InputError(
            "is this one path with a comma in it, or several?",
            where=word,
            fix=f"""one: "{key}='{value}'"   several: quote each""",
        )
    return list(_split(value, word)) if value else [value]


def _hydra_values(word: str, key: str, *, group: bool) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        text = str(error).splitlines()[0]
        raise InputError(f"not a list of values: {text}", where=word) from None
    if not override.is_sweep_override():
        return [word.partition("=")[2]]
    given: Any = override.value()
    if isinstance(given, Glob):
        found = given.filter(group_members(key)) if group else []
        if not found:
            raise InputError("glob() finds nothing", where=word, fix=f"python -m evalkit list {key}s")
        return list(found)
    if not override.is_discrete_sweep():
        raise InputError("interval() names no values", where=word, fix=f"{key}=range(0,1,0.1)")
    return [str(value) for value in override.sweep_string_iterator()]


def _split(text: str, word: str) -> Iterator[str]:
    """The parts of `text` between commas outside quotes and brackets, without their quotes."""
    rest = text
    while True:
        value, rest = _first(rest.lstrip(), word)
        yield value
        if not rest:
            return
        rest = rest[1:]


def _first(text: str, word: str) -> tuple[str, str]:
    """The first value of `text`, and what follows it: nothing, or a comma and more."""
    if text[:1] and text[0] in QUOTES:
        end = text.find(text[0], 1)
        rest = text[end + 1 :].lstrip()
        if end < 0 or (rest and not rest.startswith(",")):
            raise InputError("a quoted value does not end at a comma", where=word, fix="'A','B'")
        return text[1:end], rest
    open_brackets: list[str] = []
    for index, character in enumerate(text):
        if character in BRACKETS:
            open_brackets.append(BRACKETS[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
        elif character == "," and not open_brackets:
            return _not_empty(text[:index], word), text[index:]
    if open_brackets and "," in text:
        raise InputError(
            f"a bracket is not closed ({open_brackets[-1]} is missing)",
            where=word,
            fix="put a text with brackets and commas in quotes: 'A','B'",
        )
    return _not_empty(text, word), ""


def _not_empty(value: str, word: str) -> str:
    if not value.strip():
        raise InputError("there is an empty value between the commas", where=word)
    return value.strip()
