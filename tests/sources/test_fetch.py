"""Fetching over HTTP: the failures of servers and connections, against a local server."""

import errno
import hashlib
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from filelock import FileLock
from tenacity import wait_fixed, wait_none

from evalkit.core.errors import EvalkitError, FetchError, UnreachableError
from evalkit.sources.fetch import ATTEMPTS, Downloader, Fetcher, StoppedError, new_client
from evalkit.sources.pins import Pin, SourceFile
from tests.sources.helpers import Handler, Site, dropped, pin_of, status, whole

BODY = b"".join(f"line {number}\n".encode() for number in range(20_000))


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(cache=tmp_path / "cache", pause=wait_none())


def fetch(fetcher: Fetcher, *pins: Pin) -> list[SourceFile | EvalkitError]:
    found = fetcher.fetch(pins)
    return [found[pin] for pin in pins]


def fetch_bytes(fetcher: Fetcher, pin: Pin) -> bytes:
    (file,) = fetch(fetcher, pin)
    assert isinstance(file, SourceFile), file
    return file.path.read_bytes()


def refusal(fetcher: Fetcher, pin: Pin) -> str:
    (error,) = fetch(fetcher, pin)
    assert isinstance(error, FetchError)
    assert pin.url in str(error)
    return str(error)


def kept(fetcher: Fetcher) -> list[str]:
    if not fetcher.cache.exists():
        return []
    return sorted(path.name for path in fetcher.cache.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_fetched_once(site: Site, fetcher: Fetcher) -> None:
    pin = pin_of(site.serve("/a.json", whole(BODY)), BODY)
    assert fetch_bytes(fetcher, pin) == BODY
    assert fetch_bytes(fetcher, pin) == BODY
    assert len(site.requests) == 1
    assert [name.split("-", 1)[1] for name in kept(fetcher)] == ["a.json"]


def test_many_files_come_and_one_failure_stops_no_other(site: Site, fetcher: Fetcher) -> None:
    bodies = {f"/{number}.txt": f"file {number}".encode() for number in range(20)}
    pins = [pin_of(site.serve(path, whole(body)), body) for path, body in bodies.items()]
    pins.insert(7, pin_of(f"{site.url}/gone.txt", b"?"))
    files = fetch(fetcher, *pins)
    assert isinstance(files.pop(7), FetchError)
    contents = [file.path.read_bytes() for file in files if isinstance(file, SourceFile)]
    assert contents == list(bodies.values())


def test_a_dropped_connection_is_retried_from_the_start(site: Site, fetcher: Fetcher) -> None:
    pin = pin_of(site.serve("/a", dropped(BODY, 70_000), dropped(BODY, 10), whole(BODY)), BODY)
    assert fetch_bytes(fetcher, pin) == BODY
    assert site.requests == [("/a", None)] * 3


def test_a_connection_that_stays_broken_leaves_nothing(site: Site, fetcher: Fetcher) -> None:
    pin = pin_of(site.serve("/a", dropped(BODY, 70_000)), BODY)
    assert "run the same command again" in refusal(fetcher, pin)
    assert len(site.requests) == ATTEMPTS and kept(fetcher) == []
    site.answers["/a"] = [whole(BODY)]
    assert fetch_bytes(fetcher, pin) == BODY


def test_a_file_that_changed_meanwhile_is_not_stitched_together(site: Site, fetcher: Fetcher) -> None:
    newer = BODY.replace(b"line", b"LINE")
    assert fetch_bytes(fetcher, pin_of(site.serve("/a", dropped(BODY, 70_000), whole(newer)))) == newer


def test_a_part_of_a_file_is_no_answer(site: Site, fetcher: Fetcher) -> None:
    assert "206" in refusal(fetcher, pin_of(site.serve("/a", status(206)), BODY))


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_a_transient_failure_is_retried(site: Site, fetcher: Fetcher, code: int) -> None:
    url = site.serve("/a", status(code), status(code), whole(BODY))
    assert fetch_bytes(fetcher, pin_of(url, BODY)) == BODY


def test_a_permanent_failure_is_named(site: Site, fetcher: Fetcher) -> None:
    text = refusal(fetcher, pin_of(site.serve("/data.zip", status(500)), BODY))
    assert "data.zip" in text and "500" in text
    assert len(site.requests) == ATTEMPTS


def test_404_is_final(site: Site, fetcher: Fetcher) -> None:
    text = refusal(fetcher, pin_of(f"{site.url}/gone.json", BODY))
    assert "gone.json" in text and "404" in text
    assert len(site.requests) == 1
    assert kept(fetcher) == []


@pytest.mark.parametrize("host", ["127.0.0.1:9", "nowhere.invalid"])
def test_the_first_unreachable_host_ends_it_without_a_second_try(
    fetcher: Fetcher, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalkit.sources.fetch.GRACE_SECONDS", 0.01)
    pins = [pin_of(f"http://{host}/{name}.json", BODY) for name in range(20)]
    with pytest.raises(UnreachableError, match="no network: ") as caught:
        # Whoever waits for a second try waits for ever.
        replace(fetcher, pause=wait_fixed(3600)).fetch(pins)
    assert f"{urlsplit(f'//{host}').hostname} is unreachable" in caught.value.what


def test_an_unreachable_host_beside_one_that_answers_is_about_its_files(site: Site, fetcher: Fetcher) -> None:
    here = pin_of(site.serve("/a", whole(BODY)), BODY)
    file, error = fetch(fetcher, here, pin_of("http://127.0.0.1:9/a.json", BODY))
    assert isinstance(file, SourceFile) and isinstance(error, UnreachableError)


def test_a_wrong_hash_names_both_and_keeps_nothing(site: Site, fetcher: Fetcher) -> None:
    pin = pin_of(site.serve("/a.tsv", whole(b"tampered")), BODY)
    text = refusal(fetcher, pin)
    assert pin.sha256 in text and hashlib.sha256(b"tampered").hexdigest() in text
    assert kept(fetcher) == []


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"<!DOCTYPE html><html><body>log in</body></html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (BODY.replace(b"\n", b"\r\n"), "line ends"),
        (BODY[:1000], "1000 of"),
    ],
    ids=["html", "lfs", "crlf", "truncated"],
)
def test_a_wrong_file_is_recognised(site: Site, fetcher: Fetcher, body: bytes, hint: str) -> None:
    assert hint in refusal(fetcher, pin_of(site.serve("/a.tsv", whole(body)), BODY))
    assert kept(fetcher) == []


def test_html_in_place_of_an_unpinned_archive(site: Site, fetcher: Fetcher) -> None:
    site.serve("/login", whole(b"\n <HTML><title>Sign in</title>", {"Content-Type": "text/html"}))
    url = site.serve("/data.tar.gz", status(302, {"Location": "/login"}))
    assert "HTML page" in refusal(fetcher, pin_of(url))
    assert kept(fetcher) == []


def test_redirects_are_followed(site: Site, fetcher: Fetcher) -> None:
    site.serve("/there", whole(BODY))
    url = site.serve("/here", status(301, {"Location": "/there"}))
    assert fetch_bytes(fetcher, pin_of(url, BODY)) == BODY


def test_a_redirect_to_itself_ends(site: Site, fetcher: Fetcher) -> None:
    url = site.serve("/loop", status(302, {"Location": "/loop"}))
    assert "redirect" in refusal(fetcher, pin_of(url, BODY)).lower()


def test_bytes_are_kept_as_stored(site: Site, fetcher: Fetcher) -> None:
    """Servers label .tar.gz as gzip-encoded; unpacking it on the way would change its hash."""
    packed = bytes.fromhex("1f8b08000000000000034bcc2d00a1b2c3d4")
    url = site.serve("/a.tar.gz", whole(packed, {"Content-Encoding": "gzip"}))
    assert fetch_bytes(fetcher, pin_of(url, packed)) == packed


def test_the_git_blob_id_is_a_pin(site: Site, fetcher: Fetcher) -> None:
    # The blob id of "hello\n", as `git hash-object` prints it.
    known = {"git_blob": "ce013625030ba8dba906f756967f9e9ca394464a"}
    assert fetch_bytes(fetcher, pin_of(site.serve("/a", whole(b"hello\n")), **known)) == b"hello\n"
    assert "git blob id" in refusal(fetcher, pin_of(site.serve("/b", whole(b"hello\r\n")), **known))


def test_a_damaged_cache_is_fetched_again(site: Site, fetcher: Fetcher) -> None:
    pin = pin_of(site.serve("/a", whole(BODY)), BODY)
    (file,) = fetch(fetcher, pin)
    assert isinstance(file, SourceFile)
    file.path.write_bytes(BODY[:-1])
    assert fetch_bytes(fetcher, pin) == BODY


def test_offline_asks_no_server(site: Site, fetcher: Fetcher) -> None:
    pin = pin_of(site.serve("/a", whole(BODY)), BODY)
    closed = Fetcher(offline=True, cache=fetcher.cache)
    assert "offline" in refusal(closed, pin)
    assert site.requests == []
    fetch_bytes(fetcher, pin)
    assert fetch_bytes(closed, pin) == BODY
    assert len(site.requests) == 1


def test_a_stopped_download_leaves_nothing(site: Site, tmp_path: Path) -> None:
    stop = threading.Event()
    pin, target = pin_of(site.serve("/a", whole(BODY)), BODY), tmp_path / "a"
    with new_client() as client:
        downloader = Downloader(client, wait_none(), stop)
        with pytest.raises(StoppedError):
            downloader.download(pin, target, lambda done, size: stop.set())
        assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]
        # Nor does it wait for another command's download.
        with FileLock(f"{target}.lock"), pytest.raises(StoppedError):
            downloader.download(pin, target)
        stop.clear()
        downloader.download(pin, target)
    assert target.read_bytes() == BODY


def test_ctrl_c_keeps_the_files_that_are_complete(site: Site, fetcher: Fetcher) -> None:
    def slow(handler: Handler) -> None:
        handler.reply(200, BODY[:100], {}, announced=len(BODY))
        for start in range(100, len(BODY), 100):
            time.sleep(0.01)
            handler.wfile.write(BODY[start : start + 100])

    pin = pin_of(site.serve("/a", slow, whole(BODY)), BODY)
    quick = pin_of(site.serve("/b", whole(BODY)), BODY)
    fetch(fetcher, quick)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fetch(fetcher, quick, pin)
    assert kept(fetcher) == [fetcher.cached(quick).name]
    assert fetch_bytes(fetcher, pin) == BODY


def test_it_says_which_file_it_works_on(
    site: Site, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_two_parts(handler: Handler) -> None:
        handler.reply(200, BODY[:100_000], {}, announced=len(BODY))
        time.sleep(0.1)
        handler.wfile.write(BODY[100_000:])

    monkeypatch.setattr("evalkit.core.progress.QUIET_SECONDS", 0.02)
    fetch(fetcher, pin_of(site.serve("/a.bin", in_two_parts), BODY))
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "fetching a.bin" and others[0].startswith("made-up: a.bin: ")


def test_a_full_disk_is_one_message(site: Site, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("evalkit.core.durable.os.fsync", full)
    (error,) = fetch(fetcher, pin_of(site.serve("/a", whole(BODY)), BODY))
    assert isinstance(error, EvalkitError) and "no space left" in str(error)
    assert kept(fetcher) == []
