"""How many rows fit into memory, and smaller limits after an out-of-memory error.

Planning reads the limits here on machines without a GPU, so importing this module does not import
torch.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.core.errors import EvalkitError, first_line

if TYPE_CHECKING:
    import torch

    from evalkit.engines.local.passes import LayerShape


log = logging.getLogger(__name__)

# More rows, or more tokens in one pass, do not make the hardware faster.
MOST_ROWS = {"cpu": 64, "cuda": 1024}
MOST_TOKENS = {"cpu": 2048, "cuda": 8192}
# Shares of the free memory: of the rows' cache, and of all prefixes. Activations need the rest.
CACHE_SHARE = {"cpu": 0.4, "cuda": 0.7}
PREFIX_SHARE = 0.2
# Slots hold a multiple of this many tokens.
SLOT_STEP = 16


class Limits:
    """What one pass and the cache may take; made smaller when memory runs out.

    Attributes:
        rows: most rows at a time.
        tokens: most tokens of one pass (one row, or one prefix with one row, may exceed it).
        cache_bytes: most bytes of the rows' cache, all devices together.
        prefix_bytes: most bytes of prefixes (a single row may need more).
        token_bytes: bytes one token takes in it.
    """

    def __init__(self, layers: Sequence["LayerShape"], rows: int | None) -> None:
        import torch

        kind = layers[0].device.type
        devices = sorted({str(layer.device) for layer in layers})
        free = sum(free_bytes(torch.device(name)) for name in devices)
        self.rows = rows or MOST_ROWS.get(kind, MOST_ROWS["cpu"])
        self.tokens = MOST_TOKENS.get(kind, MOST_TOKENS["cpu"])
        self.cache_bytes = int(free * CACHE_SHARE.get(kind, CACHE_SHARE["cpu"]))
        self.prefix_bytes = int(free * PREFIX_SHARE)
        self.token_bytes = sum(layer.token_bytes for layer in layers)
        log.info(
            "memory: %.1f GB free on %s, %d bytes per cached token, at most %d rows and %d tokens a pass",
            free / 1e9,
            ", ".join(devices),
            self.token_bytes,
            self.rows,
            self.tokens,
        )

    def rows_for(self, capacity: int) -> int:
        """How many rows of `capacity` tokens may run at a time; at least one is tried."""
        return max(1, min(self.rows, self.cache_bytes // (capacity * self.token_bytes)))

    def fewer_rows(self, rows: int) -> int:
        """Halves the number of rows after `rows` were too many."""
        self.rows = max(1, rows // 2)
        log.warning("out of memory with %d rows: going on with %d", rows, self.rows)
        return self.rows

    def fewer_tokens(self, tokens: int) -> None:
        """Halves the tokens of a pass after `tokens` were too many."""
        self.tokens = max(1, tokens // 2)
        log.warning("out of memory in a pass of %d tokens: going on with %d", tokens, self.tokens)


# Engines that share the main memory of this machine, each in its own process.
_engines_here = 1


def share_main_memory(engines: int) -> None:
    """Sets how many engines, this one included, run on this machine."""
    global _engines_here
    _engines_here = max(1, engines)


def free_bytes(device: "torch.device") -> int:
    """Free bytes of a device; on the CPU this engine's share, within the control group's limit."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_machine_bytes(), _group_bytes()) // _engines_here


def _machine_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _group_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int:
    try:
        limit = int((folder / "memory.max").read_text())
        return max(0, limit - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        return 1 << 62


# glibc's names for the size from which on memory is mapped for itself, and of the freed top it keeps.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 28


def keep_freed() -> None:
    """Lets activations reuse the memory of earlier ones, where the C library is glibc.

    Otherwise every large tensor is mapped anew, and the kernel fills its pages with zeros first.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_MMAP_THRESHOLD, _KEPT) or library.mallopt(_MMAP_THRESHOLD, 1 << 25)


def give_back_freed() -> None:
    """Returns memory that `keep_freed` kept to the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def no_room(error: BaseException) -> EvalkitError:
    """The error for a single row that does not fit."""
    return EvalkitError(
        f"out of memory with a single row: {first_line(error)}",
        where="the local engine",
        fix="engine.device_map=auto, dtype=bfloat16 or a larger machine; finished samples are kept",
    )
