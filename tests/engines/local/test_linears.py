"""Linear layers on oneDNN's products: the same numbers, the weight in memory once, and the way back."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from evalkit.engines.local import linears
from evalkit.engines.local.linears import DirectLinear, Gains, PackedLinear
from evalkit.engines.local.probe import FAST_LINEARS, PACKED
from tests.engines.models import local_engine, save_model

BOTH = Gains(many=True, few=True)
FEW = Gains(many=False, few=True, direct=True)


def gaining(monkeypatch: pytest.MonkeyPatch, gains: Gains) -> None:
    """Makes layers switch as on a processor with these gains."""
    monkeypatch.setattr(linears, "gains", lambda dtype: gains)


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Module()
    made.first, made.second = nn.Linear(48, 32), nn.Linear(32, 24, bias=False)
    made.embedding, made.head = nn.Embedding(40, 24), nn.Linear(24, 40, bias=False)
    made.head.weight = made.embedding.weight
    return made.eval()


@torch.inference_mode()
def logits(made: Any, rows: int = 5) -> torch.Tensor:
    given = torch.randn(1, rows, 48, generator=torch.Generator().manual_seed(1))
    result: torch.Tensor = made.head(made.second(made.first(given)))
    return result


def test_packed_layers_keep_one_weight_that_can_still_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    gaining(monkeypatch, BOTH)
    made: Any = model()
    weight, expected = made.first.weight.detach().clone(), logits(made)
    linears.speed_up(made)
    assert [type(layer) for layer in (made.first, made.second)] == [PackedLinear, PackedLinear]
    assert "weight" not in dict(made.first.named_parameters())
    assert torch.equal(made.first.weight, weight)
    torch.testing.assert_close(logits(made), expected)
    assert linears.slow_down(made)
    assert torch.equal(made.first.weight, weight) and torch.equal(logits(made), expected)
    assert not linears.slow_down(made)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_stays_unpacked_does_not_keep_the_whole_file_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a name without an ending, as in the hub's cache, nor one that is no UTF-8 hinders that."""
    from transformers import AutoModelForCausalLM

    def is_mapped() -> bool:
        return b"/blobs/" in Path("/proc/self/maps").read_bytes()

    folder = save_model("llama", tmp_path / "モデル")
    blobs = Path(os.fsdecode(os.fsencode(tmp_path) + "/モデル/blobs".encode("euc-jp")))
    blobs.mkdir(parents=True)
    (folder / "model.safetensors").rename(blobs / "0a1b")
    (folder / "model.safetensors").symlink_to(blobs / "0a1b")
    made = AutoModelForCausalLM.from_pretrained(folder)
    given = torch.arange(1, 9)[None]
    with torch.inference_mode():
        expected = made(given).logits
    assert is_mapped()
    gaining(monkeypatch, BOTH)
    linears.speed_up(made)
    assert not is_mapped()
    with torch.inference_mode():
        torch.testing.assert_close(made(given).logits, expected)


def test_a_tied_head_stays_the_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    gaining(monkeypatch, BOTH)
    made: Any = model()
    expected = logits(made)
    linears.speed_up(made)
    assert type(made.head) is DirectLinear and made.head.weight is made.embedding.weight
    torch.testing.assert_close(logits(made), expected)


def test_where_few_rows_gain_many_rows_of_a_tied_head_use_the_default_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gaining(monkeypatch, FEW)
    asked: list[int] = []
    product = linears.product

    def counted(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        asked.append(rows.numel() // rows.shape[-1])
        return product(rows, *rest)

    made = model()
    few, many = logits(made, 128), logits(made, 129)
    linears.speed_up(made)
    monkeypatch.setattr(linears, "product", counted)
    torch.testing.assert_close(logits(made, 128), few)
    torch.testing.assert_close(logits(made, 129), many)
    assert asked == [128, 128, 128, 129, 129]
    assert linears.describe(made) == {"packed for oneDNN": 2, "oneDNN": 1}


def test_what_gains_nothing_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gaining(monkeypatch, Gains(many=False, few=False))
    made: Any = model()
    linears.speed_up(made)
    assert linears.describe(made) == {"default product": 3}


@pytest.mark.parametrize("wrong", ["value", "error"])
def test_a_product_that_is_wrong_is_not_used(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(rows: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        if wrong == "error":
            raise RuntimeError("no such primitive")
        return rows.new_zeros(*rows.shape[:-1], weight.shape[0])

    gaining(monkeypatch, BOTH)
    monkeypatch.setattr(linears, "product", broken)
    made = model()
    linears.speed_up(made)
    assert linears.describe(made) == {"default product": 3}
    assert "not oneDNN" in caplog.text


class Capped(nn.Module):
    """A feed-forward block that looks like a gated one, but limits its activations."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act_fn = nn.SiLU()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(hidden).clamp(max=7)
        made: torch.Tensor = self.down_proj(self.act_fn(gate) * self.up_proj(hidden))
        return made


class Gated(Capped):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))
        return made


@pytest.mark.parametrize("gains", [BOTH, FEW, Gains(many=False, few=False)])
def test_gated_blocks(gains: Gains, monkeypatch: pytest.MonkeyPatch) -> None:
    gaining(monkeypatch, gains)
    torch.manual_seed(0)
    for kind, replaced in ((Gated, True), (Capped, False)):
        block = kind().eval()
        given = torch.randn(1, 9, 8)
        with torch.inference_mode():
            expected = block(given)
            linears.speed_up(block)
            assert ("forward" in vars(block)) is replaced
            torch.testing.assert_close(block(given), expected)
        linears.slow_down(block)
        assert "forward" not in vars(block)


def test_a_model_whose_answers_they_change_runs_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaining(monkeypatch, BOTH)
    monkeypatch.setattr(
        PackedLinear, "forward", lambda self, input: linear(input, self.weight * 1.01, self.bias)
    )
    with local_engine(save_model("llama", tmp_path)) as engine:
        described = engine.describe()
    assert described["way"] == PACKED.name and set(described["ruled_out"]) == {FAST_LINEARS}
    assert set(described["linear_layers"]) == {"default product"}


def test_gains_are_measured_once_and_nothing_is_gained_in_half_precision_without_support() -> None:
    assert linears.gains(torch.float16) == Gains(many=False, few=False)
    assert linears.gains(torch.float32) is linears.gains(torch.float32)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("1000", "1")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, (None, None)),
        ({"GOMP_SPINCOUNT": "7"}, ("7", None)),
    ],
)
def test_threads_wait_asleep_unless_the_user_says_otherwise(
    given: dict[str, str], expected: tuple[str | None, str | None]
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    code = "import evalkit, os; print(tuple(map(os.environ.get, ('GOMP_SPINCOUNT', 'KMP_BLOCKTIME'))))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)
