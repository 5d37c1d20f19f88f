"""The connection to Ray: a cluster that runs already, or a Ray of this machine for the time of a run.

A Ray of our own binds to the loopback address, wants a secret of this process, has no dashboard,
sends no usage statistics and leaves no files.
"""

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evalkit.core.config import Config, Dtype, EngineConfig
from evalkit.core.errors import EvalkitError, InputError, InterruptedRunError
from evalkit.engines.ray.worker_plan import Node, WorkerPlan, plan, usable_cpus

# Ray keeps completions on their way only: the least it takes is plenty.
_STORE_BYTES = 100 << 20
# Unix sockets have short names: Ray's begin with a folder of at most this many bytes.
_LONGEST_FOLDER = 40
# Ray gives its own processes half a minute to start; on a busy machine that is not always enough.
_ATTEMPTS = 3
_TOO_SLOW = ("timed out", "Initialization failure")

log = logging.getLogger(__name__)


@cache
def _own_settings() -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # The name is historical: it makes Ray use the loopback address, on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Workers would give way to every other process: on a busy machine they would stand still.
        "RAY_worker_niceness": "0",
        # Only silences a warning about CPU workers on machines with GPUs.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def workers_device(config: Config) -> str:
    """cuda or cpu: where the workers compute. With an address this asks the cluster.

    Raises:
        InputError: Ray is not installed, or `engine.device` names a single card.
        EvalkitError: there is no cluster at `engine.address`.
    """
    _need_ray()
    name = config.engine.device
    if name in ("cpu", "cuda"):
        return name
    if name != "auto":
        raise InputError(
            "Ray decides which worker gets which card",
            where=f"engine.device={name}",
            fix="engine.device=auto|cpu|cuda",
        )
    if config.engine.address is None and not _connected():
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    connect(config.engine)
    return "cuda" if any(node.gpus for node in nodes()) else "cpu"


def workers_dtype(config: Config) -> Dtype:
    """The data type of the workers: `auto` is bfloat16 on GPUs, float32 on CPUs."""
    device = workers_device(config)
    if config.dtype is not Dtype.auto:
        return config.dtype
    return Dtype.bfloat16 if device == "cuda" else Dtype.float32


def start(engine: EngineConfig, device: str, memory: int) -> WorkerPlan:
    """Connects to the cluster, or starts a Ray of this machine, and plans its workers.

    Args:
        engine: the options.
        device: cuda or cpu.
        memory: bytes of main memory a worker needs.

    Raises:
        InputError: options that contradict each other or what there is.
        EvalkitError: no cluster at the address, or Ray cannot be started here.
    """
    if engine.address is None and not _connected():
        here = _this_machine()
        made = plan(engine, device, [here], memory)
        if made.gpus * made.wanted([here]) > here.gpus:
            raise InputError(
                f"engine.num_workers={engine.num_workers} with {made.gpus} GPUs each is more than "
                f"the {here.gpus} of this machine",
                where="option engine.num_workers",
                fix=f"engine.num_workers={here.gpus // made.gpus}",
            )
        _start_own(cpus=max(here.cpus, made.wanted([here]) * made.cpus), gpus=here.gpus)
        return made
    connect(engine)
    return plan(engine, device, nodes(), memory)


def connect(engine: EngineConfig) -> None:
    """Connects to `engine.address`, unless this process has a connection already.

    Raises:
        InputError: Ray, or what it needs for ray:// addresses, is not installed.
        EvalkitError: there is no cluster, or it runs another version of Ray or Python.
    """
    global _stop
    if _connected():
        return
    fix = "ray status says whether a cluster runs there; without engine.address= one is started here"
    _init_patiently(engine.address, fix, address=engine.address)
    _stop = _shutdown


def close() -> None:
    """Ends what `start` or `connect` began; a connection that others made stays."""
    global _stop
    if _stop is not None:
        stop, _stop = _stop, None
        stop()


def nodes() -> list[Node]:
    """The machines of the cluster that are alive.

    Raises:
        EvalkitError: the connection is lost.
    """
    import ray

    try:
        known = ray.nodes()
    except Exception as error:  # as in `_init`
        raise EvalkitError(
            f"the connection to Ray is lost: {error}", fix="run the same command again: it continues"
        ) from None
    listed = []
    for node in known:
        if node["Alive"]:
            has = node["Resources"]
            sizes = (int(has.get(name, 0)) for name in ("CPU", "GPU", "memory"))
            listed.append(Node(node["NodeID"], *sizes))
    return listed


_stop: Any = None


def _connected() -> bool:
    # Ray reads some of our settings when it is imported: not before they are there.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _need_ray() -> None:
    if find_spec("ray") is None:
        raise InputError("Ray is not installed", where="option engine=ray", fix="pip install 'evalkit[ray]'")


def _this_machine() -> Node:
    import torch

    from evalkit.engines.local.memory import free_bytes

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Node("here", usable_cpus(), cards, free_bytes(torch.device("cpu")))


def _start_own(*, cpus: float, gpus: int) -> None:
    global _stop
    folder = _folder()
    before = {name: os.environ.get(name) for name in _own_settings()}
    os.environ.update(_own_settings())

    def stop() -> None:
        _shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)

    _stop = stop
    try:
        _init_patiently(
            "this machine",
            "is the machine overloaded, or its disk full? Else engine=local",
            address="local",
            num_cpus=int(cpus),
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _temp_dir=str(folder),
        )
    except BaseException:
        close()
        raise


def _init_patiently(where: object, fix: str, **options: Any) -> None:
    for left in reversed(range(_ATTEMPTS)):
        try:
            _init(where, fix, **options)
            return
        except EvalkitError as error:
            if not left or not any(words in error.what for words in _TOO_SLOW):
                raise
            log.warning("Ray did not start in time; once more")


def _folder() -> Path:
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _LONGEST_FOLDER - len("/evalkit-ray-12345678"):
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="evalkit-ray-", dir=parent))


def _init(where: object, fix: str, **options: Any) -> None:
    try:
        with _own_signals():
            import ray

            ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=False, **options)
    except ImportError as error:
        raise InputError(
            f"Ray cannot be used: {error}", where=where, fix="pip install 'evalkit[ray]'"
        ) from None
    except EvalkitError:
        raise
    except Exception as error:  # Ray raises whatever comes to hand, also plain `Exception`.
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise EvalkitError(f"no connection to Ray: {' '.join(lines[:2])}", where=where, fix=fix) from None


def _shutdown() -> None:
    import ray

    with _own_signals():
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps Ray's handler of SIGTERM from staying in place of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        # Ray's own way of taking a SIGTERM while it starts.
        raise InterruptedRunError(
            "stopped while Ray was starting", fix="run the same command again"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
