"""COMET against the scores that unbabel-comet 2.2.7 gave for a tiny checkpoint of the same design."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evalkit.core.config import CometConfig, Dtype, MetricsConfig
from evalkit.metrics import comet_model, open_comet
from evalkit.metrics.comet import Comet
from evalkit.metrics.comet_model import SentenceEncoder, sparsemax
from evalkit.metrics.metric import MetricUnavailableError, Triple

TINY = Path(__file__).resolve().parent.parent / "goldens" / "comet_tiny"
GOLDENS: list[dict[str, Any]] = [
    json.loads(line) for line in (TINY / "triples.jsonl").read_text(encoding="utf-8").splitlines()
]
TRIPLES = [Triple(src=row["src"], mt=row["mt"], ref=row["ref"]) for row in GOLDENS]
TOLERANCE = 1e-5


def tiny(folder: Path, **options: Any) -> Comet:
    return Comet(TINY, encoder=TINY / "encoder", device="cpu", cache=folder, **options)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of sentences in each batch the encoder saw."""
    sizes: list[int] = []
    original = SentenceEncoder.__call__

    def counting(self: SentenceEncoder, batch: list[list[int]]) -> torch.Tensor:
        sizes.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(SentenceEncoder, "__call__", counting)
    return sizes


@pytest.mark.parametrize("batch_size", [1, 3, 4, 32])
def test_scores_equal_unbabel_comets(tmp_path: Path, batch_size: int) -> None:
    scores = tiny(tmp_path, batch_size=batch_size).score(TRIPLES)
    assert scores == pytest.approx([row["score"] for row in GOLDENS], abs=TOLERANCE)
    expected = json.loads((TINY / "expected.json").read_text(encoding="utf-8"))
    assert np.mean(scores) == pytest.approx(expected["system_score"], abs=TOLERANCE)


def test_the_goldens_tell_sparsemax_from_softmax(tmp_path: Path) -> None:
    scores = tiny(tmp_path).score(TRIPLES)
    wrong = [row["score_softmax_variant"] for row in GOLDENS]
    assert all(abs(a - b) > 100 * TOLERANCE for a, b in zip(scores, wrong, strict=True))


def test_token_ids_are_comets(tmp_path: Path) -> None:
    encoder = tiny(tmp_path)._loaded_encoder()
    for side in ("src", "mt", "ref"):
        assert encoder.token_ids([row[side] for row in GOLDENS]) == [row["ids"][side] for row in GOLDENS]
    assert max(len(row["ids"]["mt"]) for row in GOLDENS) == 510


def test_order_and_repetition_do_not_matter(tmp_path: Path) -> None:
    order = list(range(len(TRIPLES))) * 2
    random.Random(0).shuffle(order)
    scores = tiny(tmp_path, batch_size=5).score([TRIPLES[i] for i in order])
    assert scores == pytest.approx([GOLDENS[i]["score"] for i in order], abs=TOLERANCE)


def test_each_distinct_sentence_is_encoded_once(tmp_path: Path, encoded: list[int]) -> None:
    comet = tiny(tmp_path, batch_size=4)
    first = comet.score([*TRIPLES, *TRIPLES])
    distinct = len({text for triple in TRIPLES for text in (triple["src"], triple["mt"], triple["ref"])})
    assert sum(encoded) == distinct
    # Another model's translations of the same sources: only they are new.
    other = [Triple(src=t["src"], mt=t["ref"] + "!", ref=t["ref"]) for t in TRIPLES]
    tiny(tmp_path, batch_size=4).score(other)
    assert sum(encoded) == distinct + len({t["mt"] for t in other})
    again = tiny(tmp_path)
    assert again.score([*TRIPLES, *TRIPLES]) == first
    assert again._encoder is None


def test_a_damaged_cache_changes_nothing(tmp_path: Path, encoded: list[int]) -> None:
    first = tiny(tmp_path).score(TRIPLES)
    (shard,) = tmp_path.rglob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-10] ^= 0x40
    shard.write_bytes(data)
    before = sum(encoded)
    assert tiny(tmp_path).score(TRIPLES) == first
    assert sum(encoded) == 2 * before


def test_another_dtype_has_its_own_cache_and_version(tmp_path: Path) -> None:
    exact, rough = tiny(tmp_path), tiny(tmp_path, dtype="bfloat16")
    deviation = max(abs(a - b) for a, b in zip(exact.score(TRIPLES), rough.score(TRIPLES), strict=True))
    assert 1e-4 < deviation < 0.2
    assert exact.version != rough.version and "bfloat16" in rough.version


def test_the_checkpoint_file_itself_will_do(tmp_path: Path) -> None:
    comet = Comet(TINY / "checkpoints" / "model.ckpt", encoder=TINY / "encoder", cache=tmp_path)
    assert comet.score(TRIPLES[:2]) == pytest.approx([r["score"] for r in GOLDENS[:2]], abs=TOLERANCE)


def test_nothing_and_odd_texts(tmp_path: Path) -> None:
    comet = tiny(tmp_path)
    assert comet.score([]) == []
    broken, replaced = comet.score([Triple(src="猫", mt=mt, ref="cat") for mt in ("\ud83d", "?")])
    assert broken == replaced


def test_as_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    comet = CometConfig(checkpoint=str(TINY), encoder=str(TINY / "encoder"), dtype=Dtype.auto)
    scorer = open_comet(MetricsConfig(comet=comet), True)
    assert scorer.score(TRIPLES) == pytest.approx([row["score"] for row in GOLDENS], abs=TOLERANCE)
    assert list((tmp_path / "comet").rglob("*.safetensors"))


def projection(scores: np.ndarray) -> np.ndarray:
    """The projection on the simplex by bisection of its threshold."""
    low, high = scores.min() - 1, scores.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(scores - middle, 0).sum() > 1 else (low, middle)
    return np.asarray(np.maximum(scores - low, 0))


@pytest.mark.parametrize("seed", range(20))
def test_sparsemax_is_the_projection_on_the_simplex(seed: int) -> None:
    scores = np.random.default_rng(seed).normal(scale=1 + seed % 4, size=25)
    result = sparsemax(torch.tensor(scores)).numpy()
    assert result == pytest.approx(projection(scores), abs=1e-9)
    assert result.sum() == pytest.approx(1)


def copy(folder: Path) -> Path:
    shutil.copytree(TINY, folder / "model")
    return folder / "model"


def refuse(folder: Path, message: str, cache: Path) -> None:
    with pytest.raises(MetricUnavailableError, match=message):
        Comet(folder, encoder=folder / "encoder", cache=cache).score(TRIPLES)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("layer_transformation", "softmax"), ("layer_norm", True), ("pool", "cls"), ("encoder_model", "BERT")],
)
def test_another_design_is_refused(tmp_path: Path, setting: str, value: object) -> None:
    folder = copy(tmp_path)
    path = folder / "hparams.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), setting: value}))
    refuse(folder, setting, tmp_path)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "model.ckpt", tmp_path)
    folder = copy(tmp_path)
    with pytest.raises(MetricUnavailableError, match="config and tokenizer"):
        Comet(folder, encoder=tmp_path, cache=tmp_path)
    weights = folder / "checkpoints" / "model.ckpt"
    weights.write_bytes(weights.read_bytes()[:1000])
    refuse(folder, "cannot be read", tmp_path)
    (folder / "hparams.yaml").unlink()
    refuse(folder, "hparams.yaml", tmp_path)


def test_a_checkpoint_without_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    weights = folder / "checkpoints" / "model.ckpt"
    content = torch.load(weights, weights_only=True)
    del content["state_dict"]["encoder.model.embeddings.LayerNorm.bias"]
    torch.save(content, weights)
    refuse(folder, "LayerNorm.bias", tmp_path)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    torch.save({"state_dict": {}, "trap": Trap(tmp_path / "sprung")}, folder / "checkpoints" / "model.ckpt")
    refuse(folder, "cannot be read", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_too_little_memory_makes_smaller_batches(
    tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = comet_model.SentenceEncoder.__call__

    def tight(self: SentenceEncoder, batch: list[list[int]]) -> torch.Tensor:
        if len(batch) > 3:
            raise torch.OutOfMemoryError("no room")
        return original(self, batch)

    monkeypatch.setattr(SentenceEncoder, "__call__", tight)
    scores = tiny(tmp_path, batch_size=16).score(TRIPLES)
    assert scores == pytest.approx([row["score"] for row in GOLDENS], abs=TOLERANCE)
    assert max(encoded) <= 3
