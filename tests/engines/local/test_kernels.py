"""Attention in parts against torch's own attention, and the choice of a fused kernel."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from evalkit.engines.local import kernels
from evalkit.engines.local.kernels import (
    CallKind,
    Part,
    aligned,
    attend,
    by_products,
    candidates,
    choose,
    merge,
)
from evalkit.engines.local.linears import Gains

CPU = CallKind("cpu", torch.float32, 16, 16, masked=False, causal=False)


def kinds() -> list[CallKind]:
    return [
        CallKind("cpu", dtype, 16, dim, masked=masked, causal=causal)
        for dtype in (torch.float32, torch.bfloat16)
        for dim in (16, 8)
        for masked, causal in ((False, False), (True, False), (False, True))
    ]


@pytest.fixture(autouse=True)
def fresh_choice() -> None:
    choose.cache_clear()


@pytest.mark.parametrize("kind", kinds(), ids=str)
def test_the_cpu_kernel_serves_where_head_sizes_are_equal(kind: CallKind) -> None:
    expected = kernels.flash_cpu if kind.key_dim == kind.value_dim else by_products
    assert choose(kind, by_products) is expected


def test_cuda_takes_flash_attention_in_half_precision_and_without_a_mask() -> None:
    def names(dtype: torch.dtype, masked: bool) -> list[str]:
        kind = CallKind("cuda", dtype, 128, 128, masked=masked, causal=False)
        return [kernel.__name__ for kernel in candidates(kind)]  # type: ignore[attr-defined]

    assert names(torch.bfloat16, False) == ["flash_cuda", "efficient_cuda"]
    assert names(torch.bfloat16, True) == ["efficient_cuda"]
    assert names(torch.float32, False) == ["efficient_cuda"]
    assert candidates(CPU._replace(device="mps")) == []


def wrong_output(*tensors: torch.Tensor, **options: object) -> Part:
    part = by_products(*tensors, **options)  # type: ignore[arg-type]
    return Part(part.out * 1.01, part.lse)


def wrong_sum(*tensors: torch.Tensor, **options: object) -> Part:
    part = by_products(*tensors, **options)  # type: ignore[arg-type]
    return Part(part.out, part.lse / 0.693)


def wrong_shape(*tensors: torch.Tensor, **options: object) -> Part:
    part = by_products(*tensors, **options)  # type: ignore[arg-type]
    return Part(part.out, part.lse[..., :1])


def not_numbers(*tensors: torch.Tensor, **options: object) -> Part:
    part = by_products(*tensors, **options)  # type: ignore[arg-type]
    return Part(part.out * float("nan"), part.lse)


def failing(*tensors: torch.Tensor, **options: object) -> Part:
    raise RuntimeError("no kernel for this head size")


@pytest.mark.parametrize("kernel", [wrong_output, wrong_sum, wrong_shape, not_numbers, failing])
def test_a_kernel_that_does_not_serve_is_left_out(
    kernel: kernels.Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "candidates", lambda kind: [kernel, kernels.flash_cpu])
    assert choose(CPU, by_products) is kernels.flash_cpu
    assert f"not {kernel.__name__}" in caplog.text  # type: ignore[attr-defined]


def test_kernels_of_another_device_fail_without_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "candidates", lambda kind: [kernels.flash_cuda, kernels.efficient_cuda])
    half = CPU._replace(dtype=torch.bfloat16)
    assert choose(half, by_products) is by_products


@pytest.mark.parametrize("width", [1, 16, 37])
def test_rows_of_an_aligned_mask(width: int) -> None:
    mask = torch.randn(2, 1, 3, width)
    found = aligned(mask)
    assert torch.equal(found, mask)
    assert found.stride(-1) == 1 and found.stride(-2) % 16 == 0


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


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("value_dim", [16, 8])
def test_tiles(shared: bool, value_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_TILE_ROWS", 12)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 37, 3, 16, generator=generator).transpose(1, 2)
    heads = 1 if shared else 3
    key, value = (torch.randn(2, heads, 21, dim, generator=generator) for dim in (16, value_dim))
    key, value = key.expand(2, 3, 21, 16), value.expand(2, 3, 21, value_dim)
    found = kernels.tiles_cpu(query, key, value, 0.3, mask=None, causal=False)
    expected = by_products(query, key, value, 0.3)
    torch.testing.assert_close(found.out, expected.out)
    torch.testing.assert_close(found.lse, expected.lse)


def test_tiles_serve_many_queries_where_their_products_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    many = CPU._replace(many=True)
    for gain in (True, False):
        monkeypatch.setattr(kernels, "gains", lambda dtype, gain=gain: Gains(many=gain, few=gain))
        assert (kernels.tiles_cpu in candidates(many)) is gain
        for kind in (CPU, many._replace(masked=True), many._replace(causal=True)):
            assert kernels.tiles_cpu not in candidates(kind)
    monkeypatch.setattr(kernels, "gains", lambda dtype: Gains(many=True, few=True))
    assert choose(many, by_products) is kernels.tiles_cpu


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
