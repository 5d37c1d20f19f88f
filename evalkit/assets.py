"""The one place that finds the files beside the code, and the user's cache folder.

conf/, tasks/ and results/reference/ lie at the top of a checkout and inside the package in a wheel.
"""

import os
from pathlib import Path

from evalkit.errors import InputError

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent

# In a checkout (or an editable install of one) the top-level folders are the living files; a
# copy inside the package exists in an installed wheel only.
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "conf").is_dir() else _PACKAGE

CONF = ROOT / "conf"
TASKS = ROOT / "tasks"
SAMPLES = TASKS / "samples"
REFERENCE = ROOT / "results" / "reference"


def cache_dir() -> Path:
    """Where fetched and converted files are kept: $EVALKIT_CACHE, else the XDG cache folder.

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
    """Where prepared data lies when `data_dir=` is not given."""
    return cache_dir() / "data"
