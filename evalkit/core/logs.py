"""run.log: messages of a run with their times; warnings also on standard error."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evalkit.core.errors import EvalkitError, write_error
from evalkit.core.secrets import hide, printable


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
