"""Text that is Unicode: half a character (a lone surrogate) cannot be encoded, printed or sent.

What a person wrote with one is refused where it is read (`evalkit.core.files`). What a model or a server
wrote is mended once, where it comes in, by `unicode_text`.
"""

import difflib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import Any

# Made once: every line of a log is checked by it.
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_HALF = re.compile("[\ud800-\udfff]")
_HALF_IN_JSON = re.compile("[\ud800-\udfff]|\\\\u[dD][89a-fA-F]")


def unicode_text(text: str) -> str:
    """`text` with every lone surrogate replaced by U+FFFD; two that make a character become it."""
    if not _HALF.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def half_character(text: str) -> str | None:
    """The first lone surrogate of a text, as `U+D83D`; None where there is none."""
    found = _HALF.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def may_hold_half_characters(json_text: str) -> bool:
    """Whether JSON text holds a surrogate, or an escape of one (which may be one of a proper pair)."""
    # The pattern is slow, and almost no text needs it.
    try:
        json_text.encode()
    except UnicodeEncodeError:
        return True
    return "\\u" in json_text and _HALF_IN_JSON.search(json_text) is not None


def everywhere(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every text in it changed, keys included where they are texts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            change(key) if isinstance(key, str) else key: everywhere(inner, change)
            for key, inner in value.items()
        }
    return [everywhere(inner, change) for inner in value] if isinstance(value, list | tuple) else value


def did_you_mean(name: str, known: Iterable[str], shown: Mapping[str, str] = MappingProxyType({})) -> str:
    """`; did you mean 'x' or 'y'?` for the names closest to `name`, or an empty string.

    Capitals do not matter. `shown` gives what is said in a name's place.
    """
    names: dict[str, str] = {}
    for one in known:
        names.setdefault(one.casefold(), one)
    found = difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.5)
    near = dict.fromkeys(shown.get(names[one], names[one]) for one in found)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, and how many there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} ... ({len(names)} in all)"


def command(*words: str) -> str:
    """`evalkit` with these words, those quoted that bash or zsh would take apart."""
    return " ".join(["evalkit", *map(_quoted, words)])


def _quoted(word: str) -> str:
    # shlex quotes everything beyond ASCII too; a shell takes Japanese as it is.
    return shlex.quote(word) if re.search(r"[^\w@%+=:,./-]", word) else word


def folder_name(name: str) -> str:
    """A model or suite name as a folder name: no separators, nothing hidden."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._") or "model"


def text_sha256(text: str) -> str:
    """The sha256 of a text's UTF-8 bytes, as hexadecimal digits."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal texts."""
    return _CANONICAL.encode(value)


# step-1000, iter_0005000, checkpoint-500, global_step1000, ckpt-10k
_STEP = re.compile(
    r"(?:^|[-_./ ])(?:global_?)?(?:step|iter|checkpoint|ckpt)s?[-_]?0*(\d+)(k?)(?![a-z\d])", re.IGNORECASE
)


def step_of(name: str) -> tuple[str, int] | None:
    """The series and the step a model's name gives, None when it gives no step."""
    found = _STEP.search(name)
    if found is None:
        return None
    series = (name[: found.start()] + name[found.end() :]).strip("-_./ ")
    return series, int(found[1]) * (1000 if found[2] else 1)
