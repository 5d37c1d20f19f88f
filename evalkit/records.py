"""The run directory: append-only sample logs, atomic files, one writer, resume.

    results/<model>/<suite>/<run id>/
        config.yaml environment.json samples/<task>.jsonl scores/<task>.jsonl results.json run.log

A line of a sample log is complete when it ends with a newline and its checksum fits; anything else
is what a crash or a bad disk left and is dropped when the run is opened again, so that its sample
is simply asked once more.
"""

import errno
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from evalkit.errors import EvalkitError, InputError, RunLockedError
from evalkit.types import Completion, FinishReason, Sample

CHECK = "check"
SYNC_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One line of samples/<task>.jsonl: what generation decided about one sample."""

    id: str
    input: str
    prompt_sha256: str
    gold: str
    completion: str
    raw_text: str
    finish_reason: FinishReason
    prompt_tokens: int
    new_tokens: int
    over_context: bool = False
    error: str | None = None

    @classmethod
    def of(cls, sample: Sample, prompt: str, completion: Completion) -> "SampleRecord":
        """The record of `sample`, asked with `prompt` and answered by `completion`."""
        return cls(
            id=sample.id,
            input=sample.input,
            prompt_sha256=text_sha256(prompt),
            gold=sample.gold,
            completion=completion.text,
            raw_text=completion.raw_text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            new_tokens=completion.new_tokens,
            over_context=completion.over_context,
            error=completion.error,
        )


def text_sha256(text: str) -> str:
    """The sha256 of a text's UTF-8 bytes, as hexadecimal digits."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal texts."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def run_id(identity: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that name whatever decides a run's completions."""
    return text_sha256(canonical_json(identity))[:12]


def _checksum(row: dict[str, Any]) -> str:
    return f"{zlib.crc32(canonical_json(row).encode('utf-8', 'surrogatepass')):08x}"


def to_line(row: dict[str, Any]) -> bytes:
    """A log line: the row with its checksum, and a newline."""
    text = json.dumps({**row, CHECK: _checksum(row)}, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def from_line(line: bytes) -> dict[str, Any] | None:
    """The row of a complete, undamaged log line, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    if not isinstance(row, dict) or row.pop(CHECK, None) != _checksum(row):
        return None
    return row


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, synced to disk, when the block succeeds.

    Raises:
        EvalkitError: no space left, or the folder cannot be written; `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Writes a whole UTF-8 file, or nothing."""
    with atomic_file(path) as partial:
        partial.write_bytes(text.encode("utf-8", "surrogatepass"))


def write_json_atomic(path: Path, value: Any) -> None:
    """Writes a whole indented JSON file, or nothing."""
    write_text_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_lines_atomic(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a whole log file with checksums, or nothing."""
    with atomic_file(path) as partial:
        partial.write_bytes(b"".join(map(to_line, rows)))


def write_error(path: Path, error: OSError, option: str = "out") -> EvalkitError:
    """The message for a failed write: what is saved stays saved; `option` chooses another folder."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EvalkitError(
            "no space left on the disk; what was written before is kept",
            where=path,
            fix="free some space and run the same command again: it continues",
        )
    return EvalkitError(
        f"cannot write: {error.strerror}",
        where=path,
        fix=f"choose a folder you may write to with {option}=DIR",
    )


def read_log(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The undamaged rows of a log by id (the first of each id counts), and how many lines were damaged."""
    rows: dict[str, dict[str, Any]] = {}
    damaged = 0
    if path.exists():
        with path.open("rb") as log:
            for line in log:
                row = from_line(line)
                if row is None or not isinstance(row.get("id"), str):
                    damaged += 1
                else:
                    rows.setdefault(row["id"], row)
    return rows, damaged


class Appender:
    """Appends rows to a log so that each is on its way to disk, whole, before the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise write_error(path, error) from error
        self._synced = time.monotonic()

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row.

        Raises:
            EvalkitError: the disk is full; the file ends with the last whole row.
        """
        line = to_line(row)
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise write_error(self.path, error) from error

    def close(self) -> None:
        """Syncs and closes the log."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


class RunDirectory:
    """One run on disk, with at most one process writing to it.

    Use as a context manager to write; reading needs no lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None
        self._appenders: dict[str, Appender] = {}

    @property
    def results_path(self) -> Path:
        """results.json: written last, its presence means that the run is done."""
        return self.path / "results.json"

    def samples_path(self, task: str) -> Path:
        """The append-only log of a task's completions."""
        return self.path / "samples" / f"{task}.jsonl"

    def scores_path(self, task: str) -> Path:
        """The per-sample scores of a task, rewritten by each scoring."""
        return self.path / "scores" / f"{task}.jsonl"

    def __enter__(self) -> "RunDirectory":
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunLockedError(
                "another process is working on this run",
                where=self.path,
                fix="wait for it, or stop it; the same command then finds its work",
            ) from None
        except OSError as error:
            raise write_error(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for appender in self._appenders.values():
                appender.close()
        finally:
            self._appenders.clear()
            self._lock.release()

    def records(self, task: str) -> dict[str, SampleRecord]:
        """The kept records of a task by sample id; damaged lines are skipped."""
        rows, _ = read_log(self.samples_path(task))
        return {key: _sample_record(row, self.samples_path(task)) for key, row in rows.items()}

    def recover(self, task: str) -> int:
        """Drops what a crash left in a task's log (torn or damaged lines); returns how many lines."""
        path = self.samples_path(task)
        rows, damaged = read_log(path)
        if damaged:
            write_lines_atomic(path, rows.values())
        return damaged

    def append(self, task: str, record: SampleRecord) -> None:
        """Keeps one completion for good."""
        if task not in self._appenders:
            self._appenders[task] = Appender(self.samples_path(task))
        self._appenders[task].append(asdict(record))


def _sample_record(row: dict[str, Any], path: Path) -> SampleRecord:
    known = {field.name for field in fields(SampleRecord)}
    try:
        return SampleRecord(**{key: value for key, value in row.items() if key in known})
    except TypeError as error:
        raise InputError(f"not a sample record of this version: {error}", where=path) from None
