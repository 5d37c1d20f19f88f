"""Two complete runs on the same data, made once for all tests here."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.leaderboard.made import Made, make_run, write_data


@dataclass(frozen=True)
class World:
    data: Path
    results: Path
    weak: Path
    strong: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    data = write_data(root / "data", 24)
    results = root / "results"
    weak = make_run(Made("weak", 0.35, 1), data, results)
    strong = make_run(Made("strong-モデル", 0.7, 2), data, results)
    return World(data, results, weak.folder, strong.folder)
