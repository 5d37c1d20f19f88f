"""`serve` in a thread of the test, on a free port."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from evalkit.config import Config, EngineConfig, ModelConfig, RandomShape
from evalkit.engines import build_engine, identify
from evalkit.engines.base import Engine
from evalkit.serve.listen import endpoint_of
from evalkit.serve.worker import Worker

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1-b179c9523d0e"


@dataclass
class Running:
    """A server that runs: where it is, and the engine behind it."""

    url: str
    engine: Engine
    server: uvicorn.Server


def random_config(**options: Any) -> Config:
    """The random model on the local engine."""
    model = options.pop("model", None) or ModelConfig(name="random", random=RandomShape())
    return Config(model=model, engine=EngineConfig(name="local", device="cpu", threads=1), **options)


@contextmanager
def serving(config: Config | None = None, *, key: str | None = None) -> Iterator[Running]:
    """A server over the model of `config`."""
    config = config or random_config()
    identified = identify(config)
    with build_engine(config, identified.model) as engine:
        worker = Worker(engine, most_waiting=config.serve.max_waiting)
        app = endpoint_of(config, identified, engine, worker, key).app()
        options = uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(options)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Running(f"http://127.0.0.1:{port}/v1", engine, server)
        finally:
            server.should_exit = True
            worker.stop()
            thread.join(30)
            assert worker.join(30)


def smollm2_folder() -> Path | None:
    """The converted SmolLM2 in the user's cache, if it was made."""
    from evalkit.assets import cache_dir

    folder = cache_dir() / "models" / SMOLLM2
    return folder if folder.is_dir() else None
