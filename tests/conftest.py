"""Fixtures shared by all tests."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from evalkit.sources.prepare import PreparedReport

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT.parent / "shared" / "sources"


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The mirror of upstream files beside the checkout; tests that need it skip where it is absent."""
    if not SOURCES.is_dir():
        reason = "the mirror ../shared/sources is not here"
        if os.environ.get("EVALKIT_REQUIRE_SOURCES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return SOURCES


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EVALKIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `reports` prepares into."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def reports(mirror: Path, data_dir: Path) -> "dict[str, PreparedReport]":
    """Everything the mirror can give, prepared once into `data_dir`, by dataset."""
    from evalkit.sources.fetch import Fetcher
    from evalkit.sources.mirror import Mirror
    from evalkit.sources.prepare import prepare
    from evalkit.tasks.spec import load_spec, task_names

    specs = [load_spec(name) for name in task_names()]
    # A cache of its own: nothing fetched earlier may help.
    fetcher = Fetcher(Mirror.open(mirror), cache=data_dir / "no-cache")
    return {report.dataset: report for report in prepare(specs, data_dir, fetcher=fetcher)}
