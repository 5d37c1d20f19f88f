"""One worker's card, or the CPU, as the options describe it."""

import os
from dataclasses import dataclass
from typing import Literal

from evalkit.core.config import Config, Dtype

# An A100 with 80 GB: dense operations by bytes per number, and bytes per second.
_A100_TFLOPS = {2: 312.0, 4: 19.5}
_A100_BANDWIDTH = 2000.0
# What a CUDA context and the libraries hold of a card.
_CONTEXT_BYTES = 1.0e9
_WIDTHS = {Dtype.bfloat16: 2, Dtype.float16: 2, Dtype.float32: 4}


@dataclass(frozen=True)
class Hardware:
    """What one worker runs on.

    Attributes:
        kind: a card or the CPU.
        memory: bytes of one card (of the machine, on a CPU).
        context: bytes of it that are gone before weights are loaded.
        flops: operations per second at the peak, in the run's precision; None: not given.
        bandwidth: bytes per second at the peak; None: not given.
        width: bytes per number of weights and cache.
    """

    kind: Literal["cpu", "cuda"]
    memory: float
    context: float
    flops: float | None
    bandwidth: float | None
    width: int


def hardware_of(config: Config) -> Hardware:
    """The hardware that `gpus`, `gpu_memory`, `dtype` and `plan.*` describe.

    Raises:
        InputError: a number that is none of hardware's.
    """
    cpu = config.gpus == 0
    width = _WIDTHS.get(config.dtype, 4 if cpu else 2)
    tflops = config.plan.tflops or (None if cpu else _A100_TFLOPS[width])
    bandwidth = config.plan.bandwidth or (None if cpu else _A100_BANDWIDTH)
    return Hardware(
        kind="cpu" if cpu else "cuda",
        memory=_machine_bytes() if cpu else config.gpu_memory * 1e9,
        context=0.0 if cpu else _CONTEXT_BYTES,
        flops=tflops and tflops * 1e12,
        bandwidth=bandwidth and bandwidth * 1e9,
        width=width,
    )


def _machine_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
