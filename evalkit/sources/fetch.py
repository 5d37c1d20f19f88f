"""Pinned upstream files on this machine: from a mirror, the cache or the network, checked each time.

Over the network files come in parallel, each whole or not at all. Nothing takes its final name before
it agrees with its pin.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.core import assets
from evalkit.core.errors import EvalkitError, FetchError, write_error
from evalkit.sources.checksums import mismatch, sha256_of
from evalkit.sources.mirror import Mirror
from evalkit.sources.pins import Pin
from evalkit.sources.readers import SourceFile

if TYPE_CHECKING:
    from rich.console import Console

    from evalkit.sources.download import Downloader, OnProgress

CONNECTIONS = 6


def default_cache() -> Path:
    """Where fetched upstream files are kept."""
    return assets.cache_dir() / "sources"


@dataclass(frozen=True)
class Fetcher:
    """Where files may come from: `mirror` in place of the network, the cache, else the network."""

    mirror: Mirror | None = None
    offline: bool = False
    cache: Path = field(default_factory=default_cache)

    def fetch(
        self,
        pins: Sequence[Pin],
        *,
        console: "Console | None" = None,
        downloader: "Downloader | None" = None,
    ) -> dict[Pin, SourceFile | EvalkitError]:
        """Every file, or why it cannot be had; one that fails does not stop the others.

        Args:
            pins: the files wanted.
            console: where progress is shown when it is a terminal.
            downloader: how the network is used; by default a new client.

        Raises:
            KeyboardInterrupt: the files that have come are kept, the next command fetches the others.
        """
        found: dict[Pin, SourceFile | EvalkitError] = {}
        wanted: list[Pin] = []
        for pin in dict.fromkeys(pins):
            local: SourceFile | EvalkitError | None
            try:
                local = self._local(pin)
            except EvalkitError as error:
                local = error
            if local is not None:
                found[pin] = local
            elif self.mirror is not None:
                found[pin] = FetchError(f"{pin.name} is not in the mirror {self.mirror.root}", where=pin.url)
            elif self.offline:
                fix = "run prepare on a machine with a network, or give mirror=DIR"
                found[pin] = FetchError(f"{pin.name} is not in the cache (offline)", where=pin.url, fix=fix)
            else:
                wanted.append(pin)
        if wanted:
            found |= self._download(wanted, console, downloader)
        return found

    def _local(self, pin: Pin) -> SourceFile | None:
        if self.mirror is not None and (mirrored := self.mirror.find(pin.url)) is not None:
            path, digest = mirrored
            if problem := mismatch(path, pin):
                raise FetchError(f"a file of the mirror is not the pinned one: {problem}", where=path)
            return SourceFile(path, pin, digest)
        cached = self.cached(pin)
        if cached.is_file() and mismatch(cached, pin) is None:
            return SourceFile(cached, pin, sha256_of(cached))
        return None

    def discard(self, file: SourceFile) -> None:
        """Forgets a fetched file, so that the next command fetches it again; a mirror's is not ours."""
        if file.path == self.cached(file.pin):
            file.path.unlink(missing_ok=True)

    def cached(self, pin: Pin) -> Path:
        """Where a fetched file is kept, whether or not it is there."""
        return self.cache / f"{hashlib.sha256(pin.url.encode()).hexdigest()[:16]}-{pin.name}"

    def _download(
        self, pins: Sequence[Pin], console: "Console | None", downloader: "Downloader | None"
    ) -> dict[Pin, SourceFile | EvalkitError]:
        from evalkit.sources.download import Downloader, new_client, shown

        with new_client() as client:
            downloads = downloader or Downloader(client)
            with (
                shown(pins, console) as follow,
                ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as threads,
            ):
                jobs = {pin: threads.submit(self._one, downloads, pin, follow(pin)) for pin in pins}
                try:
                    return {pin: _outcome(job) for pin, job in jobs.items()}
                except BaseException:
                    downloads.stop.set()
                    threads.shutdown(wait=True, cancel_futures=True)
                    raise

    def _one(self, downloads: "Downloader", pin: Pin, on_progress: "OnProgress") -> SourceFile:
        target = self.cached(pin)
        try:
            downloads.download(pin, target, on_progress)
            return SourceFile(target, pin, sha256_of(target))
        except OSError as error:
            raise write_error(target, error, "EVALKIT_CACHE") from error


def _outcome(job: "Future[SourceFile]") -> SourceFile | EvalkitError:
    try:
        return job.result()
    except EvalkitError as error:
        return error
