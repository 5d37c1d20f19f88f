"""Untrusted archives: no path leads outside, no member is a link, sizes are limited."""

import hashlib
import io
import random
import tarfile
import warnings
import zipfile
from dataclasses import replace

import pytest

from evalkit.sources import archives
from evalkit.sources.archives import SourceWarning, checked_members, members, members_digest
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import SourceError
from tests.sources.helpers import Upstream

# Much larger than the padding of a tar, and hard to compress: a cut hits a member.
FILES = {"top/a.txt": random.Random(1).randbytes(90_000), "top/b.txt": random.Random(2).randbytes(90_000)}


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    return tar_of(*((tarfile.TarInfo(name), data) for name, data in files.items()), mode=mode)


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


PACKINGS = {"tar.gz": tar(FILES), "tar": tar(FILES, "w:"), "tar.xz": tar(FILES, "w:xz"), "zip": zipped(FILES)}


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_packing_gives_the_same_members(upstream: Upstream, packing: str) -> None:
    # As upstream's data.tar and the mirror's data.tar.gz of it: the name says nothing.
    assert dict(members(upstream.file("data.bin", PACKINGS[packing], "top/*.txt"))) == FILES


def test_only_named_members_are_read(upstream: Upstream) -> None:
    more = FILES | {"top/c.md": b"3", "__MACOSX/top/._a.txt": b"4", "top/._b.txt": b"5"}
    for data in (tar(more), zipped(more)):
        assert dict(members(upstream.file("data", data, "top/*.txt"))) == FILES


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("part", [0.3, 0.95])
def test_a_truncated_archive_is_named(upstream: Upstream, packing: str, part: float) -> None:
    data = PACKINGS[packing]
    file = upstream.file("data.bin", data[: int(len(data) * part)], "top/*.txt")
    file = replace(file, pin=replace(file.pin, member_count=2))
    with pytest.raises(SourceError) as refused:
        list(members(file))
    assert str(file.path) in str(refused.value) and file.url in str(refused.value)
    assert "\n- method" not in str(refused.value)


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "top/../../evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("make", [tar, zipped])
def test_a_member_that_leads_outside_is_refused(upstream: Upstream, name: str, make: object) -> None:
    assert callable(make)
    file = upstream.file("data", make(FILES | {name: b"x"}), "top/*.txt")
    with pytest.raises(SourceError, match="outside"):
        list(members(file))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_place_of_a_file_is_refused(upstream: Upstream, kind: bytes) -> None:
    link = tarfile.TarInfo("top/link.txt")
    link.type, link.linkname = kind, "/etc/passwd"
    with pytest.raises(SourceError, match="link or a device"):
        list(members(upstream.file("data", tar_of((link, b"")), "top/*.txt")))


def test_a_link_in_a_zip_is_refused(upstream: Upstream) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        link = zipfile.ZipInfo("top/link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(SourceError, match="link"):
        list(members(upstream.file("data", out.getvalue(), "top/*.txt")))


def test_sizes_are_limited(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (tar(FILES), zipped(FILES)):
        file = upstream.file("data", data, "top/*.txt")
        with monkeypatch.context() as limits:
            limits.setattr(archives, "MAX_MEMBER_BYTES", 89_999)
            with pytest.raises(SourceError, match="90000 bytes"):
                list(members(file))
        with monkeypatch.context() as limits:
            limits.setattr(archives, "MAX_TOTAL_BYTES", 179_999)
            with pytest.raises(SourceError, match="unpacks to more"):
                list(members(file))
        with monkeypatch.context() as limits:
            limits.setattr(archives, "MAX_MEMBERS", 1)
            with pytest.raises(SourceError, match="unpacks to more"):
                list(members(file))


def test_missing_members_are_counted(upstream: Upstream) -> None:
    file = upstream.file("data", tar(FILES), "top/*.txt")
    with pytest.raises(SourceError, match="2 of the 3"):
        list(members(replace(file, pin=replace(file.pin, member_count=3))))


def _pinned(file: SourceFile, contents: dict[str, bytes]) -> SourceFile:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    return replace(file, pin=replace(file.pin, members_sha256=members_digest(digests.items())))


def test_other_members_than_the_pinned_ones_are_a_warning(upstream: Upstream) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checked_members(_pinned(upstream.file("a", tar(FILES), "top/*.txt"), FILES)) == FILES
    changed = FILES | {"top/b.txt": b"changed"}
    with pytest.warns(SourceWarning, match="not the known ones"):
        checked_members(_pinned(upstream.file("b", tar(changed), "top/*.txt"), FILES))


def test_the_digest_is_that_of_sha256sum() -> None:
    # : > a; : > b; sha256sum a b | sha256sum
    empty = hashlib.sha256(b"").hexdigest()
    expected = "f87e14d51c60a125fc0bc15dbcc564d0879f9fb166d3e7107661c18b0fed579d"
    assert members_digest([("b", empty), ("a", empty)]) == expected
