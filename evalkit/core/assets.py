"""Paths of the files that belong to evalkit, and of the user's cache folder.

conf/, tasks/ and results/reference/ are at the top of a checkout and inside the package in a wheel.
"""

import os
from pathlib import Path

from evalkit.core.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent

# A checkout (also an editable install) has them at the top; only a wheel has copies in the package.
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "conf").is_dir() else _PACKAGE

CONF = ROOT / "conf"
TASKS = ROOT / "tasks"
SAMPLES = TASKS / "samples"
REFERENCE = ROOT / "results" / "reference"


def cache_dir() -> Path:
    """The folder of fetched and converted files: $EVALKIT_CACHE, else the XDG cache folder.

    Raises:
        InputError: neither is set, and this account has no home folder.
    """
    if chosen := os.environ.get("EVALKIT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "evalkit"
    except RuntimeError:
        raise InputError(
            "this account has no home folder for evalkit's cache", fix="export EVALKIT_CACHE=FOLDER"
        ) from None


def default_data_dir() -> Path:
    """The folder of prepared data when `data_dir=` is not given."""
    return cache_dir() / "data"
