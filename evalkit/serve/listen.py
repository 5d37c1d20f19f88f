"""Where the endpoint listens, who may call it, and how it ends."""

import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evalkit.config import Config
from evalkit.engines import build_engine, identify
from evalkit.errors import InputError
from evalkit.identity import GENERATION_VERSION

if TYPE_CHECKING:
    from evalkit.engines.base import Engine, Identified
    from evalkit.serve.app import Endpoint
    from evalkit.serve.worker import Worker

KEY = "EVALKIT_API_KEY"
# How long open calls and the engine may take to end.
_GRACE_SECONDS = 5
_LAST_PORT = 65535


def serve(config: Config, *, say: Callable[[str], None]) -> bool:
    """Serves a model until Ctrl-C or SIGTERM; whether the engine's thread has ended too.

    Raises:
        InputError: no model, another engine than the local one, a host beyond loopback without a
            key, an address that is taken or not this machine's, or starlette is not installed.
        EvalkitError: the model cannot be had or loaded.
    """
    if config.model is None:
        raise InputError(
            "no model is given", fix="serve model=smollm2-135m   (python -m evalkit list models)"
        )
    if config.engine.name != "local":
        raise InputError("serve is about the local engine", where="option engine", fix="engine=local")
    if config.generation.from_model:
        raise InputError("the requests decide the sampling", where="option generation.from_model")
    _need_packages()
    key = os.environ.get(KEY, "").strip() or None
    with _listening(config, key) as listener:
        identified = identify(config)
        with build_engine(config, identified.model) as engine:
            return _run(config, identified, engine, listener, key, say)


def _run(
    config: Config,
    identified: "Identified",
    engine: "Engine",
    listener: socket.socket,
    key: str | None,
    say: Callable[[str], None],
) -> bool:
    from evalkit.serve.worker import Worker

    worker = Worker(engine, most_waiting=config.serve.max_waiting)
    endpoint = endpoint_of(config, identified, engine, worker, key)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def started() -> None:
        say(f"serving {identified.model.name} at {address}   (Ctrl-C ends it)")
        need = f"   (the key in {KEY})" if key else ""
        option = f" engine.api_key_env={KEY}" if key else ""
        command = f"model=served suite=sample engine=api engine.base_url={address}{option}"
        say(f"  python -m evalkit {command}{need}")

    try:
        _listen(endpoint.app(), listener, started, worker.stop)
    finally:
        worker.stop()
        ended = worker.join(_GRACE_SECONDS)
    say("stopped")
    return ended


def endpoint_of(
    config: Config, identified: "Identified", engine: "Engine", worker: "Worker", key: str | None
) -> "Endpoint":
    """The endpoint over an engine that `worker` runs; callers must send `key` where there is one."""
    from evalkit.engines.loading import load_tokenizer
    from evalkit.serve.app import Endpoint
    from evalkit.serve.asked import Served

    tokenizer = load_tokenizer(identified.model)
    served = Served(identified.model.name, tokenizer, len(tokenizer), config.serve.max_tokens)
    told = _told(config, identified, engine)
    return Endpoint(served, worker, told, key=key, max_body=config.serve.max_body)


def _told(config: Config, identified: "Identified", engine: "Engine") -> dict[str, Any]:
    from evalkit import __version__

    facts = engine.describe()
    return {
        "version": __version__,
        "generation_version": GENERATION_VERSION,
        "family": identified.family,
        "name": identified.model.name,
        "identity": identified.model.identity,
        "dtype": identified.dtype,
        "bos": config.protocol.bos.value,
        "generation_config": facts.get("generation_config") or {},
        "engine": facts,
    }


@contextmanager
def _listening(config: Config, key: str | None) -> Iterator[socket.socket]:
    """A socket bound to the address asked for, before the model is loaded: a mistake shows at once."""
    host, port = config.serve.host, config.serve.port
    where = f"serve.host={host} serve.port={port}"
    if not 0 <= port <= _LAST_PORT:
        raise InputError(f"ports go from 0 to {_LAST_PORT}", where=where)
    try:
        # No name at all would mean every address of the machine.
        family, _, _, _, address = socket.getaddrinfo(host or "?", port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise InputError("not an address of this machine", where=where) from None
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback and key is None:
        raise InputError(
            "without a key only this machine may call",
            where=f"serve.host={host}",
            fix=f"export {KEY}=A_LONG_SECRET, or leave serve.host at 127.0.0.1",
        )
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise InputError(
                f"cannot listen there: {error.strerror}", where=where, fix="serve.port=0 takes a free one"
            ) from None
        yield listener


def _listen(app: Any, listener: socket.socket, started: Callable[[], None], stop: Callable[[], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Calls that wait for the engine end now, not when their answers are made.
            stop()
            await super().shutdown(sockets)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # The base class raises the signal again at the end; here it means: done.
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    options = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    Server(options).run(sockets=[listener])
    sys.stdout.flush()


def _need_packages() -> None:
    import importlib.util

    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise InputError(
            "serve needs starlette and uvicorn", fix="pip install 'evalkit[serve]'   (make install has them)"
        )
