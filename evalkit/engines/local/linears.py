"""The linear layers of a model on the CPU, on the products of torch's oneDNN where these are faster.

torch's default product is MKL's. On some processors (AMD with AVX-512) it reaches half of what oneDNN
reaches on a weight that was laid out for it once. On others both are equal for many rows, and oneDNN
wins where few rows meet a weight that exceeds the cache, as in decoding. So both are measured once on
fixed shapes, and the layers that gain are switched. Each shape is held against the default product first.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from evalkit.core.errors import first_line
from evalkit.engines.local.memory import give_back_freed

log = logging.getLogger(__name__)

# Rows, inputs and outputs of the products that are measured: a pass of prompts, a step of decoding.
_MANY, _FEW = (512, 1024, 1024), (16, 2048, 7168)
# oneDNN is taken where it is this many times as fast; packing takes time too, and timings are rough.
_MANY_GAIN, _FEW_GAIN = 1.4, 1.2
# For few rows only if it does not cost more than this for many.
_MANY_LOSS = 0.85
_TRIALS = 8
# Most rows that are few.
_FEW_ROWS = 128
# Largest relative difference from the default product that rounding explains.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Gains(NamedTuple):
    """Where oneDNN's product is faster than torch's default.

    Attributes:
        many: for many rows, on a weight in its own layout.
        few: for few rows, on such a weight, and not much slower for many.
        direct: for few rows, on a weight as it is.
    """

    many: bool
    few: bool
    direct: bool = False


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., outputs]: `rows` [..., inputs] times the transposed `weight`, by oneDNN."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return made


@cache
@torch.inference_mode()
def gains(dtype: torch.dtype) -> Gains:
    """What oneDNN gains on this processor; nothing where torch cannot use it for `dtype`."""
    if not _supported(dtype):
        return Gains(many=False, few=False)
    many, few = _gain(*_MANY, dtype), _gain(*_FEW, dtype)
    direct = _gain(*_FEW, dtype, packed=False)
    found = Gains(many > _MANY_GAIN, few > _FEW_GAIN and many > _MANY_LOSS, direct > _FEW_GAIN)
    text = "oneDNN's products in %s: %.2f times as fast for many rows, %.2f for few, %.2f unpacked"
    log.info(text, dtype, many, few, direct)
    return found


def _supported(dtype: torch.dtype) -> bool:
    available: Callable[[], bool] = torch.backends.mkldnn.is_available
    if not available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


def _gain(rows: int, inputs: int, outputs: int, dtype: torch.dtype, *, packed: bool = True) -> float:
    """How many times as fast as the default product oneDNN's is; the two take turns."""
    given, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    laid_out = _reorder(weight) if packed else weight
    default, other = [], []
    for _ in range(1 + _TRIALS):
        default.append(_seconds(lambda: linear(given, weight)))
        other.append(_seconds(lambda: product(given, laid_out)))
    return min(default[1:]) / min(other[1:])


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _reorder(weight: Tensor) -> Tensor:
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _MANY[0])
    return laid_out


class PackedLinear(nn.Linear):
    """A linear layer whose weight is kept in oneDNN's layout only."""

    packed: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """A copy of the weight in the usual layout, [outputs, inputs]."""
        return self.packed.to_dense()

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`."""
        return product(input, self.packed, self.bias)


class DirectLinear(nn.Linear):
    """A linear layer on oneDNN's product, for at most `most` rows where given; its weight stays as it is.

    So it is with a head that is tied to the embeddings.
    """

    most: int | None

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`."""
        if self.most is not None and input.numel() > self.most * self.in_features:
            return linear(input, self.weight, self.bias)
        return product(input, self.weight, self.bias)


class _Gated:
    """The forward of a gated feed-forward block: in place, or as part of the products on packed weights."""

    def __init__(self, block: Any) -> None:
        self._block = block
        self._silu = _is_silu(block.act_fn)

    def __call__(self, hidden: Tensor) -> Tensor:
        block = self._block
        gate, up = block.gate_proj, block.up_proj
        if self._silu and type(gate) is type(up) is PackedLinear:
            operation = torch.ops.mkldnn._linear_pointwise
            if gains(hidden.dtype).many:
                inner = operation(hidden, gate.packed, gate.bias, "swish", [], "")
            else:
                # Without AVX-512 oneDNN's SiLU is slower than torch's.
                inner = silu(gate(hidden), inplace=True)
            inner = operation.binary(hidden, inner, up.packed, up.bias, "mul")
        else:
            inner = block.act_fn(gate(hidden)).mul_(up(hidden))
        made: Tensor = block.down_proj(inner)
        return made


def _is_silu(activation: Any) -> bool:
    sample = torch.linspace(-8, 8, 33)
    return bool(torch.equal(activation(sample), silu(sample)))


def speed_up(model: nn.Module) -> None:
    """Switches the layers that gain by it, on the CPU. No weight is in memory twice.

    A head that is tied to the embeddings keeps its weight, since these are read by row.
    """
    agreed: dict[Any, bool] = {}
    shared = _shared(model)
    for module in list(model.modules()):
        if type(module) is nn.Linear and "forward" not in vars(module):
            weight = module.weight
            gain = gains(weight.dtype) if weight.device.type == "cpu" else Gains(many=False, few=False)
            pack = weight.data_ptr() not in shared
            if not gain.many and not (gain.few if pack else gain.direct):
                continue
            kind = (weight.shape, weight.dtype, pack)
            if kind not in agreed:
                agreed[kind] = _agrees(weight, pack)
            if agreed[kind]:
                _switch(module, pack, most=None if gain.many else _FEW_ROWS)
    for module in list(model.modules()):
        if _is_gated(module):
            module.forward = _Gated(module)
    if any(type(module) is PackedLinear for module in model.modules()):
        _leave_files(model)
        give_back_freed()


def _leave_files(model: nn.Module) -> None:
    """Gives the weights that lie in a mapped file memory of their own (Linux).

    One of them keeps the pages of the whole file, those of the weights that are packed now too.
    """
    with suppress(OSError):
        # A file has an inode. Its name tells nothing (in the hub's cache it is a hash) and may be no UTF-8.
        lines = [line.split() for line in Path("/proc/self/maps").read_bytes().splitlines()]
        spans = [line[0].split(b"-") for line in lines if line[4] != b"0"]
        mapped = [range(int(begin, 16), int(end, 16)) for begin, end in spans]
        for weight in chain(model.parameters(), model.buffers()):
            if any(weight.data_ptr() in span for span in mapped):
                weight.data = weight.data.clone()


def _shared(model: nn.Module) -> set[int]:
    """Addresses of the parameters that more than one module holds."""
    held = Counter(
        weight.data_ptr() for module in model.modules() for weight in module.parameters(recurse=False)
    )
    return {address for address, modules in held.items() if modules > 1}


@torch.inference_mode()
def _agrees(weight: Tensor, pack: bool) -> bool:
    """Whether oneDNN's product of this shape is the default one, but for rounding."""
    rows = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    try:
        found = product(rows, _reorder(weight) if pack else weight)
    except Exception as error:
        # oneDNN raises different exceptions for what it does not support.
        problem = first_line(error)
    else:
        if _close(found, linear(rows, weight)):
            return True
        problem = "it differs"
    log.warning("linear layers: not oneDNN for %s (%s)", tuple(weight.shape), problem)
    return False


def _close(found: Tensor, expected: Tensor) -> bool:
    apart = float((found.float() - expected.float()).norm())
    return apart <= _TOLERANCE[expected.dtype] * float(expected.float().norm())


def _switch(module: Any, pack: bool, most: int | None) -> None:
    if pack:
        packed = _reorder(module.weight)
        del module._parameters["weight"]
        module.__class__ = PackedLinear
        module.packed = packed
    else:
        module.__class__ = DirectLinear
        module.most = most


@torch.inference_mode()
def _is_gated(module: Any) -> bool:
    """Whether a block computes down(act(gate(x)) * up(x)): tried, since its code may do more."""
    names = ("gate_proj", "up_proj", "down_proj")
    parts: list[Any] = [getattr(module, name, None) for name in names]
    if not all(isinstance(part, nn.Linear) for part in parts) or not hasattr(module, "act_fn"):
        return False
    gate, last = parts[0], parts[2]
    weight = last.packed if type(last) is PackedLinear else last.weight
    if "forward" in vars(module) or weight.device.type != "cpu" or weight.dtype not in _TOLERANCE:
        return False
    # Large numbers too: some blocks limit them.
    sample = torch.linspace(-50, 50, 2 * gate.in_features, dtype=weight.dtype).view(1, 2, -1)
    try:
        return _close(_Gated(module)(sample), module(sample))
    except Exception as error:
        log.info("%s stays as it is: %s", type(module).__name__, error)
        return False


def slow_down(model: nn.Module) -> bool:
    """Undoes `speed_up`; says whether anything was switched."""
    switched = [_switch_back(module) for module in model.modules()]
    return any(switched)


def _switch_back(module: Any) -> bool:
    gated, kind = isinstance(vars(module).get("forward"), _Gated), type(module)
    if gated:
        del module.forward
    if kind not in (PackedLinear, DirectLinear):
        return gated
    module.__class__ = nn.Linear
    if kind is PackedLinear:
        weight = module.packed.to_dense()
        del module.packed
        module.weight = nn.Parameter(weight, requires_grad=False)
    return True


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Uses the model's own layers while the block runs."""
    switched = slow_down(model)
    try:
        yield
    finally:
        if switched:
            speed_up(model)


def describe(model: nn.Module) -> dict[str, int]:
    """How many linear layers run in which way."""
    names: dict[Any, str] = {
        PackedLinear: "packed for oneDNN",
        DirectLinear: "oneDNN",
        nn.Linear: "default product",
    }
    return dict(Counter(names[type(module)] for module in model.modules() if type(module) in names))
