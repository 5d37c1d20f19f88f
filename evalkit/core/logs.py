"""run.log: messages of a run with their times; warnings also on standard error."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from evalkit.core.errors import EvalkitError, write_error
from evalkit.core.secrets import hide, printable

# Seconds to wait for the last lines of other programs.
_LONGEST_WAIT = 5.0


class _SafeFormatter(logging.Formatter):
    """Lines without keys and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(hide(super().format(record)))


class _RunLog(logging.FileHandler):
    """A log file that never stops a run: the first failed write is reported, later ones are ignored."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is logging's)
        """Called by logging while an exception is handled."""
        if not self._failed:
            self._failed = True
            print(f"WARNING: {self.baseFilename}: {sys.exc_info()[1]}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes the file; what a full disk did not take is gone."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[logging.Logger]:
    """Appends evalkit's log to `path` while the block runs.

    Raises:
        EvalkitError: the file cannot be written.
    """
    logger = logging.getLogger("evalkit")
    try:
        file = _RunLog(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise write_error(path, error) from error
    file.setFormatter(_SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(_SafeFormatter("%(levelname)s: %(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in (file, terminal):
        logger.addHandler(handler)
    try:
        yield logger
    except BaseException as error:
        # Only an unexpected error needs its traceback.
        known = not isinstance(error, Exception) or isinstance(error, EvalkitError)
        logger.info("stopped: %s: %s", type(error).__name__, error, exc_info=None if known else error)
        raise
    finally:
        logger.setLevel(level)
        for handler in (file, terminal):
            logger.removeHandler(handler)
            handler.close()


@contextmanager
def output_to(logger: logging.Logger) -> Iterator[Callable[[], None]]:
    """Turns standard output and error into lines of the run's log while the block runs.

    This covers libraries; what takes a stream in the block and keeps it, as their logging does, and
    child processes that start in the block write to the log after it too. Yields a function that waits
    until all that was written is there. Without a run's log nothing is changed.
    """
    if not any(isinstance(handler, _RunLog) for handler in logging.getLogger("evalkit").handlers):
        yield lambda: None
        return
    reading, writing = os.pipe()
    last, seen = f"evalkit {os.urandom(8).hex()}", threading.Event()

    def read() -> None:
        # Progress bars end their lines with a carriage return: universal newlines take it for an end too.
        with os.fdopen(reading, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                if line.rstrip() == last:
                    seen.set()
                elif line.strip():
                    logger.info("%s", line.rstrip())

    def wait() -> None:
        seen.clear()
        print(f"\n{last}", file=stream)
        seen.wait(_LONGEST_WAIT)

    threading.Thread(target=read, name="evalkit-output", daemon=True).start()
    stream = os.fdopen(writing, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    terminal = {number: os.dup(number) for number in (1, 2)}
    _flush()
    try:
        for number in terminal:
            os.dup2(writing, number)
        with redirect_stdout(stream), redirect_stderr(stream):
            yield wait
    finally:
        _flush()
        for number, kept in terminal.items():
            os.dup2(kept, number)
            os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
