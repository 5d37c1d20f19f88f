"""Pinned upstream files on this machine: from a mirror, the cache or the network, verified each time.

Downloads run in parallel. Each file is downloaded whole; a transient failure restarts it after a growing
pause. No file takes its final name before it matches its pin.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import httpx
from filelock import FileLock, Timeout
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)
from tenacity.wait import wait_base

from evalkit import __version__
from evalkit.core import assets
from evalkit.core.durable import atomic_file
from evalkit.core.errors import EvalkitError, FetchError, UnreachableError, no_connection, write_error
from evalkit.core.files import file_sha256
from evalkit.core.progress import Bar, bars, say
from evalkit.core.words import t
from evalkit.sources.mirror import Mirror
from evalkit.sources.pins import Pin, SourceFile, mismatch

CONNECTIONS = 6
ATTEMPTS = 5
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
# How long another host has to answer where one cannot be reached, before that means: no network.
GRACE_SECONDS = 3.0
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

Fetched = dict[Pin, SourceFile | EvalkitError]
# Called with the bytes received and the size the server announced (None: unknown).
OnProgress = Callable[[int, int | None], None]


class StoppedError(Exception):
    """The user stopped the download."""


class _TransientError(Exception):
    """The server failed in a way that is retried."""


@dataclass(frozen=True)
class Fetcher:
    """Where files may come from: the mirror (which replaces the network), the cache, else the network."""

    mirror: Mirror | None = None
    offline: bool = False
    cache: Path = field(default_factory=lambda: assets.cache_dir() / "sources")
    # Between the attempts at one file.
    pause: wait_base = field(
        default_factory=lambda: wait_exponential(multiplier=0.5, max=20) + wait_random(0, 1)
    )

    @classmethod
    def of(cls, mirror: str | Path | None, offline: bool) -> "Fetcher":
        """From the mirror in a folder, if one is given, else from the cache and the network.

        Raises:
            InputError: no such mirror.
        """
        return cls(Mirror.open(Path(mirror).expanduser()) if mirror else None, offline)

    def fetch(
        self,
        pins: Sequence[Pin],
        *,
        downloader: "Downloader | None" = None,
    ) -> Fetched:
        """Every file, or the error that says why it is not available; one failure stops no other file.

        Args:
            pins: the files wanted.

        Raises:
            UnreachableError: a host cannot be reached and no other answers; what was fetched is kept.
            KeyboardInterrupt: the finished files are kept, the next command fetches the others.
        """
        found: Fetched = {}
        wanted: list[Pin] = []
        for pin in dict.fromkeys(pins):
            try:
                if (local := self._local(pin)) is not None:
                    found[pin] = local
                else:
                    wanted.append(pin)
            except EvalkitError as error:
                found[pin] = error
        return found | (self._download(wanted) if wanted else {})

    def _local(self, pin: Pin) -> SourceFile | None:
        """The file from the mirror or the cache; None: it must be downloaded."""
        if self.mirror is not None and (mirrored := self.mirror.find(pin.url)) is not None:
            path, digest = mirrored
            if problem := mismatch(path, pin):
                raise FetchError(f"a file of the mirror is not the pinned one: {problem}", where=path)
            return SourceFile(path, pin, digest)
        cached = self.cached(pin)
        if cached.is_file() and mismatch(cached, pin) is None:
            return SourceFile(cached, pin, file_sha256(cached))
        if self.mirror is not None:
            raise FetchError(f"{pin.name} is not in the mirror {self.mirror.root}", where=pin.url)
        if self.offline:
            fix = "run prepare on a machine with a network, or give mirror=DIR"
            raise UnreachableError(f"{pin.name} is not in the cache (offline)", where=pin.url, fix=fix)
        return None

    def discard(self, file: SourceFile) -> None:
        """Removes a file from the cache, so that the next command fetches it again; keeps a mirror's."""
        if file.path == self.cached(file.pin):
            file.path.unlink(missing_ok=True)

    def cached(self, pin: Pin) -> Path:
        """Where a fetched file is kept, whether or not it is there."""
        return self.cache / f"{hashlib.sha256(pin.url.encode()).hexdigest()[:16]}-{pin.name}"

    def _download(self, pins: Sequence[Pin]) -> Fetched:
        with (
            new_client() as client,
            _progress(pins) as reporter,
            ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as threads,
        ):
            downloader = Downloader(client, self.pause)
            # A host that is the only one is waited for in vain.
            grace = GRACE_SECONDS if len({urlsplit(pin.url).netloc for pin in pins}) > 1 else 0.0
            futures = {pin: threads.submit(self._one, downloader, pin, reporter(pin), grace) for pin in pins}
            try:
                for future in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
                    future.result()
                return {pin: future.result() for pin, future in futures.items()}
            except BaseException:
                downloader.stop.set()
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def _one(
        self, downloader: "Downloader", pin: Pin, on_progress: OnProgress, grace: float
    ) -> SourceFile | EvalkitError:
        target = self.cached(pin)
        try:
            downloader.download(pin, target, on_progress)
            return SourceFile(target, pin, file_sha256(target))
        except UnreachableError as error:
            # Where another host answers there is a network, and this is about one file.
            if downloader.answered.wait(grace):
                return error
            raise
        except EvalkitError as error:
            return error
        except OSError as error:
            return write_error(target, error, "EVALKIT_CACHE")


def new_client() -> httpx.Client:
    """A client for files: follows redirects, names itself, asks for the bytes as they are stored."""
    headers = {"User-Agent": f"evalkit/{__version__}", "Accept-Encoding": "identity"}
    return httpx.Client(headers=headers, timeout=TIMEOUT, follow_redirects=True)


@dataclass(frozen=True)
class Downloader:
    """Downloads pinned files; `stop` ends all of them at the next block, `answered`: a host has answered."""

    client: httpx.Client
    pause: wait_base
    stop: Event = field(default_factory=Event)
    answered: Event = field(default_factory=Event)

    def download(self, pin: Pin, target: Path, on_progress: OnProgress = lambda done, size: None) -> None:
        """Makes `target` the pinned file, or leaves nothing.

        Raises:
            FetchError: the server refuses, the connection keeps failing, or the bytes are not the
                pinned ones.
            EvalkitError: the disk is full or may not be written.
            StoppedError: `stop` was set.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two commands that want one file share one download.
        with self._alone(target):
            if target.is_file() and mismatch(target, pin) is None:
                return
            with atomic_file(target, "EVALKIT_CACHE") as part:
                self._retry(pin, part, on_progress)
                if problem := mismatch(part, pin):
                    raise FetchError(
                        f"{pin.name} is not the file it should be: {problem}",
                        where=pin.url,
                        fix="try again later; if it stays so, upstream has changed",
                    )

    @contextmanager
    def _alone(self, target: Path) -> Iterator[None]:
        """Waits until no other process downloads the file, or until it is told to stop."""
        lock = FileLock(f"{target}.lock")
        while not lock.is_locked:
            if self.stop.is_set():
                raise StoppedError
            with suppress(Timeout):
                lock.acquire(timeout=1)
        try:
            yield
        finally:
            lock.release()

    def _retry(self, pin: Pin, part: Path, on_progress: OnProgress) -> None:
        retrying = Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_any(stop_after_attempt(ATTEMPTS), stop_when_event_set(self.stop)),
            wait=self.pause,
            sleep=sleep_using_event(self.stop),
            reraise=True,
        )
        try:
            retrying(self._transfer, pin, part, on_progress)
        except (httpx.HTTPError, httpx.InvalidURL, _TransientError) as error:
            if self.stop.is_set():
                raise StoppedError from None
            if (why := no_connection(error)) is not None:
                host = urlsplit(pin.url).hostname
                raise UnreachableError(
                    f"no network: {host} is unreachable ({why})",
                    where=pin.url,
                    fix="fetch it on a machine with a network; behind a proxy set HTTPS_PROXY, or mirror=DIR",
                ) from None
            raise FetchError(
                f"{pin.name} could not be fetched: {str(error) or type(error).__name__}",
                where=pin.url,
                fix="run the same command again; behind a proxy set HTTPS_PROXY, "
                "without a network use mirror=DIR",
            ) from None

    def _transfer(self, pin: Pin, part: Path, on_progress: OnProgress) -> None:
        with self.client.stream("GET", pin.url) as response:
            self.answered.set()
            if response.status_code in _TRANSIENT:
                raise _TransientError(f"the server answered {response.status_code}")
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


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment; where there is no connection none is awaited."""
    if isinstance(error, httpx.TransportError):
        return no_connection(error) is None
    return isinstance(error, _TransientError)


@contextmanager
def _progress(pins: Sequence[Pin]) -> Iterator[Callable[[Pin], OnProgress]]:
    """Gives, for each file, the function its download reports to; each has a bar once it begins."""
    say(t("fetching {n} files", n=len(pins)) if len(pins) > 1 else t("fetching {name}", name=pins[0].name))
    with bars() as add:

        def reporter(pin: Pin) -> OnProgress:
            bar: Bar | None = None

            def report(done: int, size: int | None) -> None:
                nonlocal bar
                bar = bar or add(f"{pin.source}: {pin.name}", pin.bytes, "bytes")
                bar.update(done, size or pin.bytes)

            return report

        yield reporter
