"""A folder that replaces the network."""

import hashlib
from pathlib import Path

import pytest

from evalkit.core.errors import FetchError, InputError
from evalkit.sources.fetch import Fetcher
from evalkit.sources.mirror import Mirror
from evalkit.sources.pins import SourceFile
from tests.sources.helpers import pin_of

URL = "https://upstream.example/data.tsv"
HEADER = "local_path,upstream_url,sha256,bytes,license\n"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def lay(folder: Path, name: str, data: bytes, url: str = URL, digest: str | None = None) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    manifest = folder / "MANIFEST.csv"
    text = manifest.read_text() if manifest.exists() else HEADER
    manifest.write_text(f"{text}{name},{url},{digest or sha(data)},{len(data)},CC0\n")


def test_manifests_at_and_below_the_folder_are_read(tmp_path: Path) -> None:
    lay(tmp_path, "a/data.tsv", b"one")
    lay(tmp_path / "deep" / "er", "x.bin", b"two", url="https://upstream.example/other")
    mirror = Mirror.open(tmp_path)
    assert mirror.find(URL) == (tmp_path / "a/data.tsv", sha(b"one"))
    assert mirror.find("https://upstream.example/other") == (tmp_path / "deep/er/x.bin", sha(b"two"))
    assert mirror.find("https://upstream.example/none") is None


def test_a_second_copy_serves_when_the_first_is_damaged(tmp_path: Path) -> None:
    lay(tmp_path, "a.tsv", b"bad", digest=sha(b"good"))
    lay(tmp_path, "b.tsv", b"good")
    assert Mirror.open(tmp_path).find(URL) == (tmp_path / "b.tsv", sha(b"good"))


def test_a_damaged_copy_is_named_with_both_hashes(tmp_path: Path) -> None:
    lay(tmp_path, "a.tsv", b"bad", digest=sha(b"good"))
    with pytest.raises(FetchError) as refused:
        Mirror.open(tmp_path).find(URL)
    for part in (str(tmp_path / "a.tsv"), URL, sha(b"good"), sha(b"bad")):
        assert part in str(refused.value)


def test_a_missing_copy_is_named(tmp_path: Path) -> None:
    lay(tmp_path, "a.tsv", b"good")
    (tmp_path / "a.tsv").unlink()
    with pytest.raises(FetchError, match=r"a\.tsv"):
        Mirror.open(tmp_path).find(URL)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_path_out_of_the_mirror_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "MANIFEST.csv").write_text(f"{HEADER}{path},{URL},{sha(b'')},0,CC0\n")
    with pytest.raises(InputError, match="line 2"):
        Mirror.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("path,url\n", "columns are missing"), (f"{HEADER}a.tsv,,,\n", "incomplete"), ('"', "CSV")],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "MANIFEST.csv").write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        Mirror.open(tmp_path)
    assert "MANIFEST.csv" in str(refused.value)


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Mirror.open(tmp_path / "none")
    with pytest.raises(InputError, match=r"MANIFEST\.csv"):
        Mirror.open(tmp_path)


def test_the_mirror_replaces_the_network(tmp_path: Path) -> None:
    lay(tmp_path / "mirror", "a.tsv", b"good")
    fetcher = Fetcher(Mirror.open(tmp_path / "mirror"), cache=tmp_path / "cache")
    there, wrong, absent = (
        pin_of(URL, b"good"),
        pin_of(URL, b"another"),
        pin_of("https://upstream.example/none.tsv", b"x"),
    )
    found = fetcher.fetch([there, wrong, absent])
    assert isinstance(file := found[there], SourceFile)
    assert file.path == tmp_path / "mirror/a.tsv"
    assert "not the pinned one" in str(found[wrong])
    assert "not in the mirror" in str(found[absent]) and absent.url in str(found[absent])
