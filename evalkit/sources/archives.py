"""Reads the members of untrusted archives as bytes; no path of an archive is ever created on disk."""

import gzip
import hashlib
import lzma
import stat
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from evalkit.core.errors import first_line
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import SourceError

MAX_MEMBER_BYTES = 64 * 2**20
MAX_TOTAL_BYTES = 4 * 2**30
MAX_MEMBERS = 200_000

_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


class SourceWarning(UserWarning):
    """An upstream file is not the pinned one but can be read; the prepared file's hash decides."""


def members(file: SourceFile) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members that the file's pin names, in the order of the archive.

    Raises:
        SourceError: not a whole tar or zip archive, a member that leads outside, is a link where a
            file is read, or is too large; too many members; members missing.
    """
    count = 0
    try:
        for name, data in _zip(file) if zipfile.is_zipfile(file.path) else _tar(file):
            count += 1
            yield name, data
    except _BROKEN as error:
        reason = first_line(error).rstrip(":")
        raise SourceError(f"not a whole archive: {reason}", file) from None
    expected = file.pin.member_count
    if expected is not None and count != expected:
        raise SourceError(f"the archive has {count} of the {expected} members that are needed", file)


def check_members(file: SourceFile, contents: Mapping[str, str]) -> None:
    """Warns when members are not the pinned ones.

    Args:
        file: the archive; its pin may hold a digest of members.
        contents: name -> sha256 of the pinned members.
    """
    if file.pin.members_sha256 and members_digest(contents.items()) != file.pin.members_sha256:
        warnings.warn(SourceWarning(f"the members of {file.pin.name} are not the known ones"), stacklevel=2)


def members_digest(contents: Iterable[tuple[str, str]]) -> str:
    """sha256 over the lines `sha256  name` of (name, sha256), sorted by name."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(contents))
    return hashlib.sha256(lines.encode()).hexdigest()


def checked_members(file: SourceFile) -> dict[str, bytes]:
    """All members the pin names, by name, checked against it."""
    contents = dict(members(file))
    check_members(file, {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})
    return contents


def _zip(file: SourceFile) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file.path) as archive:
        limit = _Limit(file)
        for info in archive.infolist():
            is_file = not info.is_dir()
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            if limit.admits(info.filename, info.file_size, is_file, is_link):
                try:
                    yield info.filename, archive.read(info)
                except (NotImplementedError, RuntimeError) as error:
                    raise SourceError(f"cannot be read: {error}", file, info.filename) from None


def _tar(file: SourceFile) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(file.path, "r:*") as archive:
        limit = _Limit(file)
        for info in archive:
            if limit.admits(info.name, info.size, not info.isdir(), not (info.isfile() or info.isdir())):
                stream = archive.extractfile(info)
                assert stream is not None
                data = stream.read()
                if len(data) != info.size:
                    raise SourceError("the archive ends in the middle of a member", file, info.name)
                yield info.name, data


class _Limit:
    """Checks member names and counts declared sizes against limits that every known source meets."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._count = 0
        self._bytes = 0

    def admits(self, name: str, size: int, is_file: bool, is_link: bool) -> bool:
        """Whether the pin names this member.

        Raises:
            SourceError: a path out of the archive, a link, or more than the limits allow.
        """
        self._count += 1
        self._bytes += size
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise SourceError("a member of the archive leads outside of it", self._file, name)
        if self._count > MAX_MEMBERS or self._bytes > MAX_TOTAL_BYTES:
            raise SourceError("the archive unpacks to more than any known source", self._file, name)
        # macOS packs its attributes as hidden siblings, ._name, of the real files.
        hidden = path.name.startswith(".")
        wanted = any(fnmatchcase(name, pattern) for pattern in self._file.pin.members)
        if not (is_file and wanted) or hidden:
            return False
        if is_link:
            raise SourceError("a member of the archive is a link or a device", self._file, name)
        if size > MAX_MEMBER_BYTES:
            raise SourceError(f"a member of the archive is {size} bytes large", self._file, name)
        return True
