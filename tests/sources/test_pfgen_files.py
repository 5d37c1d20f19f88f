"""The files of pfgen-bench: the data by their published hash, and no others."""

import shutil
from hashlib import sha1
from pathlib import Path

import pytest

from evalkit.core.errors import FetchError
from evalkit.sources.pfgen import DATA_HASH, fetch_data, fetch_files


@pytest.mark.sources
def test_the_published_data_and_no_other(mirror: Path, tmp_path: Path) -> None:
    questions, pool = fetch_data(mirror, offline=True)
    assert [(one.id, one.text) for one in questions] == [(pair.id, pair.input) for pair in pool]
    assert sum(len(one.references) for one in questions) == 127
    *data, _ = fetch_files(mirror, offline=True).values()
    found = "".join(sha1(path.read_bytes()).hexdigest() for path in data)
    assert sha1(found.encode()).hexdigest() == DATA_HASH
    shutil.copytree(mirror / "pfgen", tmp_path / "pfgen", ignore=shutil.ignore_patterns("published"))
    path = tmp_path / "pfgen" / "data" / "Q02.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace("つる".encode(), "さる".encode(), 1))
    with pytest.raises(FetchError, match=f"has a wrong hash.*\\n.*{path}"):
        fetch_data(tmp_path, offline=True)
