"""The Ray cluster, an existing one or one started on this machine, and the number of its workers.

A Ray that evalkit starts binds to the loopback address, needs a secret of this process, has no
dashboard, sends no usage statistics and leaves no files.
"""

import logging
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from evalkit.core.config import Dtype, EngineConfig
from evalkit.core.errors import EvalkitError, InputError, InterruptedRunError

# Only completions in transit are in Ray's object store: the smallest it accepts is enough.
_STORE_BYTES = 100 << 20
# Names of Unix sockets are short: the folder of Ray's may have this many bytes.
_LONGEST_FOLDER = 40
# Ray's own processes must start within 30 s, which fails on a busy machine.
_ATTEMPTS = 3
_TOO_SLOW = ("timed out", "Initialization failure")
# More threads than this speed a model up less than another worker does.
_MOST_THREADS = 8

log = logging.getLogger(__name__)

# What ends the connection or the Ray that this process began.
_begun = ExitStack()


class Node(NamedTuple):
    """A machine of the cluster; `memory` in bytes."""

    name: str
    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True)
class WorkerPlan:
    """The resources of each worker, and how many workers there should be.

    Attributes:
        cpus: CPUs that Ray reserves for a worker; below one when the user wants more workers than
            there are CPUs.
        gpus: GPUs of a worker; 0 on the CPU.
        threads: threads of a worker; None leaves the choice to torch.
        workers: the number the user wants; None: as many as fit on the nodes, also on later ones.
        memory: bytes of main memory a worker needs.
    """

    cpus: float
    gpus: int
    threads: int | None
    workers: int | None
    memory: int

    def wanted(self, nodes: Sequence[Node]) -> int:
        """The number of workers for these nodes."""
        return self.workers or sum(map(self.on, nodes))

    def on(self, node: Node) -> int:
        """The number of workers that fit on a node; one CPU stays free for the driver."""
        if self.gpus:
            return node.gpus // self.gpus
        fitting = int(_spare(node) // self.cpus)
        return min(fitting, max(1, node.memory // self.memory))


def plan(engine: EngineConfig, device: str, nodes: Sequence[Node], memory: int) -> WorkerPlan:
    """The plan for the options and the present nodes.

    Args:
        engine: the options.
        device: cuda or cpu.
        nodes: the machines.
        memory: bytes of main memory a worker needs.

    Raises:
        InputError: options that contradict each other, or no node has room for a worker.
    """
    if engine.gpus_per_worker > 1 and engine.device_map is None:
        raise InputError(
            f"a worker of {engine.gpus_per_worker} GPUs needs its model spread over them",
            where="option engine.gpus_per_worker",
            fix="add engine.device_map=auto",
        )
    if device == "cuda":
        made = WorkerPlan(1, engine.gpus_per_worker, engine.threads, engine.num_workers, memory)
        if not sum(map(made.on, nodes)):
            raise InputError(
                f"no machine of the cluster has {made.gpus} GPUs",
                where="option engine.device" if made.gpus == 1 else "option engine.gpus_per_worker",
                fix="engine.device=cpu" if made.gpus == 1 else "a smaller engine.gpus_per_worker",
            )
        return made
    return _on_cpus(engine, [node for node in nodes if node.cpus], memory)


def _on_cpus(engine: EngineConfig, nodes: Sequence[Node], memory: int) -> WorkerPlan:
    if not nodes:
        raise InputError("no machine of the cluster offers a CPU", fix="ray start --num-cpus=N")
    spare = [_spare(node) for node in nodes]
    wanted = engine.num_workers
    fair = min(sum(spare) // wanted, max(spare)) if wanted else min(*spare, _MOST_THREADS)
    threads = engine.threads or max(1, fair)
    cpus: float = min(threads, max(spare))
    if wanted and cpus * wanted > sum(node.cpus for node in nodes):
        cpus = max(node.cpus for node in nodes) / -(-wanted // len(nodes))
        cpus = math.floor(cpus) if cpus > 1 else math.floor(cpus * 1000) / 1000
    return WorkerPlan(cpus, 0, threads, wanted, memory)


def _spare(node: Node) -> int:
    return node.cpus - 1 if node.cpus > 1 else node.cpus


@cache
def _own_settings() -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # "0" makes Ray use the loopback address, on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # By default workers are nice and get no CPU time on a busy machine.
        "RAY_worker_niceness": "0",
        # Only silences a warning about CPU workers on machines with GPUs.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def workers_device(engine: EngineConfig) -> str:
    """The workers' device, cuda or cpu; asks the cluster if there is one.

    Raises:
        InputError: Ray is not installed, or `engine.device` names a single card.
        EvalkitError: there is no cluster at `engine.address`.
    """
    if find_spec("ray") is None:
        raise InputError("Ray is not installed", where="option engine=ray", fix="pip install 'evalkit[ray]'")
    name = engine.device
    if name in ("cpu", "cuda"):
        return name
    if name != "auto":
        raise InputError(
            "Ray decides which worker gets which card",
            where=f"engine.device={name}",
            fix="engine.device=auto|cpu|cuda",
        )
    if engine.address is None and not _connected():
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    connect(engine)
    return "cuda" if any(node.gpus for node in nodes()) else "cpu"


def workers_dtype(engine: EngineConfig, dtype: Dtype) -> Dtype:
    """The data type of the workers: `auto` is bfloat16 on GPUs, float32 on CPUs."""
    device = workers_device(engine)
    if dtype is not Dtype.auto:
        return dtype
    return Dtype.bfloat16 if device == "cuda" else Dtype.float32


def start(engine: EngineConfig, device: str, memory: int) -> WorkerPlan:
    """Connects to the cluster, or starts a Ray of this machine, and plans its workers.

    Args:
        engine: the options.
        device: cuda or cpu.
        memory: bytes of main memory a worker needs.

    Raises:
        InputError: options that contradict each other or ask for more than there is.
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
    if not _connected():
        fix = "ray status says whether a cluster runs there; without engine.address= one is started here"
        _init(engine.address, fix, address=engine.address)
        _begun.callback(_shutdown)


def close() -> None:
    """Ends the Ray or the connection of `start` or `connect`; a connection made elsewhere stays."""
    _begun.close()


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


def _connected() -> bool:
    # Not imported here: Ray reads some of our settings when it is imported.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _this_machine() -> Node:
    import torch

    from evalkit.engines.local.memory import free_bytes

    # The CPUs this process may use, where the system tells.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Node("here", cpus, cards, free_bytes(torch.device("cpu")))


def _start_own(*, cpus: float, gpus: int) -> None:
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _LONGEST_FOLDER - len("/evalkit-ray-12345678"):
        parent = "/tmp"
    folder = tempfile.mkdtemp(prefix="evalkit-ray-", dir=parent)
    _begun.callback(shutil.rmtree, folder, ignore_errors=True)
    _begun.callback(_set_environment, {name: os.environ.get(name) for name in _own_settings()})
    _begun.callback(_shutdown)
    _set_environment(_own_settings())
    try:
        _init(
            "this machine",
            "is the machine overloaded, or its disk full? Else engine=local",
            address="local",
            num_cpus=int(cpus),
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _temp_dir=folder,
        )
    except BaseException:
        close()
        raise


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _init(where: object, fix: str, **options: Any) -> None:
    for left in reversed(range(_ATTEMPTS)):
        try:
            with _own_signals():
                import ray

                ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=False, **options)
            return
        except ImportError as error:
            raise InputError(
                f"Ray cannot be used: {error}", where=where, fix="pip install 'evalkit[ray]'"
            ) from None
        except Exception as error:  # Ray raises exceptions of every kind, also plain `Exception`.
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            what = " ".join(lines[:2])
            if not left or not any(words in what for words in _TOO_SLOW):
                raise EvalkitError(f"no connection to Ray: {what}", where=where, fix=fix) from None
        log.warning("Ray did not start in time; trying again")


def _shutdown() -> None:
    import ray

    with _own_signals():
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restores our handler of SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        # Ray raises this for a SIGTERM while it starts.
        raise InterruptedRunError(
            "stopped while Ray was starting", fix="run the same command again"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
