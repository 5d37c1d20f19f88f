"""The one family of exceptions: every message says what, where and how to fix it."""

import errno
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from evalkit.core.reasons import Reason

log = logging.getLogger(__name__)

_LONGEST_REASON = 400


class EvalkitError(Exception):
    """Something failed for a reason a person can act on; what was finished is kept.

    Args:
        what: the problem in one sentence.
        where: the file, field, option or URL concerned.
        fix: what the user can do about it, usually a command.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        super().__init__(self.message())

    def message(self) -> str:
        """The text shown to the user: `what`, then indented `where` and `fix` lines."""
        return _text(self.what, self.where, self.fix)


def _text(what: str, where: str | None, fix: str | None) -> str:
    lines = [what]
    if where:
        lines.append(f"  where: {where}")
    if fix:
        lines.append(f"  fix:   {fix}")
    return "\n".join(lines)


class InputError(EvalkitError):
    """Bad usage, configuration or input: exit code 2, nothing was started."""

    exit_code = 2


class FetchError(EvalkitError):
    """An upstream file could not be fetched: network, mirror, checksum or offline mode."""


class UnreachableError(FetchError):
    """Something is not on this machine, and it cannot be fetched: there is no network, or `offline=true`."""


class RunLockedError(EvalkitError):
    """Another process is working on the same run directory."""


class InterruptedRunError(KeyboardInterrupt):
    """A signal stopped the work; it is flushed to disk and the same command continues it.

    Not an `EvalkitError`, nor any `Exception`: code that tries something and goes on when it fails
    must not take a signal for a failure.
    """

    exit_code = 130

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        self.what = what
        super().__init__(_text(what, None, fix))


@contextmanager
def foreign(
    what: str, *, where: object = None, fix: str | None = None, raises: type[EvalkitError] = InputError
) -> Iterator[None]:
    """Runs code that is not evalkit's own on what a user gave; whatever it raises is one message.

    Libraries report a bad file by exceptions of every kind; some end the process. The traceback
    goes to the log. Evalkit's own errors, interrupts, a full disk and exhausted memory pass through:
    they are not about the user's input.

    Args:
        what: what could not be done; the exception's reason is appended.
        where: the file, field or option concerned.
        fix: what the user can do about it; a missing package is named in its place.
        raises: the class of the error; `InputError` is exit code 2.

    Raises:
        EvalkitError: of the class `raises`, for every exception but those named above.
    """
    try:
        yield
    except EvalkitError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and is_disk_full(error)):
            raise
        log.info("%s (%s)", what, where, exc_info=error)
        raise raises(
            Reason(f"{what}: {{error}}", error=reason(error)), where=where, fix=_install(error) or fix
        ) from error


def reason(error: BaseException) -> str:
    """The text of an exception on one line; its class too where the text alone may not explain it."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if not text:
        return kind
    # The text of a KeyError is the key, of a StopIteration the value: neither is a sentence.
    line = text if isinstance(error, OSError | ImportError) or " " in text else f"{kind}: {text}"
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} ..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that is not blank, or the name of its class."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


# How HTTP libraries and pip name an error of a connection that did not come about.
_NO_CONNECTION = re.compile(
    r"Connect(ion)?(Error|Timeout)|ConnectTimeoutError|NewConnectionError|NameResolutionError|ProxyError"
    r"|OfflineModeIsEnabled"
)
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNREFUSED, errno.ETIMEDOUT)


def no_connection(error: BaseException) -> str | None:
    """Why no connection to a host came about: its name, the route, a refusal, the time; else None.

    An answer of a server, whatever it says, is a connection, and so is one that broke off.
    """
    for cause in _causes(error):
        route = isinstance(cause, OSError) and cause.errno in _NO_ROUTE
        if route or isinstance(cause, socket.gaierror) or _NO_CONNECTION.fullmatch(type(cause).__name__):
            return re.sub(r"^\[Errno -?\d+\] ", "", reason(cause))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those behind it."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def _install(error: BaseException) -> str | None:
    """The command that installs the package whose absence is behind an exception."""
    for cause in _causes(error):
        if isinstance(cause, ImportError):
            command = re.search(r"pip3? install ((?:-\w+ )?[\w.\[\],-]+)", " ".join(str(cause).split()))
            needs = re.search(r"install ([\w-]+) to|requires the (\w+) library", str(cause))
            name = (
                command[1] if command else next(filter(None, needs.groups()), None) if needs else cause.name
            )
            if name:
                return f"pip install {name}"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is Python's, torch's (GPU or main memory) or Ray's error for exhausted memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed because the disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_error(path: object, error: OSError, option: str = "out") -> EvalkitError:
    """The message for a failed write: what is saved stays saved; `option` chooses another folder."""
    if is_disk_full(error):
        return EvalkitError(
            "no space left on the disk; what was written before is kept",
            where=path,
            fix="free some space and run the same command again: it continues",
        )
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
        return EvalkitError(
            f"the file system has no locks ({error.strerror}), and two processes could write at once",
            where=path,
            fix=f"choose a folder on another file system with {option}=DIR",
        )
    return EvalkitError(
        f"cannot write: {error.strerror or error}",
        where=path,
        fix=f"choose a folder you may write to with {option}=DIR",
    )
