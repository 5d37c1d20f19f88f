"""evalkit: llm-jp-eval v1.3.1 and Japanese MT-Bench, exact and resumable."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
# Where the public names are, found on first use: to import the version costs nothing. Their types
# are in __init__.pyi.
_PUBLIC = {"split_answer": "evalkit.tasks.answers"}
__all__ = ["__version__", "split_answer"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
