"""Standard output and error that never fail: what cannot be shown is replaced or left out.

A terminal or a queue may be in ASCII or CP932, the reader of a pipe may have gone, the disk behind a
redirection may be full. The work goes on and is kept.
"""

import io
import os
import select
import sys
from typing import Any, TextIO

# A descriptor that is closed when the process begins would be given to the next file that is opened.
_STANDARD = 3


class _NeverFails(io.FileIO):
    """A descriptor that accepts every byte; after the first failed write it drops them."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        while self.failure is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.failure = error
                break
            if written is not None:
                return written
            # Another program has made the terminal non-blocking, and it is full.
            select.select([], [self.fileno()], [])
        return size


def prepare() -> None:
    """Replaces `sys.stdout` and `sys.stderr` for the rest of the process; called once, first of all."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < _STANDARD:
        pass
    os.close(descriptor)
    sys.stdout = stream_of(sys.stdout, 1, "replace")
    sys.stderr = stream_of(sys.stderr, 2, "backslashreplace")


def stream_of(given: TextIO | None, descriptor: int, errors: str) -> TextIO:
    """A stream like `given` on a descriptor that is never closed, whose writing never fails."""
    encoding = getattr(given, "encoding", None) or "utf-8"
    if given is not None:
        given.flush()
    raw = _NeverFails(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors=errors,
        # As Python has it: lines on a terminal and on standard error, blocks elsewhere.
        line_buffering=descriptor == 2 or raw.isatty(),
        write_through=bool(getattr(given, "write_through", False)),
    )


def finish() -> None:
    """Flushes both streams, and warns on standard error where standard output was lost on a full disk.

    A closed pipe (`| head`) is no reason for a warning.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = getattr(raw, "failure", None)
    if failure is not None and not isinstance(failure, BrokenPipeError):
        print(f"WARNING: standard output could not be written: {failure.strerror}", file=sys.stderr)
    sys.stderr.flush()
