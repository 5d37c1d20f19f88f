"""evalkit: llm-jp-eval v1.3.1 and Japanese MT-Bench, exact and resumable."""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"
# Where the public names are, found on first use: to import the version costs nothing. Their types
# are in __init__.pyi.
_PUBLIC = {
    "evaluate": "evalkit.cli.python",
    "load": "evalkit.cli.python",
    "split_answer": "evalkit.tasks.answers",
}
__all__ = ["__version__", "evaluate", "load", "split_answer"]

# OpenMP reads these once, when torch loads it, and child processes inherit them. Threads that wait for the
# others spin for microseconds (GNU) or a millisecond (LLVM, Intel) and then sleep: by default they spin for
# long, and where another process uses a core they take the time of the thread that they wait for.
_WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
if not {"OMP_WAIT_POLICY", *_WAITING} & os.environ.keys():
    os.environ.update(_WAITING)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
