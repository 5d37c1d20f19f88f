"""Attention in parts against torch's own attention over everything at once."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from evalkit.engines.local.kernels import Part, attend, by_products, merge


def tensors(queries: int, keys: int, *, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    shapes = (queries, keys, keys)
    return tuple(torch.randn(2, 3, n, 16, generator=generator).mul(2).to(dtype) for n in shapes)


@pytest.mark.parametrize("way", [attend, by_products])
@pytest.mark.parametrize("kind", ["all", "causal", "mask"])
def test_output_and_log_sum_exp(way: object, kind: str) -> None:
    query, key, value = tensors(9, 9)
    mask = None
    if kind == "mask":
        mask = torch.zeros(1, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(3).bool(), float("-inf"))
    part = way(query, key, value, 0.3, mask=mask, causal=kind == "causal")  # type: ignore[operator]
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=kind == "causal", scale=0.3
    )
    torch.testing.assert_close(part.out, expected)
    scores = (query @ key.transpose(-1, -2)) * 0.3
    hidden = torch.ones(9, 9).triu(1).bool() if kind == "causal" else torch.zeros(9, 9).bool()
    scores = scores.masked_fill(hidden, float("-inf")) + (0 if mask is None else mask)
    torch.testing.assert_close(part.lse, scores.logsumexp(-1))


def test_products_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = tensors(11, 11)
    whole = by_products(query, key, value, 0.25, causal=True)
    monkeypatch.setattr("evalkit.engines.local.kernels._SCORES", 2 * 3 * 11 * 4)
    pieces = by_products(query, key, value, 0.25, causal=True)
    torch.testing.assert_close(pieces.out, whole.out)
    torch.testing.assert_close(pieces.lse, whole.lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_parts_make_the_whole(dtype: torch.dtype) -> None:
    query, key, value = tensors(5, 13, dtype=dtype)
    parts = [attend(query, key[:, :, s], value[:, :, s], 0.25) for s in (slice(4), slice(4, None))]
    expected = scaled_dot_product_attention(query, key, value, scale=0.25)
    # Each part is rounded to the dtype once before it is merged.
    close = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(merge(*parts), expected, atol=close, rtol=close)
    torch.testing.assert_close(merge(*reversed(parts)), expected, atol=close, rtol=close)


def test_a_part_that_sees_nothing_changes_nothing() -> None:
    one = Part(torch.randn(2, 4, 8), torch.randn(2, 4))
    blind = Part(torch.zeros(2, 4, 8), torch.full((2, 4), -math.inf))
    torch.testing.assert_close(merge(one, blind), one.out, rtol=0, atol=0)


def test_large_scores_do_not_overflow() -> None:
    query, key, value = tensors(5, 13)
    parts = [attend(query * 80, key[:, :, s], value[:, :, s], 1.0) for s in (slice(4), slice(4, None))]
    expected = scaled_dot_product_attention(query * 80, key, value, scale=1.0)
    torch.testing.assert_close(merge(*parts), expected, rtol=1e-4, atol=1e-4)
