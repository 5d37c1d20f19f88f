"""tasks/sources.csv: the URL of every upstream file, and the hashes its bytes must have.

One line per file: `source` groups the files one converter reads, `role` says which part of it a
file is, `url` is its only address. What is known about the bytes is pinned in `sha256`, `git_blob`
(the id git gives the content) and `bytes`. For an archive `members` holds the patterns of the
members that are read; `member_count` and `members_sha256` pin them (see `archives.members_digest`)
where upstream has packed the archive in several ways. `mismatch` checks a file against its pin.
"""

import csv
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evalkit.core import assets
from evalkit.core.errors import InputError
from evalkit.core.files import file_sha256

_HTML_HEADS = (b"<!doctype html", b"<html", b"<head")
_LFS_HEAD = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Pin:
    """One upstream file. Empty strings and None: not known."""

    source: str
    role: str
    url: str
    sha256: str = ""
    git_blob: str = ""
    bytes: int | None = None
    members: tuple[str, ...] = ()
    member_count: int | None = None
    members_sha256: str = ""

    @property
    def name(self) -> str:
        """The last part of the URL, for messages and file names."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def is_pinned(self) -> bool:
        """Whether the hash of the file is known."""
        return bool(self.sha256 or self.git_blob)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An upstream file on this machine; `digest` is the sha256 of its bytes."""

    path: Path
    pin: Pin
    digest: str

    @property
    def url(self) -> str:
        """Its upstream URL."""
        return self.pin.url


def pins_of(source: str) -> tuple[Pin, ...]:
    """The files of a source in the order of the table, which is also the order of conversion.

    Raises:
        InputError: the table is malformed or lacks the source.
    """
    table = assets.TASKS / "sources.csv"
    found = tuple(pin for pin in _read_table(table) if pin.source == source)
    if not found:
        raise InputError(f"no upstream files are listed for the source {source!r}", where=table)
    return found


@cache
def _read_table(path: Path) -> tuple[Pin, ...]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return tuple(_pin(row) for row in csv.DictReader(stream, strict=True))
    except OSError as error:
        raise InputError(f"cannot read the table of sources: {error.strerror}", where=path) from None
    except (KeyError, ValueError, csv.Error) as error:
        raise InputError(f"the table of sources is malformed: {error}", where=path) from None


def _pin(row: dict[str, str]) -> Pin:
    def number(key: str) -> int | None:
        return int(row[key]) if row[key] else None

    return Pin(
        source=row["source"],
        role=row["role"],
        url=row["url"],
        sha256=row["sha256"],
        git_blob=row["git_blob"],
        bytes=number("bytes"),
        members=tuple(row["members"].split()),
        member_count=number("member_count"),
        members_sha256=row["members_sha256"],
    )


def git_blob_of(path: Path) -> str:
    """The id git gives a file with this content (SHA-1 repositories), hex."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def mismatch(path: Path, pin: Pin) -> str | None:
    """Why the file is not the pinned one, with both hashes; None: it matches everything that is known."""
    expected, got, what = pin.sha256, "", "sha256"
    if expected:
        got = file_sha256(path)
    elif pin.git_blob:
        expected, got, what = pin.git_blob, git_blob_of(path), "git blob id"
    if expected == got:
        return "an HTML page instead of data" if not expected and looks_like_html(path) else None
    return f"{what} expected {expected}, got {got}{_likeness(path, pin)}"


def looks_like_html(path: Path) -> bool:
    """Whether the content begins like an HTML page, which no source is."""
    with path.open("rb") as stream:
        return stream.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML_HEADS)


def _likeness(path: Path, pin: Pin) -> str:
    size = path.stat().st_size
    if looks_like_html(path):
        return "; it is an HTML page instead of data"
    with path.open("rb") as stream:
        if stream.read(len(_LFS_HEAD)) == _LFS_HEAD:
            return "; it is a Git LFS pointer instead of data"
    if pin.bytes is not None and size < pin.bytes:
        return f"; {size} of {pin.bytes} bytes: cut short"
    if pin.sha256 and hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest() == pin.sha256:
        return "; only the line ends were changed (CR LF for LF)"
    return ""
