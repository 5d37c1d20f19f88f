"""Sweeps of small random models, run for real."""

from pathlib import Path

import pytest
from sweeps import COMMON, Records, Sweep, records

from evalkit.__main__ import main


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """The records of both models, made by single commands in this process."""
    out = tmp_path_factory.mktemp("single")
    for seed in (0, 1):
        assert main(["model=random", f"model.random.seed={seed}", *COMMON, f"out={out}"]) == 0
    return records(out)
