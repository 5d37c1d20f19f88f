"""The verb `prepare` from its command line: table, exit codes, messages."""

import csv
import hashlib
import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from evalkit.__main__ import main
from evalkit.cli.prepare import allow_network
from evalkit.tasks.spec import TaskSpec, load_spec, task_names


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)


@pytest.fixture
def mawps_mirror(tmp_path: Path) -> Path:
    """A mirror that has two of the three files of mawps, with other content than upstream's."""
    folder = tmp_path / "ミラー, a=b"
    folder.mkdir()
    example = json.dumps([{"shot_example": "問題：x\n解答：答えは5です。"}])
    base = "https://raw.githubusercontent.com/nlp-waseda/chain-of-thought-ja-dataset"
    commit = "2ad9fcbc597e70424f0b40ee2749570ba3f581bf"
    with (folder / "MANIFEST.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["local_path", "upstream_url", "sha256"])
        for name in ("zero_shot_example.json", "shot_example.json"):
            (folder / name).write_text(example)
            digest = hashlib.sha256(example.encode()).hexdigest()
            writer.writerow([name, f"{base}/{commit}/dataset/mawps/{name}", digest])
    return folder


def test_preparing_fetches_whatever_was_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE=1 is about runs; the library has read it where data_dir= is a bundle."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    allow_network()
    assert os.environ["HF_HUB_OFFLINE"] == "0" and constants.HF_HUB_OFFLINE is False


def test_a_language_that_no_preset_has(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "suite=mt-bench-ja", "language=jp", "offline=true"]) == 2
    assert "language=jp; did you mean 'ja'?" in capsys.readouterr().err


@pytest.mark.usefixtures("no_network")
def test_what_cannot_be_had_is_exit_1(
    mawps_mirror: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "suite=mr", f"mirror={mawps_mirror}", f"data_dir={tmp_path / 'data'}"]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "mawps" in printed and "not available" in printed and "Apache-2.0" in printed
    assert "not the pinned one" in printed
    assert main([*words, "allow_missing=true"]) == 0


@pytest.mark.usefixtures("no_network")
def test_offline_asks_nobody(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "suite=mr", "offline=true", f"data_dir={tmp_path}"]) == 1
    assert "offline" in capsys.readouterr().out


def test_a_mirror_that_is_none_is_exit_2(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "suite=mr", f"mirror={tmp_path}", f"data_dir={tmp_path / 'd'}"]) == 2
    assert "MANIFEST.csv" in capsys.readouterr().err


def test_a_data_folder_that_is_a_file_is_exit_2(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").write_text("")
    assert main(["prepare", "suite=mr", f"data_dir={tmp_path / 'f'}"]) == 2
    assert "data_dir=" in capsys.readouterr().err


def test_no_suite_is_exit_2(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare"]) == 2
    assert "suite=" in capsys.readouterr().err


@pytest.mark.sources
def test_prepare_from_the_mirror(
    mirror: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "suite=task", "suite.tasks=[jemhopqa,niilc,jnli]", f"mirror={mirror}"]
    assert main([*words, f"data_dir={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    rows = {line.split()[1]: line for line in printed.splitlines() if line.startswith("│")}
    assert "dev verified; train, test derived" in rows["jemhopqa"] and "106" in rows["jemhopqa"]
    assert "test derived; train, dev not available" in rows["jnli"] and "2434" in rows["jnli"]
    assert "CC-BY-SA-4.0" in rows["niilc"] and "yes" in rows["niilc"]
    assert "jnli-v1.1/train-v1.1.json" in printed


@pytest.mark.parametrize("name", task_names())
def test_every_dataset_says_what_may_be_done_with_it(name: str) -> None:
    spec: TaskSpec = load_spec(name)
    assert spec.license and spec.citation and spec.commercial_use
    assert spec.homepage and spec.homepage.startswith("https://")
    assert (spec.license_note is not None) == (spec.commercial_use.value == "see_note")
