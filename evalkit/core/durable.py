"""Crash-safe files: logs with a checksum in each line, and files that are replaced atomically.

A line of a log is valid when it ends with a newline and its checksum matches; other lines were left by
a crash or a bad disk. A whole file is written under a temporary name, synced, and renamed. JSON files
that decide something have a checksum too, so that damage is detected.
"""

import glob
import json
import os
import socket
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evalkit.core.errors import InputError, write_error
from evalkit.core.text import canonical_json, everywhere, may_hold_half_characters, unicode_text

CHECK = "check"
SYNC_SECONDS = 1.0


def checksum(row: dict[str, Any]) -> str:
    """The CRC-32 of a row's canonical JSON, eight hexadecimal digits."""
    return f"{zlib.crc32(canonical_json(row).encode('utf-8', 'surrogatepass')):08x}"


# --- lines of a log ------------------------------------------------------------------------------


def to_line(row: dict[str, Any]) -> bytes:
    """A log line: the row with its checksum, and a newline."""
    text = json.dumps({**row, CHECK: checksum(row)}, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def from_line(line: bytes) -> dict[str, Any] | None:
    """The row of a complete, undamaged log line, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        text = line.decode("utf-8", "surrogatepass")
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.pop(CHECK, None) != checksum(row):
        return None
    return _unicode(row, text)


def _unicode(value: dict[str, Any], text: str) -> dict[str, Any]:
    """A value read from `text`; lone surrogates, which older versions kept, are replaced."""
    if not may_hold_half_characters(text):
        return value
    mended: dict[str, Any] = everywhere(value, unicode_text)
    return mended


def read_log(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The undamaged rows of a log by id (the first of each id counts), and how many lines were damaged.

    Raises:
        InputError: the file is there and cannot be read.
    """
    rows: dict[str, dict[str, Any]] = {}
    damaged = 0
    try:
        with path.open("rb") as log:
            for line in log:
                row = from_line(line)
                if row is None or not isinstance(row.get("id"), str):
                    damaged += 1
                else:
                    rows.setdefault(row["id"], row)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(
            f"cannot read: {error.strerror}",
            where=path,
            fix="make it readable for you; moved away, what it holds is made again",
        ) from error
    return rows, damaged


def append_line(descriptor: int, line: bytes) -> None:
    """Appends a whole line to a log that is open for reading and appending, or nothing.

    An incomplete last line, left by a killed writer, is terminated first, so that only it is lost.

    Raises:
        OSError: it could not be written whole; the log ends where it did.
    """
    end = os.lseek(descriptor, 0, os.SEEK_END)
    if end and os.pread(descriptor, 1, end - 1) != b"\n":
        line = b"\n" + line
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        # If this fails too, the checksum reveals the partial line, and the next append terminates it.
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


class Appender:
    """Appends rows to a log; each is written to the file completely before the next.

    Errors name `option`, which chooses the folder. `descriptor` is open for reading too.
    """

    def __init__(self, path: Path, option: str = "out") -> None:
        self.path, self._option = path, option
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise write_error(path, error, option) from error
        self._synced = time.monotonic()

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row.

        Raises:
            EvalkitError: the disk is full or fails; the rows before are kept.
        """
        try:
            append_line(self.descriptor, to_line(row))
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self.descriptor)
                self._synced = time.monotonic()
        except OSError as error:
            raise write_error(self.path, error, self._option) from error

    def close(self) -> None:
        """Syncs and closes the log.

        Raises:
            EvalkitError: not everything was written; lost rows are generated again.
        """
        try:
            try:
                os.fsync(self.descriptor)
            finally:
                os.close(self.descriptor)
        except OSError as error:
            raise write_error(self.path, error, self._option) from error


# --- whole files ---------------------------------------------------------------------------------


def process_tag() -> str:
    """The part of a temporary name that identifies this process: `<host>-<process id>`."""
    return f"{socket.gethostname()}-{os.getpid()}"


def is_running(pid: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def is_abandoned(tag: str) -> bool:
    """Whether the process of a tag was one of this host and has ended."""
    host, _, number = tag.rpartition("-")
    return host == socket.gethostname() and number.isdigit() and not is_running(int(number))


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files of ended processes of this host from a folder, or those of one file."""
    for left in folder.glob(f".{glob.escape(name) if name else '*'}.*.tmp"):
        _, _, number = left.name.removesuffix(".tmp").rpartition(f".{socket.gethostname()}-")
        if is_abandoned(f"{socket.gethostname()}-{number}"):
            # A leftover that cannot be removed does no harm.
            with suppress(OSError):
                left.unlink()


@contextmanager
def atomic_file(path: Path, option: str = "out") -> Iterator[Path]:
    """A temporary path that replaces `path`, synced to disk, when the block succeeds.

    Temporary files of earlier, killed attempts are removed.

    Args:
        path: the file.
        option: what chooses another folder for it.

    Raises:
        EvalkitError: no space left, or the folder cannot be written; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{process_tag()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, path.name)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error, option) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str, mode: int = 0o666) -> None:
    """Writes a UTF-8 file atomically; `mode` as of `open`."""
    with atomic_file(path) as partial:
        partial.touch(mode)
        partial.write_bytes(unicode_text(text).encode())


def write_json_atomic(path: Path, value: Any, mode: int = 0o666) -> None:
    """Writes an indented JSON file atomically; `mode` as of `open`."""
    write_text_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n", mode)


def write_lines_atomic(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a log with checksums atomically."""
    with atomic_file(path) as partial:
        partial.write_bytes(b"".join(map(to_line, rows)))


def write_checked_json(path: Path, value: dict[str, Any]) -> None:
    """`write_json_atomic` of an object with its checksum, for `read_checked_json`."""
    # The checksum is over the parsed form: keys are strings, tuples are lists.
    kept = json.loads(unicode_text(json.dumps(value, ensure_ascii=False)))
    write_json_atomic(path, {**kept, CHECK: checksum(kept)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; one without a checksum (an older file) is not checked.

    Raises:
        OSError: it cannot be read.
        ValueError: not JSON, not an object, or not what was written.
    """
    text = path.read_bytes().decode("utf-8", "surrogatepass")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("a JSON object was expected")
    if content.pop(CHECK, None) not in (None, checksum(content)):
        raise ValueError("the checksum does not fit: the file was damaged or changed by hand")
    return _unicode(content, text)


def write_checked_text(path: Path, text: str) -> None:
    """`write_text_atomic` with the checksum in a comment (`#`) above, for `is_whole_text`."""
    text = unicode_text(text)
    write_text_atomic(path, f"# {CHECK}: {zlib.crc32(text.encode()):08x}\n{text}")


def is_whole_text(path: Path) -> bool:
    """Whether a file is there and as `write_checked_text` wrote it."""
    try:
        first, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return False
    return first == f"# {CHECK}: {zlib.crc32(text):08x}".encode()


def remove_file(path: Path) -> None:
    """Removes a file that may not be there.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
