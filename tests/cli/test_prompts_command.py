"""The dump of prompts, on bundled items and on the real data."""

import json
from pathlib import Path

import pytest

from evalkit.__main__ import main
from evalkit.tasks.load import load_bundled
from evalkit.tasks.spec import load_spec
from tests.scored import JASTER


def test_the_dump_has_every_evaluated_sample_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompts", "suite=sample", f"out={tmp_path}", "limit=3"]) == 0
    assert sorted(path.stem for path in tmp_path.iterdir()) == JASTER
    for name in JASTER:
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
        task = load_bundled(load_spec(name), limit=3)
        assert [row["id"] for row in rows] == [sample.id for sample in task.samples]
        for row, sample in zip(rows, task.samples, strict=True):
            assert list(row) == ["id", "prompt", "max_new_tokens", "stop"]
            assert row["prompt"].endswith(f"### 入力:\n{sample.input}\n\n### 応答:\n")
            assert row["prompt"].count("### 応答:\n") == 5
            assert (row["max_new_tokens"], row["stop"]) == (task.spec.output_length, ["\n\n"])


def test_missing_data_is_an_error_or_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data" / "1.3.1" / "evaluation"
    for split in ("train", "dev"):
        (data / split).mkdir(parents=True)
        content = {"samples": [{"input": f"{split} {i}", "output": "neutral"} for i in range(4)]}
        (data / split / "jamp.json").write_text(json.dumps(content), encoding="utf-8")
    words = ["prompts", "suite=nli", f"data_dir={tmp_path / 'data'}", f"out={tmp_path / 'out'}"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "janli.json" in error and "prepare" in error and "allow_missing=true" in error
    assert not (tmp_path / "out").exists()
    assert main([*words, "allow_missing=true"]) == 0
    captured = capsys.readouterr()
    assert "missing: janli" in captured.err and "not the published file" in captured.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["jamp.jsonl"]


@pytest.mark.sources
def test_real_prompts(mirror: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert main(["prepare", "suite=mr", f"mirror={mirror}", f"data_dir={data}"]) == 0
    assert main(["prompts", "suite=mr", f"data_dir={data}", f"out={tmp_path / 'out'}"]) == 0
    lines = (tmp_path / "out" / "mawps.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 100
    first = json.loads(lines[0])
    assert first["id"] == "mawps/dev/0" and first["max_new_tokens"] == 10
    assert first["prompt"].count("### 入力:\n問題：") == 5


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("not json", '{"samples": [', "line 1"),
        ("no samples", '{"few_shots": []}', "samples"),
        ("a number", '{"samples": [{"input": "a", "output": 1}]}', "samples[0].output"),
        ("not text", b"\xff\xfe", "UTF-8"),
    ],
)
def test_malformed_files_are_named_with_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | bytes, expected: str
) -> None:
    for split in ("train", "dev"):
        folder = tmp_path / "1.3.1" / "evaluation" / split
        folder.mkdir(parents=True)
        (folder / "jamp.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["prompts", "suite=task", "suite.tasks=[jamp]", f"data_dir={tmp_path}", f"out={tmp_path / 'out'}"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "jamp.json" in error and expected in error and "Traceback" not in error
