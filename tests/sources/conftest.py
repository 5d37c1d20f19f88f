"""Fixtures of the source tests: a local web server, made-up upstream files, a catalogue of made-up tasks."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from evalkit.core import assets
from evalkit.sources import pins
from tests.sources.helpers import Catalogue, Handler, Server, Site, Upstream


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on the loopback interface."""
    server = Server(("127.0.0.1", 0), Handler)
    server.site = Site(f"http://127.0.0.1:{server.server_address[1]}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def upstream(tmp_path: Path) -> Upstream:
    return Upstream(tmp_path / "upstream")


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogue]:
    folder = tmp_path / "tasks"
    folder.mkdir()
    monkeypatch.setattr(assets, "TASKS", folder)
    pins._read_table.cache_clear()
    yield Catalogue(folder)
    pins._read_table.cache_clear()
