"""How many workers a cluster gets, and what each of them may use."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evalkit.core.config import EngineConfig
from evalkit.core.errors import InputError

# A model on more CPUs than this gains little; another worker gains more.
_MOST_THREADS = 8


class Node(NamedTuple):
    """What a machine of the cluster has; `memory` in bytes."""

    name: str
    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True)
class WorkerPlan:
    """What each worker gets, and how many there should be.

    Attributes:
        device: cuda or cpu.
        cpus: CPUs Ray sets aside for a worker; less than one where the user wants more workers than
            there are CPUs.
        gpus: GPUs of a worker; 0 on the CPU.
        threads: threads of a worker; None leaves the choice to torch.
        workers: how many the user wants; None: what the nodes allow, also nodes that come later.
        memory: bytes of main memory a worker needs.
    """

    device: str
    cpus: float
    gpus: int
    threads: int | None
    workers: int | None
    memory: int

    def wanted(self, nodes: Sequence[Node]) -> int:
        """Workers there should be on these nodes."""
        return self.workers or sum(map(self.on, nodes))

    def on(self, node: Node) -> int:
        """Workers that fit on a node; one CPU is left for whoever writes and hands out."""
        if self.gpus:
            return node.gpus // self.gpus
        fitting = int(_spare(node) // self.cpus)
        return min(fitting, max(1, node.memory // self.memory))


def plan(engine: EngineConfig, device: str, nodes: Sequence[Node], memory: int) -> WorkerPlan:
    """The plan for the options and the nodes there are now.

    Args:
        engine: the options.
        device: cuda or cpu.
        nodes: the machines.
        memory: bytes of main memory a worker needs.

    Raises:
        InputError: options that contradict each other, or no node that could have a worker.
    """
    if engine.gpus_per_worker > 1 and engine.device_map is None:
        raise InputError(
            f"a worker of {engine.gpus_per_worker} GPUs needs its model spread over them",
            where="option engine.gpus_per_worker",
            fix="add engine.device_map=auto",
        )
    if device == "cuda":
        made = WorkerPlan("cuda", 1, engine.gpus_per_worker, engine.threads, engine.num_workers, memory)
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
    return WorkerPlan("cpu", cpus, 0, threads, wanted, memory)


def usable_cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spare(node: Node) -> int:
    return node.cpus - 1 if node.cpus > 1 else node.cpus
