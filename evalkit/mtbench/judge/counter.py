"""How far the judging is: a line now and then on standard error, rewritten in place on a terminal."""

import sys
import time
from types import TracebackType
from typing import Self

from evalkit.core.words import t

QUIET_SECONDS = 30.0
TERMINAL_SECONDS = 0.2


class Counter:
    """Counts what is done out of `total` and shows it; use as a context manager."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            self._show()
            print(file=sys.stderr)

    def count(self) -> None:
        """Takes note of one more."""
        self._done += 1
        pause = TERMINAL_SECONDS if self._terminal else QUIET_SECONDS
        if time.monotonic() - self._shown > pause:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        rate = self._done / max(self._shown - self._start, 1e-9)
        seconds = f"{(self._total - self._done) / rate:.0f}" if rate else ""
        left = t(", {seconds} s left", seconds=seconds) if rate else ""
        line = f"{t(self._what)}: {self._done}/{self._total}, {rate:.1f}/s{left}"
        print(
            f"\r{line:<60}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
