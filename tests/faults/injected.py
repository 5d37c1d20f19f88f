"""Faults that are put into a command before it starts, in the command's own process."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

# What a file system is asked; reading counts too, so that every phase has its moments.
OPERATIONS = frozenset(
    {"open", "os.mkdir", "os.rename", "os.remove", "os.truncate", "os.listdir", "os.scandir"}
)


@dataclass(frozen=True)
class DieAtOperation:
    """A signal, kill -9 unless another, just before the n-th operation on a path with `part` in it."""

    part: str
    number: int
    signal: int = signal.SIGKILL

    def install(self) -> None:
        count = 0

        def hook(event: str, values: tuple[Any, ...]) -> None:
            nonlocal count
            if event in OPERATIONS and values and self.part in str(values[0]):
                count += 1
                if count == self.number:
                    os.kill(os.getpid(), self.signal)

        sys.addaudithook(hook)


@dataclass(frozen=True)
class CountOperations:
    """Writes how many operations the command made on files with `part` in their path to the file `to`."""

    part: str
    to: str

    def install(self) -> None:
        from multiprocessing.util import Finalize

        seen: list[str] = []

        def hook(event: str, values: tuple[Any, ...]) -> None:
            if event in OPERATIONS and values and self.part in str(values[0]):
                seen.append(event)

        sys.addaudithook(hook)
        # A forked command ends with multiprocessing's finalizers, not with atexit's.
        Finalize(None, lambda: Path(self.to).write_text(str(len(seen))), exitpriority=0)


@dataclass(frozen=True)
class DieAtByte:
    """A slow disk that takes `piece` bytes of a log at a time, and kill -9 after the n-th of them."""

    number: int
    piece: int

    def install(self) -> None:
        total = 0

        def before(descriptor: int, data: bytes) -> bytes:
            return data[: max(1, min(self.piece, self.number - total))]

        def after(written: int) -> None:
            nonlocal total
            total += written
            if total >= self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        _on_log_writes(before, after)


@dataclass(frozen=True)
class SlowDisk:
    """Every write to a log takes `seconds`."""

    seconds: float

    def install(self) -> None:
        def before(descriptor: int, data: bytes) -> bytes:
            time.sleep(self.seconds)
            return data

        _on_log_writes(before, lambda written: None)


@dataclass(frozen=True)
class FailingSync:
    """The n-th fsync fails as a broken disk lets it fail; with `sync_always` each append asks for one."""

    number: int

    def install(self) -> None:
        from evalkit.core import durable

        durable.SYNC_SECONDS = -1.0
        count, real = 0, os.fsync

        def fsync(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count >= self.number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(descriptor)

        os.fsync = fsync


@dataclass(frozen=True)
class NoUndo:
    """A disk that fills up in the middle of a line and then refuses to cut the half line off."""

    number: int

    def install(self) -> None:
        total = 0

        def before(descriptor: int, data: bytes) -> bytes:
            if total >= self.number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return data[: max(1, self.number - total)]

        def after(written: int) -> None:
            nonlocal total
            total += written

        def truncate(descriptor: int, length: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        _on_log_writes(before, after)
        os.ftruncate = truncate


@dataclass(frozen=True)
class ClockGoesBack:
    """Every look at the clock finds it ten seconds earlier than the last one."""

    def install(self) -> None:
        start, looks = time.time(), 0

        def backwards() -> float:
            nonlocal looks
            looks += 1
            return start - 10.0 * looks

        time.time = backwards
        time.time_ns = lambda: int(backwards() * 1e9)


@dataclass(frozen=True)
class SmallFiles:
    """No file may grow beyond so many bytes, as under a quota."""

    most: int

    def install(self) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.most))


@dataclass(frozen=True)
class HubCache:
    """Another place of the hub library's cache, which it reads from the environment when it is imported."""

    folder: str

    def install(self) -> None:
        from huggingface_hub import constants

        constants.HF_HUB_CACHE = self.folder


@dataclass(frozen=True)
class NoSockets:
    """Any attempt to reach a network ends the process with a message of its own."""

    def install(self) -> None:
        import socket

        def refuse(*words: object, **options: object) -> NoReturn:
            raise SystemExit("a socket was opened")

        socket.create_connection = socket.getaddrinfo = refuse
        socket.socket.__init__ = refuse  # type: ignore[method-assign]


def _on_log_writes(before: Callable[[int, bytes], bytes], after: Callable[[int], None]) -> None:
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        path = Path(f"/proc/self/fd/{descriptor}")
        if not (path.is_symlink() and path.readlink().suffix == ".jsonl"):
            return real(descriptor, data)
        written = real(descriptor, before(descriptor, data))
        after(written)
        return written

    os.write = write
