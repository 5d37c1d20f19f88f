"""The Ray cluster, an existing one or one started on this machine, and the number of its workers.

A Ray that evalkit starts binds to the loopback address, needs a secret of this process, has no
dashboard, sends no usage statistics and leaves no files.
"""

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from tenacity import Retrying, retry_if_exception_message, stop_after_attempt

from evalkit.core.config import Dtype, EngineConfig
from evalkit.core.errors import EvalkitError, InputError, InterruptedRunError, foreign

log = logging.getLogger(__name__)

# Only completions in transit are in Ray's object store: the smallest it accepts is enough.
_STORE_BYTES = 100 << 20
# More threads than this speed a model up less than another worker does.
_MOST_THREADS = 8
# What Ray reserves for a worker when the user wants more workers than there are CPUs.
_SHARE_OF_A_CPU = 0.001
# Ray's own processes must start within 30 s, which fails on a busy machine; then it is tried again.
_ATTEMPTS = 3
_TOO_SLOW = "(?is).*(timed out|initialization failure)"
# The names of sockets must be short: a longer temporary folder has no room for Ray's.
_LONGEST_FOLDER = 22
# Ray reads these when it is imported or started.
_OWN_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # "0" makes Ray use the loopback address, on Linux too.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # By default workers are nice and get no CPU time on a busy machine.
    "RAY_worker_niceness": "0",
}

# What ends the connection or the Ray that this process began.
_begun = ExitStack()


class Node(NamedTuple):
    """A machine of the cluster; `memory` in bytes."""

    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True)
class WorkerPlan:
    """The resources of each worker, and how many workers there should be.

    Attributes:
        cpus: CPUs that Ray reserves for a worker; 0 for one with GPUs.
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
        return min(int(_spare(node) // self.cpus), max(1, node.memory // self.memory))


def plan(engine: EngineConfig, device: str, nodes: Sequence[Node], memory: int) -> WorkerPlan:
    """The plan for the options and the present nodes; a worker needs `memory` bytes of main memory.

    Raises:
        InputError: no node has room for a worker.
    """
    wanted = engine.num_workers
    if device == "cuda":
        made = WorkerPlan(0, engine.gpus_per_worker, engine.threads, wanted, memory)
        # Machines may still join a cluster, not a Ray of this machine.
        least = wanted or 1 if engine.address is None else 1
        lacking = f"{least * made.gpus} GPUs"
        fix = "engine.device=cpu, or a smaller engine.gpus_per_worker or engine.num_workers"
    else:
        spare = [_spare(node) for node in nodes if node.cpus]
        most = max(spare, default=1)
        fair = min(sum(spare) // wanted, most) if wanted else min([*spare, _MOST_THREADS])
        threads = engine.threads or max(1, fair)
        fits = min(threads, most) * (wanted or 1) <= sum(node.cpus for node in nodes)
        made = WorkerPlan(min(threads, most) if fits else _SHARE_OF_A_CPU, 0, threads, wanted, memory)
        least, lacking, fix = 1, "a CPU for workers", "ray start --num-cpus=N"
    if sum(map(made.on, nodes)) < least:
        raise InputError(f"no machine of the cluster has {lacking}", where="engine=ray", fix=fix)
    return made


def _spare(node: Node) -> int:
    return node.cpus - 1 if node.cpus > 1 else node.cpus


def workers_device(engine: EngineConfig) -> str:
    """The workers' device, cuda or cpu; asks the cluster if there is one.

    Raises:
        InputError: Ray is not installed, or not with what `engine.address` needs; options that
            contradict each other.
        EvalkitError: there is no cluster at `engine.address`.
    """
    if find_spec("ray") is None:
        raise InputError("Ray is not installed", where="option engine=ray", fix="pip install 'evalkit[ray]'")
    if str(engine.address).startswith("ray://") and find_spec("grpc") is None:
        raise InputError("ray:// needs grpc", where="option engine.address", fix="pip install 'ray[client]'")
    if engine.gpus_per_worker > 1 and engine.device_map is None:
        raise InputError(
            f"a worker of {engine.gpus_per_worker} GPUs needs its model spread over them",
            where="option engine.gpus_per_worker",
            fix="add engine.device_map=auto",
        )
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


def connect(engine: EngineConfig) -> None:
    """Connects to `engine.address`, or starts a Ray of this machine; keeps a connection there is.

    Raises:
        InputError: Ray cannot be imported.
        EvalkitError: there is no cluster, it runs another version of Ray or Python, or Ray cannot be
            started here.
    """
    if _connected():
        return
    fix = "ray status says whether a cluster runs there; engine.address=null starts one here"
    if engine.address is None:
        fix = "is the machine overloaded, or its disk full? Else engine=local"
    where = engine.address or "this machine"
    with foreign("no connection to Ray", where=where, fix=fix, raises=EvalkitError), _our_sigterm():
        options: dict[str, Any] = {"address": engine.address} if engine.address else _own()
        with foreign("Ray cannot be used", where="option engine=ray", fix="pip install 'evalkit[ray]'"):
            import ray

        _begun.callback(ray.shutdown)
        retrying = Retrying(
            retry=retry_if_exception_message(match=_TOO_SLOW),
            stop=stop_after_attempt(_ATTEMPTS),
            before_sleep=lambda _: log.warning("Ray did not start in time; it is tried again"),
            reraise=True,
        )
        retrying(ray.init, log_to_driver=False, logging_level="ERROR", **options)


def _own() -> dict[str, Any]:
    """The environment and folder, until `close`, and the options for a Ray of this machine."""
    import torch

    # The last callback is the first: our settings go, then what was there comes back.
    _begun.callback(os.environ.update, {k: v for k, v in os.environ.items() if k in _OWN_SETTINGS})
    for name in _OWN_SETTINGS:
        _begun.callback(os.environ.pop, name, None)
    os.environ.update(_OWN_SETTINGS)
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"
    folder = tempfile.mkdtemp(prefix="evalkit-", dir=parent)
    _begun.callback(shutil.rmtree, folder, ignore_errors=True)
    return {
        "address": "local",
        # The CPUs this process may use, where the system tells.
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "num_gpus": torch.cuda.device_count(),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_temp_dir": folder,
    }


@contextmanager
def _our_sigterm() -> Iterator[None]:
    """Restores our handler of SIGTERM; Ray's raises SystemExit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise InterruptedRunError(
            "stopped while Ray was starting", fix="run the same command again"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def close() -> None:
    """Ends the Ray or the connection of `connect`; a connection made elsewhere stays."""
    _begun.close()


def nodes() -> list[Node]:
    """The machines of the cluster that are alive.

    Raises:
        EvalkitError: the connection is lost, or no machine is left.
    """
    import ray

    fix = "run the same command again: it continues (a cluster must be started again first)"
    with foreign("the connection to Ray is lost", where="engine=ray", fix=fix, raises=EvalkitError):
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not alive:
        raise EvalkitError("Ray has died: no machine is left, not even this one", where="engine=ray", fix=fix)
    return [Node(*(int(has.get(name, 0)) for name in ("CPU", "GPU", "memory"))) for has in alive]


def _connected() -> bool:
    # Not imported here: Ray reads some of our settings when it is imported.
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
