"""The files of pfgen-bench: the data by their published hash, and no others."""

import shutil
from pathlib import Path

import pytest

from evalkit.core.errors import InputError
from evalkit.sources.pfgen import fetch_data, read_data


@pytest.mark.sources
def test_the_published_data_and_no_other(mirror: Path, tmp_path: Path) -> None:
    questions, pool = fetch_data(mirror, offline=True)
    assert [(one.id, one.text) for one in questions] == [(pair.id, pair.input) for pair in pool]
    assert sum(len(one.references) for one in questions) == 127
    folder = tmp_path / "data"
    shutil.copytree(mirror / "pfgen" / "data", folder)
    path = folder / "Q02.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace("つる".encode(), "さる".encode(), 1))
    with pytest.raises(InputError, match="not the published data"):
        read_data(sorted(folder.glob("Q*.json")))
