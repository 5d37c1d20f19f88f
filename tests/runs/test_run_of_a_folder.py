"""A run of a model in a folder whose path has what shells, Hydra and OmegaConf care about."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from tests.engines.models import template, tokenizer_with
from tests.tiny import save_tiny_model

AWKWARD = "a b=c,d 日本{x}${y}[z]"
TASK = """\
name: 足し算
instruction: "${x} を計算してください。"
output_length: 3
metrics: [exact_match]
data: {file: d.csv, input: q, output: a, few_shots: 1}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place") / AWKWARD
    model = save_tiny_model(folder / "モデル 1")
    (model / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.7}', encoding="utf-8")
    (folder / "足し算 1.yaml").write_text(TASK, encoding="utf-8")
    (folder / "d.csv").write_text("q,a\n1+1,2\n1+2,3\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def words(place: Path) -> list[str]:
    tasks = f"suite.tasks=['{place}/足し算 1.yaml']"
    return ["model=hf", f"model.path={place}/モデル 1", "suite=task", tasks, "num_few_shots=1"]


@pytest.fixture(scope="module")
def folder(place: Path, words: list[str]) -> Path:
    assert main([*words, f"out={place}/out"]) == 0
    (folder,) = place.glob("out/モデル_1/task/*")
    return folder


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return content


def test_the_run_is_named_after_the_folder(folder: Path) -> None:
    assert results(folder)["run"]["model"] == "モデル 1"


def test_a_sampling_generation_config_is_named_in_log_and_record(folder: Path) -> None:
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["engine"]["generation_config"] == {"do_sample": True, "temperature": 0.7}
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert "generation_config sets do_sample=True, temperature=0.7: not followed" in log


def test_it_is_scored_again_from_elsewhere(
    folder: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = place / "again"
    shutil.copytree(folder, again)
    assert main(["score", f"run={again}", "protocol.strip=true"]) == 0
    assert results(again)["protocol"]["deviations"]["protocol.strip"] is True
    assert results(again)["run"]["model"] == "モデル 1"


def test_scoring_by_run_keeps_what_is_known_of_the_engine(
    folder: Path, place: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "environment.json").read_bytes()
    assert main([*words, f"out={place}/out", "protocol.strip=true"]) == 0
    assert (folder / "environment.json").read_bytes() == before
    # The commands that are offered can be pasted as they are.
    shown = [line for line in capsys.readouterr().out.splitlines() if "next:" in line]
    offered = [shlex.split(line.partition("evalkit ")[2]) for line in shown]
    assert ["leaderboard", f"{place}/out"] in [given[:2] for given in offered]


def test_a_tokenizer_that_ends_every_text(place: Path, words: list[str], folder: Path) -> None:
    """The prompts go without the end; that is said, and names the run."""
    model = place / "終わり"
    shutil.copytree(place / "モデル 1", model)
    tokenizer_with(template("<s> $A </s>")).save_pretrained(model)
    ends = [word if not word.startswith("model.path=") else f"model.path={model}" for word in words]
    assert main([*ends, f"out={place}/out-ends"]) == 0
    (found,) = place.glob("out-ends/終わり/task/*")
    assert results(found)["run"]["identity"]["left_out"] == ["</s>"]
    assert "left_out" not in results(folder)["run"]["identity"]
    assert "puts </s> behind every text" in (found / "run.log").read_text(encoding="utf-8")
    counts = [
        [json.loads(line)["prompt_tokens"] for line in (run / "samples" / "足し算.jsonl").open()]
        for run in (folder, found)
    ]
    assert counts[0] == counts[1]
