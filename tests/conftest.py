"""Fixtures shared by all tests."""

import fcntl
import gc
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from evalkit.sources.prepare import PreparedReport

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT.parent / "shared" / "sources"

# Several processes test at once: torch with a thread for each core in each of them waits most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests start need not compile evalkit again, which may take longer than the command.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(autouse=True, scope="session")
def _seen() -> set[str]:
    """Names of the modules whose objects the garbage collector leaves alone."""
    return set()


@pytest.fixture(autouse=True)
def _freeze_imports(_seen: set[str]) -> Iterator[None]:
    """An engine that closes has garbage collected; looking through torch each time would cost 0.3 s."""
    yield
    if len(sys.modules) > len(_seen) + 200:
        _seen |= sys.modules.keys()
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_sync() -> Iterator[None]:
    """No test cuts the power; waiting for the disk would be a tenth of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_width() -> Iterator[None]:
    """The readline of a process that starts test workers tells them the width of its terminal."""
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("COLUMNS", raising=False)
        yield


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
    """The folder `reports` prepares into, which all processes of a test session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prepared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def reports(mirror: Path, data_dir: Path) -> "dict[str, PreparedReport]":
    """Everything the mirror can give, prepared once into `data_dir`, by dataset."""
    with data_dir.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = data_dir.with_suffix(".pickle")
        if not kept.exists():
            kept.write_bytes(pickle.dumps(_prepared(mirror, data_dir)))
        reports: dict[str, PreparedReport] = pickle.loads(kept.read_bytes())
        return reports


def _prepared(mirror: Path, data_dir: Path) -> "dict[str, PreparedReport]":
    from evalkit.sources.fetch import Fetcher
    from evalkit.sources.mirror import Mirror
    from evalkit.sources.prepare import prepare
    from evalkit.tasks.spec import load_spec, task_names

    specs = [load_spec(name) for name in task_names()]
    # A cache of its own: nothing fetched earlier may help.
    fetcher = Fetcher(Mirror.open(mirror), cache=data_dir / "no-cache")
    return {report.dataset: report for report in prepare(specs, data_dir, fetcher=fetcher)}
