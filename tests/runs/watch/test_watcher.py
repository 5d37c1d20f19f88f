"""The watching itself, with an evaluation that only takes notes, and then for real."""

import json
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from saved import copy_slowly, save

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from evalkit.core.errors import InputError
from evalkit.core.options import load_config, parse
from evalkit.runs.watch.watcher import Evaluated, Watcher, checkpoint_name, series_name
from tests.children import ForkedJobs, fork

COMMON = ["suite=sample", "suite.tasks=[jamp,mawps]", "limit=1", "engine.threads=1", "offline=true"]
FAST = ["watch_poll=0.05", "watch_settle=0.3", "watch_timeout=0.5"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints, to be copied."""
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / f"seed-{seed}", seed) for seed in range(3)]


class Notes:
    """Stands for the evaluation: notes what it was asked for and answers with what it is told."""

    def __init__(self, run: Path, *words: str) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.code = 0
        self.during: Any = lambda path: None
        config = load_config(parse([f"watch={run}", "suite=nli", *FAST, *words], ["run"]))
        self.watcher = Watcher(
            run,
            series_name(config.model, run),
            self.evaluate,
            config.watch_poll,
            config.watch_settle,
            config.watch_timeout,
            needs_tokenizer=True,
            say=self.said.append,
        )

    def evaluate(self, path: Path, name: str) -> Evaluated:
        self.asked.append(name)
        self.during(path)
        return Evaluated(self.code, f"results/{name}", "it broke" if self.code else "")


def test_in_the_order_of_the_steps_each_once(run: Path, models: list[Path]) -> None:
    for name in ("step-1000", "step-200", "step-30"):
        shutil.copytree(models[0], run / name)
    notes = Notes(run)
    notes.during = lambda path: (run / "step-100").exists() or shutil.copytree(models[1], run / "step-100")
    assert notes.watcher.run() == 0
    # The one that came during the first evaluation settles first, then takes its turn.
    assert notes.asked[0] == "run-step-30" and sorted(notes.asked) == sorted(set(notes.asked))
    assert set(notes.asked) == {"run-step-30", "run-step-100", "run-step-200", "run-step-1000"}


def test_a_damaged_one_is_reported_once_and_tried_again_when_it_changes(
    run: Path, models: list[Path]
) -> None:
    shutil.copytree(models[0], run / "step-1")
    shutil.copytree(models[1], run / "step-2")
    content = (run / "step-1" / "model.safetensors").read_bytes()
    (run / "step-1" / "model.safetensors").write_bytes(content[:1000])
    notes = Notes(run, "watch_timeout=1.5")
    timer = threading.Timer(0.8, (run / "step-1" / "model.safetensors").write_bytes, [content])
    timer.start()
    assert notes.watcher.run() == 0
    timer.join()
    assert notes.asked == ["run-step-2", "run-step-1"]
    skipped = [line for line in notes.said if "skipped" in line]
    assert len(skipped) == 1 and "step-1: skipped, model.safetensors" in skipped[0]


def test_a_failed_one_does_not_end_the_watch_but_counts(run: Path, models: list[Path]) -> None:
    shutil.copytree(models[0], run / "step-1")
    notes = Notes(run)
    notes.code = 1
    assert notes.watcher.run() == 1
    assert notes.asked == ["run-step-1"]
    assert any("step-1: failed, it broke" in line for line in notes.said)


def test_one_that_is_being_written_is_not_taken(run: Path, models: list[Path]) -> None:
    whole = {path.name: path.stat().st_size for path in models[0].iterdir()}
    notes = Notes(run)
    found: list[dict[str, int]] = []
    notes.during = lambda path: found.append({file.name: file.stat().st_size for file in path.iterdir()})
    writer = threading.Thread(target=copy_slowly, args=(models[0], run / "step-1", 1.0))
    writer.start()
    assert notes.watcher.run() == 0
    writer.join()
    assert found == [whole]


def test_names(run: Path) -> None:
    series = series_name(None, run)
    assert checkpoint_name(series, run / "step-10") == "run-step-10"
    assert checkpoint_name(series, run / "run_step10") == "run_step10"
    config = load_config(parse([f"watch={run}", "suite=nli", "model=hf", "model.name=mine"], ["run"]))
    assert checkpoint_name(series_name(config.model, run), run / "step-10") == "mine-step-10"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["watch=/nowhere/at/all", "suite=sample"], "does not exist"),
        (["watch={run}", "suite=sample", "model=1.8b"], "model=hf without model.path"),
        (["watch={run}"], "suite=jaster"),
        (["watch={run}", "suite=sample", "model=served"], "model=hf without model.path"),
        (["watch={run}", "suite=sample", "engine=api", "engine.base_url=http://a/v1"], "option engine=api"),
        (["watch={run}", "suite=sample", "watch_poll=0"], "watch_poll"),
        (["watch={run}", "suite=sample", "watch_timeout=-1"], "watch_timeout"),
        (["watch={run}", "suite=sample", "wacth_timeout=1"], "'watch_timeout'"),
        (["watch={run}", "suite=task", "suite.tasks=[jmap]"], "'jamp'"),
        (["watch={run}", "suite=sample", "protocol.answer_regex=(("], "regular expression"),
        (["watch={run}", "suite=sample", "samples=2"], "greedy search"),
        (["watch={run}", "suite=mt-bench-ja", "preset=nowhere"], "nowhere"),
    ],
)
def test_bad_options(run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main([word.replace("{run}", str(run)) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_an_unreadable_folder_is_said(run: Path) -> None:
    notes = Notes(run)
    run.rmdir()
    with pytest.raises(InputError):
        notes.watcher.run()


def sample_rows(results: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(results.glob("*/sample/*/samples/*.jsonl")):
        rows, damaged = read_log(path)
        assert (damaged, path.read_bytes().count(b"\n")) == (0, len(rows))
        found[f"{path.parents[3].name}/{path.stem}"] = rows
    return found


def test_a_training_run_is_followed(
    run: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"watch={run}", *COMMON, *FAST, f"out={tmp_path / 'results'}"]
    shutil.copytree(models[0], run / "step-1000")
    (run / "step-1500").mkdir()
    (run / "step-1500" / "config.json").write_text('{"model_type"', encoding="utf-8")
    writer = threading.Thread(target=copy_slowly, args=(models[1], run / "step-2000", 1.5))
    writer.start()
    ended = fork(command, tmp_path, [ForkedJobs()]).wait()
    assert ended.code == 0, ended
    writer.join()
    assert ended.err.count("step-1500: skipped, config.json is not whole JSON") == 1
    assert "2 checkpoints: 2 ok, 0 failed" in ended.out and "--steps" in ended.out
    for name, model in (("run-step-1000", models[0]), ("run-step-2000", models[1])):
        single = [f"model.path={model}", f"model.name={name}", f"out={tmp_path / 'single'}"]
        assert main(["model=hf", *COMMON, *single]) == 0
    assert sample_rows(tmp_path / "results") == sample_rows(tmp_path / "single")

    capsys.readouterr()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*") if path.is_file()}
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err.count("was done before") == 2
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*") if p.is_file()}
    folders = [str(path) for path in (tmp_path / "results").glob("run-step-*/sample")]
    assert main(["compare", *folders, "--steps", "--partial", "metrics.resamples=50"]) == 0
    printed = capsys.readouterr()
    assert "1000" in printed.out and "2000" in printed.out


def test_a_signal_stops_the_watch_and_the_next_one_finishes(
    run: Path, models: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(models[2], run / "step-1")
    results = tmp_path / "results"
    command = [f"watch={run}", *COMMON, *FAST, f"out={results}", "limit=6", "engine.batch_size=1"]
    process = fork(command, tmp_path, [ForkedJobs()])
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not any(
        path.stat().st_size for path in results.glob("*/*/*/samples/*.jsonl")
    ):
        assert process.running, process.wait()
        time.sleep(0.01)
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert ended.code == 130, ended
    assert "Traceback" not in ended.out + ended.err and not list(results.rglob("results.json"))
    ended = fork(command, tmp_path, [ForkedJobs()]).wait()
    assert ended.code == 0, ended
    (path,) = results.rglob("results.json")
    assert json.loads(path.read_text(encoding="utf-8"))["run"]["samples"] == 12
