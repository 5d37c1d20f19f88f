import json
from pathlib import Path

import pytest
from saved import save

from evalkit.runs.watch.checkpoints import INDEX, candidates, problem, signature


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("run") / "step-1", 0)


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    folder = tmp_path / "step-1"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_whole_checkpoint(whole: Path) -> None:
    assert problem(whole, needs_tokenizer=True) is None


def test_shards(tmp_path: Path) -> None:
    folder = save(tmp_path / "step-1", 0, shards=True)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) > 2 and problem(folder, needs_tokenizer=True) is None
    index = (folder / INDEX).read_bytes()
    (folder / INDEX).unlink()
    assert INDEX in (problem(folder, needs_tokenizer=True) or "")
    (folder / INDEX).write_bytes(index[:-10])
    assert "not whole JSON" in (problem(folder, needs_tokenizer=True) or "")
    (folder / INDEX).write_bytes(index)
    (folder / names[1]).unlink()
    assert names[1] in (problem(folder, needs_tokenizer=True) or "")


def test_weights_cut_anywhere(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    for size in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "model.safetensors" in (problem(checkpoint, needs_tokenizer=True) or ""), size
    path.write_bytes(content + b"x")
    assert "its header says" in (problem(checkpoint, needs_tokenizer=True) or "")
    path.write_bytes(bytes(len(content)))
    assert "not a whole" in (problem(checkpoint, needs_tokenizer=True) or "")
    length = int.from_bytes(content[:8], "little")
    path.write_bytes(content[:8] + b"[" * length + content[8 + length :])
    assert "damaged header" in (problem(checkpoint, needs_tokenizer=True) or "")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", '{"model_type": "lla', "config.json is not whole JSON"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", "{}", "model_type"),
        ("tokenizer.json", None, "no tokenizer"),
        ("tokenizer.json", "{", "tokenizer.json"),
        ("model.safetensors", None, "no *.safetensors"),
    ],
)
def test_what_is_missing_is_named(checkpoint: Path, name: str, text: str | None, message: str) -> None:
    if text is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_text(text, encoding="utf-8")
    assert message in (problem(checkpoint, needs_tokenizer=True) or "")


def test_a_tokenizer_may_lie_elsewhere(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert problem(checkpoint, needs_tokenizer=False) is None


def test_order_is_that_of_the_steps(tmp_path: Path) -> None:
    for name in ("step-1000", "step-200", "checkpoint-30", "final", "ckpt-10k", ".step-1", "logs", "step-5"):
        (tmp_path / name).mkdir()
        if name not in ("logs", "step-5"):
            (tmp_path / name / "config.json").write_text(json.dumps({}), encoding="utf-8")
    (tmp_path / "step-5" / "model-00001-of-00002.safetensors").write_bytes(b"")
    (tmp_path / "a-file").write_bytes(b"")
    (tmp_path / "latest").symlink_to("step-1000")
    (tmp_path / "logs" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "logs").rename(tmp_path.parent / "elsewhere")
    (tmp_path / "step-7").symlink_to(tmp_path.parent / "elsewhere")
    names = [path.name for path in candidates(tmp_path)]
    assert names == ["step-5", "step-7", "checkpoint-30", "step-200", "step-1000", "ckpt-10k", "final"]


def test_a_signature_changes_with_every_write(checkpoint: Path) -> None:
    before = signature(checkpoint)
    assert signature(checkpoint) == before
    (checkpoint / "optimizer.pt").write_bytes(b"x")
    (checkpoint / "link").symlink_to(checkpoint / "not there yet")
    assert signature(checkpoint) != before
