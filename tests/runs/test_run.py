"""Whole runs of a small random model through the command line, killed and continued."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from tests.children import Ended, fork
from tests.leaderboard.made import Made, make_run, write_data

TASKS = ["jamp", "mawps", "jemhopqa", "jsts", "jsquad"]
COMMAND = ["model=random", "suite=sample", f"suite.tasks=[{','.join(TASKS)}]", "engine.threads=1"]


def words(out: Path) -> list[str]:
    return [*COMMAND, f"out={out}"]


def finished(ended: Ended) -> Ended:
    assert ended.code == 0, ended.out + ended.err
    assert "Traceback" not in ended.err
    return ended


def run(out: Path) -> Ended:
    return finished(fork(words(out), out).wait())


def run_folder(out: Path) -> Path:
    (folder,) = {path.parent.parent for path in out.glob("random/sample/*/samples/*.jsonl")}
    return folder


def sample_rows(out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    rows = {}
    for task in TASKS:
        path = run_folder(out) / "samples" / f"{task}.jsonl"
        rows[task], damaged = read_log(path)
        lines = path.read_bytes().count(b"\n")
        assert (damaged, lines) == (0, len(rows[task])), f"{task}: something twice or torn"
    return rows


def scores(out: Path) -> dict[str, Any]:
    results = json.loads((run_folder(out) / "results.json").read_text(encoding="utf-8"))
    return {
        key: results[key] for key in ("scores", "categories", "average", "datasets", "protocol", "partial")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    run(out)
    return out


def test_a_run_leaves_the_documented_files(undisturbed: Path) -> None:
    folder = run_folder(undisturbed)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    expected = {"config.yaml", "environment.json", "results.json", "run.log", "timings.json"}
    expected |= {f"{kind}/{task}.jsonl" for kind in ("samples", "scores") for task in TASKS}
    assert names - {".lock"} == expected
    rows = sample_rows(undisturbed)
    assert all(len(rows[task]) == 6 for task in TASKS)
    identity = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["identity"]
    assert identity["num_few_shots"] == 4 and identity["engine_family"] == "local"


def test_the_same_command_finds_the_finished_run(undisturbed: Path) -> None:
    before = (run_folder(undisturbed) / "results.json").stat().st_mtime_ns
    done = run(undisturbed)
    assert "finished already: all 30 completions are kept" in done.out
    assert (run_folder(undisturbed) / "results.json").stat().st_mtime_ns == before


def kill_when(out: Path, lines: int, number: int) -> int:
    """Starts a run and sends it a signal once its logs hold `lines` lines; returns its exit code."""
    process = fork(words(out), out)
    deadline = time.monotonic() + 120
    while process.running and time.monotonic() < deadline:
        written = sum(path.read_bytes().count(b"\n") for path in out.glob("random/sample/*/samples/*.jsonl"))
        if written >= lines:
            process.send(number)
            break
        time.sleep(0.005)
    return process.wait().code


def test_kill_9_at_several_points_changes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    torn = random.Random(0)
    for lines in (1, 9, 20, 27):
        code = kill_when(tmp_path, lines, signal.SIGKILL)
        assert code in (-signal.SIGKILL, 0)
        for path in run_folder(tmp_path).glob("samples/*.jsonl"):
            # What a crash can leave: the last line cut anywhere, even inside a character.
            content = path.read_bytes()
            if content and torn.random() < 0.5:
                last = content.rstrip(b"\n").rfind(b"\n") + 1
                path.write_bytes(content[: torn.randrange(last, len(content))])
    run(tmp_path)
    assert sample_rows(tmp_path) == sample_rows(undisturbed)
    assert scores(tmp_path) == scores(undisturbed)


def test_polite_signals_are_130_and_resumable(undisturbed: Path, tmp_path: Path) -> None:
    for lines, number in ((2, signal.SIGTERM), (8, signal.SIGINT), (13, signal.SIGUSR1)):
        assert kill_when(tmp_path, lines, number) == 130
    done = run(tmp_path)
    assert "continuing:" in done.err
    assert sample_rows(tmp_path) == sample_rows(undisturbed)


def in_process(out: Path, *more: str) -> None:
    """The same command without starting another interpreter."""
    assert main([*COMMAND, f"out={out}", "offline=true", *more]) == 0


def test_a_larger_limit_continues_a_smaller_one(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_process(tmp_path, "limit=2")
    assert sum(map(len, sample_rows(tmp_path).values())) == 10
    assert "limit=2" in json.dumps(scores(tmp_path)["partial"])
    in_process(tmp_path)
    assert "continuing: 10 of 30" in capsys.readouterr().err
    assert sample_rows(tmp_path) == sample_rows(undisturbed)
    assert scores(tmp_path) == scores(undisturbed)
    in_process(tmp_path, "limit=3")
    said = capsys.readouterr()
    assert "nothing was generated" in said.out
    assert "the kept results of limit=100 stand in for limit=3" in said.err
    assert scores(tmp_path) == scores(undisturbed)


def test_clean_up_options_score_again_without_generating(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_process(tmp_path, "limit=1")
    before = sample_rows(tmp_path)
    capsys.readouterr()
    in_process(tmp_path, "limit=1", "protocol.strip=true")
    printed = capsys.readouterr().out
    assert "nothing was generated" in printed and "protocol.strip=True" in printed
    assert sample_rows(tmp_path) == before
    assert scores(tmp_path)["protocol"]["deviations"]["protocol.strip"] is True


def test_batch_size_names_the_same_run_and_gives_the_same_records(undisturbed: Path, tmp_path: Path) -> None:
    in_process(tmp_path, "engine.batch_size=1")
    assert run_folder(tmp_path).name == run_folder(undisturbed).name
    assert sample_rows(tmp_path) == sample_rows(undisturbed)


def test_more_samples_than_the_protocols_are_no_stand_in_for_its_figures(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 102, ["mawps"])

    def figure(*options: str) -> tuple[int, object, int]:
        words = ("suite=task", "suite.tasks=[mawps]", *options)
        done = make_run(Made("m", 0.5), data, tmp_path / "results", *words)
        found = done.results
        return found.scores["mawps_exact_match"].n, found.protocol.options["limit"], done.generated

    assert figure("limit=0") == (102, 0, 102)
    assert figure() == (100, 100, 0)
    assert figure("limit=20") == (100, 100, 0)
    assert figure("limit=101") == (101, 101, 0)
    assert figure("limit=20") == (20, 20, 0)


def test_what_decides_completions_names_another_run(undisturbed: Path, tmp_path: Path) -> None:
    in_process(tmp_path, "num_few_shots=2", "limit=1")
    assert run_folder(tmp_path).name != run_folder(undisturbed).name


def test_a_damaged_results_file_is_made_again(undisturbed: Path, tmp_path: Path) -> None:
    in_process(tmp_path)
    path = run_folder(tmp_path) / "results.json"
    path.write_bytes(path.read_bytes()[:100])
    in_process(tmp_path)
    assert scores(tmp_path) == scores(undisturbed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_few_shots=9"], "num_few_shots=4"),
        (["suite.tasks=[jamp,jmap]"], "did you mean 'jamp'"),
        (["suite.tasks=[jamp,jamp]"], "named twice"),
        (["suite.tasks=[]"], "has no tasks"),
        (["protocol.answer_regex=(("], "regular expression"),
        (["metrics.pass_at=[2]"], "pass@2 of 1 samples"),
        (["protocol.custom_prompt_template=x"], "{input}"),
        (["engine.device=cuda:7"], "engine.device"),
        (["model=hf", "model.path=/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([*COMMAND, f"out={tmp_path / 'out'}", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
