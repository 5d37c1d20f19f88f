"""Sweeps of small models, run for real."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeps import COMMON, Records, Sweep, answer, records

from evalkit.__main__ import main
from tests.mtbench.fault_server import FaultServer


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


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Serves a model: a job that asks it starts in a fraction of the time that torch takes to import."""
    with FaultServer() as server:
        server.choose = answer
        yield server


@pytest.fixture
def served(server: FaultServer) -> list[str]:
    """The words for the model of `server`, which is asked for one answer at a time."""
    words = ["model=served", "model.name=served", "engine=api", "engine.concurrency=1"]
    return [*words, f"engine.base_url={server.url}"]
