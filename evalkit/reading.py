"""Reading files a person wrote: YAML, with the place of what is wrong."""

import re
from pathlib import Path
from typing import Any

import yaml

from evalkit.errors import InputError

_PLAIN = re.compile(r"[\w-][\w.-]*")
# The same language, parsed in C where the library was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def plain_name(name: str) -> str:
    """A dataset's name from somebody else's file, once it is sure to name a file inside its folder.

    Raises:
        InputError: separators, or a dot at the beginning.
    """
    if not _PLAIN.fullmatch(name):
        raise InputError(f"{name!r} is no name of a dataset: it could lead out of the folder")
    return name


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
