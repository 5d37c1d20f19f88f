"""The choice of a fused kernel: right ones are taken, wrong or failing ones never."""

import pytest
import torch

from evalkit.engines.local import kernels
from evalkit.engines.local.kernels import Kind, Part, aligned, by_products, candidates, choose

CPU = Kind("cpu", torch.float32, 16, 16, masked=False, causal=False)


def kinds() -> list[Kind]:
    return [
        Kind("cpu", dtype, 16, dim, masked=masked, causal=causal)
        for dtype in (torch.float32, torch.bfloat16)
        for dim in (16, 8)
        for masked, causal in ((False, False), (True, False), (False, True))
    ]


@pytest.fixture(autouse=True)
def fresh_choice() -> None:
    choose.cache_clear()


@pytest.mark.parametrize("kind", kinds(), ids=str)
def test_the_cpu_kernel_serves_where_head_sizes_are_equal(kind: Kind) -> None:
    expected = kernels.flash_cpu if kind.key_dim == kind.value_dim else by_products
    assert choose(kind, by_products) is expected


def test_cuda_takes_flash_attention_in_half_precision_and_without_a_mask() -> None:
    def names(dtype: torch.dtype, masked: bool) -> list[str]:
        kind = Kind("cuda", dtype, 128, 128, masked=masked, causal=False)
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
