"""Another number of few-shots for one task: in prompts, runs, scores and plans."""

import json
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.assets import default_data_dir
from evalkit.core.errors import UnreachableError
from evalkit.core.options import load_config, parse
from evalkit.runs.plan.estimate import estimate
from evalkit.runs.suite import load_suite
from evalkit.runs.sweep.values import values_of
from evalkit.tasks.load import prepared_path

OPTION = "suite.num_few_shots.jamp"
TASKS = "suite.tasks=[jamp,wikicorpus-e-to-j]"
RUN = ["model=random", "suite=sample", TASKS, "limit=1", "offline=true"]


def run(out: Path, *words: str) -> dict[str, Any]:
    """The results of a run and the name of its folder."""
    assert main([*RUN, f"out={out}", *words]) == 0
    (path,) = out.glob("random/sample/*/results.json")
    return {"id": path.parent.name, **json.loads(path.read_text(encoding="utf-8"))}


def shots(folder: Path, name: str) -> int:
    """The number of examples in the first prompt of a task."""
    line = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return int(json.loads(line)["prompt"].count("### 応答:\n")) - 1


def test_prompts_have_the_number_of_their_task(tmp_path: Path) -> None:
    words = ["prompts", "suite=sample", TASKS, f"out={tmp_path}", "num_few_shots=3"]
    assert main([*words, f"{OPTION}=1", "suite.num_few_shots.wikicorpus-e-to-j=0"]) == 0
    assert (shots(tmp_path, "jamp"), shots(tmp_path, "wikicorpus-e-to-j")) == (1, 0)


def test_a_run_records_it_and_a_run_without_it_keeps_its_id(tmp_path: Path) -> None:
    usual = run(tmp_path / "usual")
    # The number the task has anyway changes nothing.
    assert run(tmp_path / "same", f"{OPTION}=4") == usual
    assert "task_few_shots" not in usual["run"]["identity"]
    assert OPTION not in usual["protocol"]["options"]
    other = run(tmp_path / "other", f"{OPTION}=2")
    assert other["id"] != usual["id"]
    assert other["run"]["identity"]["task_few_shots"] == {"jamp": 2}
    assert other["protocol"]["deviations"][OPTION] == other["protocol"]["options"][OPTION] == 2


def test_scoring_again_keeps_what_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = run(tmp_path, f"{OPTION}=0")
    folder = tmp_path / "random" / "sample" / before["id"]
    run(tmp_path, f"{OPTION}=0")
    assert "finished already" in capsys.readouterr().out
    assert main(["score", f"run={folder}", "protocol.strip=true"]) == 0
    after = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert after["protocol"]["deviations"] == {**before["protocol"]["deviations"], "protocol.strip": True}


def test_completions_made_elsewhere_record_it_and_read_no_examples(tmp_path: Path) -> None:
    lines = [json.dumps({"id": "jamp/bundled/0", "completion": "neutral"})]
    (tmp_path / "jamp.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = ["score", "suite=sample", TASKS, f"completions={tmp_path}", "limit=1", "allow_missing=true"]
    # Nobody has ninety examples: they are recorded, not read.
    more = [f"{OPTION}=90", "suite.num_few_shots.wikicorpus-e-to-j=1"]
    assert main([*words, *more, f"out={tmp_path / 'out'}"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    found = {key for key in results["protocol"]["deviations"] if key.startswith("suite.")}
    assert found == {OPTION} and results["protocol"]["deviations"][OPTION] == 90


def test_mt_bench_has_no_tasks_to_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"out={tmp_path / 'out'}"
    for verb in (["prompts", out], ["score", f"completions={tmp_path}", out]):
        assert main([*verb, "suite=mt-bench-ja"]) == 2
        shown = capsys.readouterr().err
        assert "two turns" in shown and "evalkit judge run=RUN" in shown


def test_a_plan_counts_them(tmp_path: Path) -> None:
    def tokens(*words: str) -> list[float]:
        config = load_config(parse(["model=13b", *words], ()))
        return [row.prompt_tokens for row in estimate(config).datasets]

    for suite in (["suite=sample", TASKS], ["suite=task", TASKS, f"data_dir={tmp_path}"]):
        usual, fewer = tokens(*suite), tokens(*suite, f"{OPTION}=0")
        assert fewer[0] < usual[0] and fewer[1] == usual[1]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("suite.num_few_shots.jmap=2", "did you mean 'jamp'"),
        (f"{OPTION}=-1", "below 0"),
        (f"{OPTION}=5", f"{OPTION}=4"),
        (f"{OPTION}=many", OPTION),
    ],
)
def test_mistakes_are_one_message(
    word: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, word, f"out={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_multirun_takes_several() -> None:
    assert values_of("suite.num_few_shots.alt-e-to-j=0,2,4") == ["0", "2", "4"]


def test_the_model_is_looked_for_before_data_are_prepared(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("evalkit.sources.prepare.prepare", None)
    for command in ([], ["certify"]):
        assert main([*command, "model=hf", "model.path=/no/such/model", "suite=nli"]) == 2
        error = capsys.readouterr().err
        assert "the model folder does not exist" in error and "/no/such/model" in error


@pytest.mark.parametrize("offline", [True, False])
def test_what_is_not_here_names_the_whole_command(
    offline: bool, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise UnreachableError("no network: a.example is unreachable (no route)", where="URL")

    monkeypatch.setattr("evalkit.sources.prepare.prepare", no_network)
    words = ["model=random", "suite=task", "suite.tasks=[jamp,janli]", f"offline={str(offline).lower()}"]
    assert main(words) == (2 if offline else 1)
    error = capsys.readouterr().err
    assert "on a machine with a network: evalkit prepare suite=task 'suite.tasks=[jamp,janli]'" in error
    assert ("a prepared file is missing" if offline else "no network: a.example is unreachable") in error


def test_a_mirror_is_what_a_given_folder_is_prepared_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data_dir={tmp_path}", f"mirror={tmp_path / 'm'}"]
    assert main(["model=random", "suite=mr", *words, f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert f"fix:   evalkit prepare suite=mr {' '.join(words)}   (or allow_missing=true)" in error


def test_without_a_network_all_that_is_needed_may_be_there(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise UnreachableError("no network")

    monkeypatch.setattr("evalkit.sources.prepare.prepare", no_network)
    made = {"few_shots": [], "samples": [{"input": "1+1", "output": "2"}] * 5}
    for split in ("train", "dev"):
        path = prepared_path(default_data_dir(), split, "mawps")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(made), encoding="utf-8")
    config = load_config(parse(["suite=mr"], ["run"]))
    assert config.suite is not None
    suite = load_suite(config.suite, config.data, say=lambda line: None)
    assert [task.name for task in suite.tasks] == ["mawps"] and not suite.missing
