"""The sha256 of whole files, each hashed once: digests are kept in evalkit's cache.

A kept digest is valid while path, size, times and inode of the file are unchanged. Each hashed file
has one small JSON file with a checksum: processes need no lock, and a damaged entry is hashed again.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from evalkit.core.assets import cache_dir
from evalkit.core.durable import read_checked_json, write_checked_json
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.progress import bar
from evalkit.core.words import t

# Increment to invalidate existing entries.
VERSION = 1
# Smaller files are hashed faster than their digest is looked up.
_KEPT_FROM = 1 << 20
_SHOWN_FROM = 1_000_000_000
_BLOCK = 4 << 20
_AT_ONCE = 4
# Some file systems store times in whole seconds: a file written just now may be written again without
# a new time.
_SETTLED_NS = 1_000_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _State(NamedTuple):
    """What shows that a file's content has not changed, without reading it."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str, stat: os.stat_result) -> "_State":
        return cls(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)

    @property
    def entry(self) -> Path:
        """Where the digest is kept."""
        return cache_dir() / "digests" / f"{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:32]}.json"


# For this process: the cache folder may be missing or read-only.
_memory: dict[_State, str] = {}


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """The sha256 of each file's bytes, links followed.

    Raises:
        InputError: a file cannot be read.
        EvalkitError: a file changed while it was read.
    """
    states = {path: _state(path) for path in paths}
    found: dict[_State, str] = {}
    waiting: list[_State] = []
    for state in dict.fromkeys(states.values()):
        if (digest := _kept(state)) is not None:
            found[state] = digest
        else:
            waiting.append(state)
    total = sum(state.size for state in waiting)
    stop = threading.Event()
    with bar(t("hashing model files"), total, "bytes", shown=total >= _SHOWN_FROM) as progress:
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            # The largest first, so that all threads end at about the same time.
            waiting.sort(key=lambda state: -state.size)
            hashed = pool.map(lambda state: _hashed(state.path, progress.advance, stop), waiting)
            found.update(zip(waiting, hashed, strict=True))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return {path: found[state] for path, state in states.items()}


def _state(path: Path) -> _State:
    try:
        real = os.path.realpath(path)
        return _State.of(real, Path(real).stat())
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: object, error: OSError) -> InputError:
    return InputError(f"a file of the model cannot be read: {error.strerror or error}", where=path)


def _kept(state: _State) -> str | None:
    """The digest of a file that was hashed in this state before."""
    if state in _memory:
        return _memory[state]
    if state.size < _KEPT_FROM:
        return None
    try:
        entry = read_checked_json(state.entry)
    except (EvalkitError, OSError, ValueError, RecursionError):
        return None
    digest = str(entry.pop("sha256", ""))
    return digest if entry == _described(state) and _SHA256.fullmatch(digest) else None


def _described(state: _State) -> dict[str, object]:
    shown = os.fsencode(state.path).decode("utf-8", "backslashreplace")
    return {"version": VERSION, **state._asdict(), "path": shown}


def _hashed(path: str, advance: Callable[[int], None], stop: threading.Event) -> str:
    """Hashes a file and keeps the digest at once, so that an interruption loses no finished file."""
    digest = hashlib.sha256()
    started = time.time_ns()
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (a path of any bytes)
            before = os.fstat(file.fileno())
            while (block := file.read(_BLOCK)) and not stop.is_set():
                digest.update(block)
                advance(len(block))
            after = os.fstat(file.fileno())
    except OSError as error:
        raise _unreadable(path, error) from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise EvalkitError(
            "a file of the model changed while it was read",
            where=path,
            fix="wait until the model is written, then run the same command again",
        )
    sha256 = digest.hexdigest()
    if not stop.is_set() and before.st_size >= _KEPT_FROM and started - after.st_mtime_ns > _SETTLED_NS:
        state = _State.of(path, after)
        _memory[state] = sha256
        # When the cache cannot be written, the next process hashes the file again.
        with suppress(EvalkitError, OSError):
            write_checked_json(state.entry, {**_described(state), "sha256": sha256})
    return sha256
