"""run.log: messages of a run and its libraries, with their times; evalkit's warnings on the terminal too."""

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from evalkit.core.errors import EvalkitError, write_error
from evalkit.core.progress import say
from evalkit.core.secrets import hide, printable

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Seconds to wait for the last lines of other programs.
_LONGEST_WAIT = 5.0
# Libraries with handlers of their own, which write to the terminal.
_LIBRARIES = ("transformers", "huggingface_hub", "datasets", "accelerate")


def quiet_libraries() -> None:
    """Keeps libraries off the terminal, here and in processes started from here; call it before their import.

    Their progress bars are off: evalkit has its own. Their log lines come into run.log, once there is one.
    What the user has set in the environment stays.
    """
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    logging.captureWarnings(True)


@contextmanager
def _libraries_too() -> Iterator[None]:
    """Has the libraries' lines, and Python's warnings, go to the handlers of the root logger alone."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    captured = logging._warnings_showwarning is not None  # type: ignore[attr-defined]
    for logger in loggers:
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(captured)
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


class _SafeFormatter(logging.Formatter):
    """Lines without keys and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(hide(super().format(record)))


class _Terminal(logging.Handler):
    """Lines on standard error, above the display of progress."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


class _RunLog(logging.FileHandler):
    """A log file that never stops a run: the first failed write is reported, later ones are ignored."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is logging's)
        """Called by logging while an exception is handled."""
        if not self._failed:
            self._failed = True
            say(f"WARNING: {self.baseFilename}: {sys.exc_info()[1]}")

    def close(self) -> None:
        """Closes the file; what a full disk did not take is gone."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[logging.Logger]:
    """Appends evalkit's log, and what libraries log, to `path` while the block runs.

    Raises:
        EvalkitError: the file cannot be written.
    """
    logger, root = logging.getLogger("evalkit"), logging.getLogger()
    try:
        file = _RunLog(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise write_error(path, error) from error
    file.setFormatter(_SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = _Terminal()
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(_SafeFormatter("%(levelname)s: %(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO)
    root.addHandler(file)
    logger.addHandler(terminal)
    try:
        with _libraries_too():
            yield logger
    except BaseException as error:
        # Only an unexpected error needs its traceback.
        known = not isinstance(error, Exception) or isinstance(error, EvalkitError)
        logger.info("stopped: %s: %s", type(error).__name__, error, exc_info=None if known else error)
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(terminal)
        root.removeHandler(file)
        file.close()


@contextmanager
def output_to(logger: logging.Logger) -> Iterator[Callable[[], None]]:
    """Turns standard output and error into lines of the run's log while the block runs.

    This covers libraries; what takes a stream in the block and keeps it, as their logging does, and
    child processes that start in the block write to the log after it too. Yields a function that waits
    until all that was written is there. Without a run's log nothing is changed.
    """
    if not any(isinstance(handler, _RunLog) for handler in logging.getLogger().handlers):
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


@contextmanager
def transformers_to(logger: logging.Logger) -> Iterator[list[str]]:
    """Sends transformers' log lines to this logger alone, without its bar; yields the list of them."""
    from transformers.utils import logging as theirs

    lines: list[str] = []

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(_COLOUR.sub("", record.getMessage()))
            logger.info("%s: %s", record.name, lines[-1])

    own = logging.getLogger("transformers")
    before, level = (own.handlers, own.propagate), theirs.get_verbosity()
    theirs.disable_progress_bar()
    own.handlers, own.propagate = [Forward()], False
    theirs.set_verbosity(min(level, logging.WARNING))
    try:
        yield lines
    finally:
        theirs.set_verbosity(level)
        own.handlers, own.propagate = before


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
