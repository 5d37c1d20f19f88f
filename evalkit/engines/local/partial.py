"""Attention over a part of the keys, and the merging of parts.

Softmax attention over two disjoint sets of keys is the mean of the attentions over each, weighted
by the exponentials of their log-sum-exps. So a prefix shared by many rows is attended to once, by
all their queries together, and merged with what each row sees of its own tokens.
"""

import torch
from torch import Tensor

from evalkit.engines.local.kernels import Kind, Part, choose

# Scores computed at once where no fused kernel serves, in elements.
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
    kind = Kind(
        query.device.type, query.dtype, key.shape[-1], value.shape[-1], masked=mask is not None, causal=causal
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
    """The same by matrix products, in float32, a bounded number of scores at a time."""
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


def merge(one: Part, other: Part) -> Tensor:
    """The attention over both sets of keys; `one` sees at least one key for every query."""
    weight = torch.sigmoid(other.lse - one.lse).unsqueeze(-1)
    return torch.lerp(one.out.float(), other.out.float(), weight).to(one.out.dtype)
