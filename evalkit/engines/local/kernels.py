"""Attention over a part of the keys, by the fastest kernel that computes it right.

Softmax attention over two disjoint sets of keys is the mean of the attentions over each, weighted by
the exponentials of their log-sum-exps. So the prefix that many rows share is attended to once, by all
their queries together, and merged with what each row sees of its own tokens.

torch has fused kernels that return the log-sum-exp: FlashAttention 2 and the memory-efficient kernel
for CUDA, and a flash kernel for the CPU. Where oneDNN's products are faster than that kernel's, tiles of
them serve many queries. Which of them supports a call depends on device, dtype, head
sizes and mask, and not every combination is documented. So each kernel is run on a small case of the
same kind and compared with plain matrix products; it is not used when it fails or differs.
"""

import logging
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from evalkit.core.errors import first_line
from evalkit.engines.local.linears import gains, product

log = logging.getLogger(__name__)

# The memory-efficient kernel needs mask rows that begin at multiples of this many elements.
_ALIGNED = 16
# Largest difference from float32 matrix products that rounding to the dtype explains.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Part(NamedTuple):
    """Attention over some keys.

    Attributes:
        out: [..., value_dim], in the queries' dtype.
        lse: log-sum-exp of the scaled scores, the same without the last dimension, float32.
    """

    out: Tensor
    lse: Tensor


class Kernel(Protocol):
    """Attention of [batch, heads, queries, key_dim] over keys, as `attend`."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, *, mask: Tensor | None, causal: bool
    ) -> Part:
        """Returns the attention and its log-sum-exp."""
        ...


class CallKind(NamedTuple):
    """What decides which kernels support a call, and which is the fastest: `many` queries or few."""

    device: str
    dtype: torch.dtype
    key_dim: int
    value_dim: int
    masked: bool
    causal: bool
    many: bool = False


def flash_cpu(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, mask: Tensor | None, causal: bool
) -> Part:
    """torch's flash kernel for the CPU."""
    if mask is not None:
        mask = mask.expand(query.shape[0], 1, query.shape[2], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)
    return Part(out, lse)


# Scores of a tile, which must fit the cache, and its most rows.
_TILE_SCORES, _TILE_ROWS = 3 << 19, 1024


def tiles_cpu(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, mask: Tensor | None, causal: bool
) -> Part:
    """oneDNN's products on tiles of rows; query heads that share a key head are rows of one matrix."""
    assert mask is None and not causal
    batch, heads, queries, key_dim = query.shape
    keys, value_dim = value.shape[2:]
    # In the order in which a model reads it: tokens, then heads.
    out = query.new_empty(queries, batch, heads, value_dim).permute(1, 2, 0, 3)
    lse = query.new_empty(batch, heads, queries)
    shared = heads == 1 or key.stride(1) == value.stride(1) == 0
    step = max(1, min(_TILE_ROWS, _TILE_SCORES // keys) // (heads if shared else 1))
    for index in range(batch):
        for head in [slice(None)] if shared else [slice(at, at + 1) for at in range(heads)]:
            own_keys = key[index, head][0] * scale
            own_values = value[index, head][0].t().contiguous()
            for first in range(0, queries, step):
                some = slice(first, first + step)
                rows = query[index, head, some]
                scores = product(rows.reshape(-1, key_dim), own_keys)
                largest = scores.amax(-1)
                weights = torch.softmax(scores, -1)
                out[index, head, some] = product(weights, own_values).view(*rows.shape[:2], value_dim)
                # The largest weight is the exponential of its score less the log-sum-exp.
                lse[index, head, some] = (largest - weights.amax(-1).log_()).view(rows.shape[:2])
    return Part(out, lse)


def flash_cuda(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, mask: Tensor | None, causal: bool
) -> Part:
    """torch's FlashAttention 2: half precision, no mask but the causal one."""
    assert mask is None
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    out, lse, *_ = kernel(query, key, value, 0.0, causal, False, scale=scale)
    return Part(out, lse[:, :, : query.shape[2]])


def efficient_cuda(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, mask: Tensor | None, causal: bool
) -> Part:
    """torch's memory-efficient kernel: any precision, any mask."""
    if mask is not None:
        mask = aligned(mask).expand(*query.shape[:3], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse, *_ = kernel(query, key, value, mask, True, 0.0, causal, scale=scale)
    # It rounds the number of queries up.
    return Part(out, lse[:, :, : query.shape[2]])


def aligned(mask: Tensor) -> Tensor:
    """The same mask in memory whose rows begin at multiples of 16 elements."""
    width = mask.shape[-1]
    if width % _ALIGNED == 0 and mask.is_contiguous():
        return mask
    room = mask.new_zeros(*mask.shape[:-1], -(-width // _ALIGNED) * _ALIGNED)
    room[..., :width] = mask
    return room[..., :width]


def candidates(kind: CallKind) -> list[Kernel]:
    """The fused kernels that may serve a kind of call, fastest first."""
    if kind.device == "cpu":
        tiles = kind.many and not kind.masked and not kind.causal and kind.dtype is torch.float32
        return [
            *([tiles_cpu] if tiles and gains(kind.dtype).many else []),
            *([flash_cpu] if kind.key_dim == kind.value_dim else []),
        ]
    if kind.device != "cuda":
        return []
    half = kind.dtype in (torch.float16, torch.bfloat16)
    return [flash_cuda, efficient_cuda] if half and not kind.masked else [efficient_cuda]


@cache
def choose(kind: CallKind, reference: Kernel) -> Kernel:
    """The first candidate that agrees with `reference` on a small case of this kind; else `reference`."""
    for kernel in candidates(kind):
        name = getattr(kernel, "__name__", str(kernel))
        problem = _problem(kernel, reference, kind)
        if problem is None:
            log.info("attention kernel: %s for %s", name, kind)
            return kernel
        log.warning("attention kernel: not %s for %s (%s)", name, kind, problem)
    return reference


@torch.inference_mode()
def _problem(kernel: Kernel, reference: Kernel, kind: CallKind) -> str | None:
    """Why a kernel cannot be used; None when it can."""
    case = _small_case(kind)
    expected = reference(*case.tensors, 0.3, mask=case.mask, causal=kind.causal)
    try:
        found = kernel(*case.tensors, 0.3, mask=case.mask, causal=kind.causal)
    except Exception as error:
        # Kernels raise different exceptions for what they do not support.
        return first_line(error)
    for one, other in ((found.out, expected.out), (found.lse, expected.lse)):
        if one.shape != other.shape:
            return f"its result has the shape {tuple(one.shape)}, not {tuple(other.shape)}"
        apart = float((one.float() - other.float()).abs().max())
        if not apart <= _TOLERANCE.get(kind.dtype, _TOLERANCE[torch.bfloat16]):
            return f"it differs by {apart:.2g}"
    return None


class _Case(NamedTuple):
    tensors: tuple[Tensor, Tensor, Tensor]
    mask: Tensor | None


def _small_case(kind: CallKind) -> _Case:
    # Two heads share one key head through `expand`, without a copy, as in real calls.
    queries, keys = (19, 19) if kind.causal else (5, 19)
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int, length: int, dim: int) -> Tensor:
        made = torch.randn(3, heads, length, dim, generator=generator).to(kind.dtype).to(kind.device)
        return made.expand(3, 2, length, dim)

    mask = None
    if kind.masked:
        hidden = torch.rand(3, 1, queries, keys, generator=generator) < 0.3
        hidden[..., 0] = False
        mask = torch.zeros(hidden.shape, dtype=kind.dtype).masked_fill_(hidden, float("-inf")).to(kind.device)
    tensors = draw(2, queries, kind.key_dim), draw(1, keys, kind.key_dim), draw(1, keys, kind.value_dim)
    return _Case(tensors, mask)


# Queries of a head from which on tiles of products are faster than a kernel that reads keys in blocks.
MANY = 256
# Attention scores computed at once where no fused kernel is used, in elements.
_SCORES = 1 << 26


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Part:
    """Attention of all queries over all keys, with its log-sum-exp.

    Args:
        query: [batch, heads, queries, key_dim].
        key: [batch, heads, keys, key_dim].
        value: [batch, heads, keys, value_dim].
        scale: factor of the scores.
        mask: added to the scores, 0 or -inf, broadcastable to [batch, heads, queries, keys]. A
            query that may see no key gets NaN as output.
        causal: query i sees keys 0 to i only; there must be as many queries as keys.

    Returns:
        A part with `out` [batch, heads, queries, value_dim] and `lse` [batch, heads, queries].
    """
    kind = CallKind(
        query.device.type,
        query.dtype,
        key.shape[-1],
        value.shape[-1],
        masked=mask is not None,
        causal=causal,
        many=query.shape[2] >= MANY,
    )
    return choose(kind, by_products)(query, key, value, scale, mask=mask, causal=causal)


def by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Part:
    """As `attend`, by float32 matrix products, a bounded number of scores at a time."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    key, value = key.float().transpose(-1, -2), value.float()
    step = max(1, _SCORES // (batch * heads * keys))
    outs, sums = [], []
    for first in range(0, queries, step):
        last = min(first + step, queries)
        scores = (query[:, :, first:last].float() * scale) @ key
        if mask is not None:
            scores += mask if mask.shape[2] == 1 else mask[:, :, first:last]
        if causal:
            index = torch.arange(keys, device=query.device)
            scores.masked_fill_(index[None, :] > index[first:last, None], float("-inf"))
        lse = scores.logsumexp(dim=-1)
        outs.append((scores - lse.unsqueeze(-1)).exp_() @ value)
        sums.append(lse)
    return Part(torch.cat(outs, dim=2).to(query.dtype), torch.cat(sums, dim=2))


def merge(one: Part, other: Part, *, in_place: bool = False) -> Tensor:
    """The attention over both sets of keys, of which one sees at least one key for every query.

    `in_place` lets it take the memory of `one`'s output, where that is float32.
    """
    weight = torch.sigmoid(other.lse - one.lse).unsqueeze(-1)
    if in_place and one.out.dtype is torch.float32:
        return one.out.lerp_(other.out, weight)
    return torch.lerp(one.out.float(), other.out.float(), weight).to(one.out.dtype)
