"""evalkit: llm-jp-eval v1.3.1 and Japanese MT-Bench, exact and resumable."""

import os

__version__ = "0.1.0"

# OpenMP reads these once, when torch loads it, and child processes inherit them. Threads that wait for the
# others spin for microseconds (GNU) or a millisecond (LLVM, Intel) and then sleep: by default they spin for
# long, and where another process uses a core they take the time of the thread that they wait for.
_WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
if not {"OMP_WAIT_POLICY", *_WAITING} & os.environ.keys():
    os.environ.update(_WAITING)
