"""Text that is Unicode: half a character (a lone surrogate) cannot be encoded, printed or sent.

What a person wrote with one is refused where it is read (`evalkit.reading`). What a model or a server
wrote is mended once, where it comes in, by `unicode_text`.
"""

import re
from collections.abc import Callable
from typing import Any

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
    return _HALF_IN_JSON.search(json_text) is not None


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
