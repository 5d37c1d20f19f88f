"""What the estimate assumes of a card, or measures of this machine's CPU."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evalkit.config import Config, Dtype
from evalkit.errors import InputError

# An A100 with 80 GB: bfloat16 operations and bytes per second, dense.
_A100_TFLOPS = 312.0
_A100_TFLOPS_FLOAT32 = 19.5
_A100_BANDWIDTH = 2000.0
# What a CUDA context and the libraries hold of a card.
_CONTEXT_BYTES = 1.0e9
_WIDTHS = {Dtype.bfloat16: 2, Dtype.float16: 2, Dtype.float32: 4}


@dataclass(frozen=True)
class Hardware:
    """One worker's card, or the CPU.

    Attributes:
        kind: what the engine runs on.
        memory: bytes of one card (of the machine, on a CPU).
        context: bytes of it that are gone before weights are loaded.
        flops: operations per second that are reached in the run's precision.
        flops_float32: the same in float32, for COMET.
        bandwidth: bytes per second that are reached.
        layer_seconds: what a layer takes in every pass besides: Python and the start of its kernels.
        width: bytes per number of weights and cache.
        source: where flops and bandwidth come from.
    """

    kind: Literal["cpu", "cuda"]
    memory: float
    context: float
    flops: float
    flops_float32: float
    bandwidth: float
    layer_seconds: float
    width: int
    source: str


def hardware_of(config: Config) -> Hardware:
    """The hardware that `gpus`, `gpu_memory`, `dtype` and `plan.*` describe.

    Raises:
        InputError: a number that is none of hardware's.
    """
    _check(config)
    plan, cpu = config.plan, config.gpus == 0
    width = _WIDTHS.get(config.dtype, 4 if cpu else 2)
    if cpu:
        source = "options" if plan.tflops and plan.bandwidth else "measured on this machine just now"
        float32 = plan.tflops_float32 or plan.tflops or measured_tflops()
        tflops = plan.tflops or float32
        bandwidth = plan.bandwidth or measured_bandwidth()
    else:
        source = "the options plan.*, by default an A100 with 80 GB: a model, not a measurement"
        float32 = plan.tflops_float32 or _A100_TFLOPS_FLOAT32
        tflops = plan.tflops or (_A100_TFLOPS if width == 2 else float32)
        bandwidth = plan.bandwidth or _A100_BANDWIDTH
    return Hardware(
        kind="cpu" if cpu else "cuda",
        memory=_machine_bytes() if cpu else config.gpu_memory * 1e9,
        context=0.0 if cpu else _CONTEXT_BYTES,
        flops=tflops * 1e12 * plan.efficiency,
        flops_float32=float32 * 1e12 * plan.efficiency,
        bandwidth=bandwidth * 1e9 * plan.bandwidth_efficiency,
        layer_seconds=plan.layer_ms / 1e3,
        width=width,
        source=source,
    )


def _check(config: Config) -> None:
    plan = config.plan
    if config.gpus < 0:
        raise InputError(f"{config.gpus} is no number of cards", where="option gpus", fix="gpus=8")
    if config.checkpoints < 1:
        raise InputError(f"{config.checkpoints} is no number of checkpoints", where="option checkpoints")
    positive = {
        "gpu_memory": config.gpu_memory,
        "plan.storage": plan.storage,
        "plan.storage_total": plan.storage_total,
        "plan.tflops": plan.tflops,
        "plan.tflops_float32": plan.tflops_float32,
        "plan.bandwidth": plan.bandwidth,
    }
    shares = {"efficiency": plan.efficiency, "bandwidth_efficiency": plan.bandwidth_efficiency}
    times = {"layer_ms": plan.layer_ms, "startup": plan.startup, "scoring_ms": plan.scoring_ms}
    for name, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{value:g} is not above 0", where=f"option {name}")
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise InputError(f"{share:g} is no share between 0 and 1", where=f"option plan.{name}")
    for name, seconds in times.items():
        if not 0 <= seconds < math.inf:
            raise InputError(f"{seconds:g} is no time", where=f"option plan.{name}")


def _machine_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def measured_tflops(clock: Callable[[], float] = time.perf_counter) -> float:
    """Float32 operations of a matrix product in 1e12 per second of `clock`: the best of a few."""
    matrix = np.ones((1024, 1024), dtype=np.float32)
    return 2 * len(matrix) ** 3 / _best(lambda: matrix @ matrix, clock) / 1e12


def measured_bandwidth(clock: Callable[[], float] = time.perf_counter) -> float:
    """GB that reading an array takes in, per second of `clock`: the best of a few."""
    array = np.ones(2**25, dtype=np.float32)
    return array.nbytes / _best(array.max, clock) / 1e9


def _best(work: Callable[[], object], clock: Callable[[], float], rounds: int = 5) -> float:
    seconds = []
    for _ in range(rounds):
        begin = clock()
        work()
        seconds.append(clock() - begin)
    return min(seconds)
