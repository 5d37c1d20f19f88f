"""Files over HTTP: whole, retried from the start with a growing pause, checked before they are kept."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import httpx
from filelock import FileLock
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)
from tenacity.wait import wait_base

from evalkit import __version__
from evalkit.core.errors import FetchError
from evalkit.core.progress import Bar, bars
from evalkit.sources.checksums import mismatch
from evalkit.sources.pins import Pin

if TYPE_CHECKING:
    from rich.console import Console

ATTEMPTS = 5
TIMEOUT = httpx.Timeout(30.0)
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})

# Called with the bytes that have come and the size announced by the server (None: unknown).
OnProgress = Callable[[int, int | None], None]


class _TryAgainError(Exception):
    """The server or the line failed in a way that may pass."""


class StoppedError(Exception):
    """The user stopped the download."""


def new_client() -> httpx.Client:
    """A client for files: follows redirects, names itself, asks for the bytes as they are stored."""
    headers = {"User-Agent": f"evalkit/{__version__}", "Accept-Encoding": "identity"}
    return httpx.Client(headers=headers, timeout=TIMEOUT, follow_redirects=True)


@dataclass(frozen=True)
class Downloader:
    """Downloads pinned files; `stop` ends all of them at the next block."""

    client: httpx.Client
    stop: Event = field(default_factory=Event)
    wait: wait_base = field(
        default_factory=lambda: wait_exponential(multiplier=0.5, max=20) + wait_random(0, 1)
    )

    def download(self, pin: Pin, target: Path, on_progress: OnProgress = lambda done, size: None) -> None:
        """Makes `target` the pinned file, or leaves nothing.

        Raises:
            FetchError: the server refuses, the line stays broken, or the bytes are not the pinned ones.
            OSError: the disk is full or may not be written.
            StoppedError: `stop` was set.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        # Two commands that want one file share one download.
        with FileLock(f"{target}.lock"):
            if target.is_file() and mismatch(target, pin) is None:
                return
            try:
                self._retry(pin, part, on_progress)
                if problem := mismatch(part, pin):
                    raise FetchError(
                        f"{pin.name} is not the file it should be: {problem}",
                        where=pin.url,
                        fix="try again later; if it stays so, upstream has changed",
                    )
                with part.open("rb") as stream:
                    os.fsync(stream.fileno())
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)

    def _retry(self, pin: Pin, part: Path, on_progress: OnProgress) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type((httpx.TransportError, _TryAgainError)),
            stop=stop_any(stop_after_attempt(ATTEMPTS), stop_when_event_set(self.stop)),
            wait=self.wait,
            sleep=sleep_using_event(self.stop),
            reraise=True,
        )
        try:
            retrying(self._transfer, pin, part, on_progress)
        except (httpx.HTTPError, httpx.InvalidURL, _TryAgainError) as error:
            if self.stop.is_set():
                raise StoppedError from None
            raise FetchError(
                f"{pin.name} could not be fetched: {str(error) or type(error).__name__}",
                where=pin.url,
                fix="run the same command again; behind a proxy set HTTPS_PROXY, "
                "without a network use mirror=DIR",
            ) from None

    def _transfer(self, pin: Pin, part: Path, on_progress: OnProgress) -> None:
        with self.client.stream("GET", pin.url) as response:
            if response.status_code in _TRY_AGAIN:
                raise _TryAgainError(f"the server answered {response.status_code}")
            if response.status_code != httpx.codes.OK:
                raise FetchError(
                    f"{pin.name}: the server answered {response.status_code} {response.reason_phrase}",
                    where=pin.url,
                    fix="the file may have moved; use a mirror with mirror=DIR",
                )
            announced = response.headers.get("content-length", "")
            size = int(announced) if announced.isdigit() else None
            # Servers label .tar.gz as encoded: the stored bytes are wanted, not the unpacked ones.
            with part.open("wb") as stream:
                for block in response.iter_raw():
                    if self.stop.is_set():
                        raise StoppedError
                    stream.write(block)
                    on_progress(stream.tell(), size)


@contextmanager
def shown(pins: Sequence[Pin], console: "Console | None") -> Iterator[Callable[[Pin], OnProgress]]:
    """Gives, for each file, the function its download reports to.

    On a terminal each file has a bar; a log gets one line for all of them.
    """
    if console is not None:
        console.print(f"fetching {len(pins)} file{'s' if len(pins) != 1 else ''}", highlight=False)
    if console is None:
        yield lambda pin: lambda done, size: None
        return
    with bars(console, quiet=False) as add:

        def follow(pin: Pin) -> OnProgress:
            bar: Bar | None = None

            def report(done: int, size: int | None) -> None:
                nonlocal bar
                bar = bar or add(f"{pin.source}: {pin.name}", pin.bytes, "bytes")
                bar.update(done, size or pin.bytes)

            return report

        yield follow
