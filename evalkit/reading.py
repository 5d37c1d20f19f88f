"""Reading files a person wrote: YAML, with the place of what is wrong."""

import re
from pathlib import Path
from typing import Any

import yaml

from evalkit.errors import InputError

# The same language, parsed in C where the library was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, loaded safely.

    Raises:
        InputError: no such file, or not YAML (with the line).
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", where=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: {error.reason} at byte {error.start}", where=path) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"not YAML: {getattr(error, 'problem', error)}", where=f"{path}{line}") from None


def literal(value: Any) -> Any:
    """The value (text, list or mapping) in which `${` is text to OmegaConf, not an interpolation."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)
    if isinstance(value, list):
        return [literal(item) for item in value]
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    return value
