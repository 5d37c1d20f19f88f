"""The command line of a multirun -> one command line for each of its jobs.

Values are separated by commas outside quotes and brackets: `limit=10,20` are two jobs,
`suite.tasks=[jamp,janli]` is one. A text with commas of its own is quoted whole:
"model.path='/a,b',/c". Options that are not texts have Hydra's sweeps too: `limit=range(10,40,10)`,
`model=glob(1.8b*)`.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from evalkit.core.errors import InputError, first_line
from evalkit.core.options import CommandLine, check_key, group_members

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
    if kind == "count":
        return _texts(value, word)
    # A hub name, a folder or a list of datasets, which stands for a member of a group, is a text too.
    if kind != "text" and (kind != "group" or "(" in value):
        return _hydra_values(word, key, group=kind == "group")
    if "," in value and Path(value).expanduser().exists():
        raise InputError(
            "is this one path with a comma in it, or several?",
            where=word,
            fix=f"""one: "{key}='{value}'"   several: quote each""",
        )
    return _texts(value, word)


def _hydra_values(word: str, key: str, *, group: bool) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise InputError(f"not a list of values: {first_line(error)}", where=word) from None
    if not override.is_sweep_override():
        return [word.partition("=")[2]]
    given: Any = override.value()
    if isinstance(given, Glob):
        found = given.filter(group_members(key)) if group else []
        if not found:
            raise InputError("glob() finds nothing", where=word, fix=f"evalkit list {key}s")
        return list(found)
    if not override.is_discrete_sweep():
        raise InputError("interval() names no values", where=word, fix=f"{key}=range(0,1,0.1)")
    return [str(value) for value in override.sweep_string_iterator()]


def _texts(text: str, word: str) -> list[str]:
    """The parts of `text` between commas outside quotes and brackets, without their quotes."""
    parts, start, quote = [], 0, ""
    open_brackets: list[str] = []
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES and not text[start:at].strip():
            quote = character
        elif character in BRACKETS:
            open_brackets.append(BRACKETS[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
        elif character == "," and not open_brackets:
            parts.append(text[start:at].strip())
            start = at + 1
    if open_brackets and "," in text[start:]:
        raise InputError(
            f"a bracket is not closed ({open_brackets[-1]} is missing)",
            where=word,
            fix="put a text with brackets and commas in quotes: 'A','B'",
        )
    parts.append(text[start:].strip())
    if len(parts) > 1 and "" in parts:
        raise InputError("there is an empty value between the commas", where=word)
    return [_without_quotes(part, word) for part in parts]


def _without_quotes(part: str, word: str) -> str:
    if not part or part[0] not in QUOTES:
        return part
    if part.find(part[0], 1) != len(part) - 1:
        raise InputError("a quoted value does not end at a comma", where=word, fix="'A','B'")
    return part[1:-1]
