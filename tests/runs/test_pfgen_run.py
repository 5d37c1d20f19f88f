"""Runs of suite=pfgen through the command line: trials that continue, empty answers, every verb."""

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import evalkit.engines
from evalkit.__main__ import main
from evalkit.core.assets import cache_dir
from evalkit.core.config import Config, EngineConfig, ModelConfig
from evalkit.core.durable import read_log
from evalkit.core.text import text_sha256
from evalkit.core.types import Completion, Request
from evalkit.engines.base import Engine
from evalkit.leaderboard.runs import data_differences
from evalkit.records.results import Results, read_results
from evalkit.tasks.pfgen import trial_seed
from tests.serving import serving
from tests.thinking import save_thinking_model
from tests.tiny_pfgen import QUESTIONS, published, use_tiny_pfgen

RANDOM = ["model=random", "suite=pfgen", "offline=true", "engine.threads=1", "generation.output_length=6"]
Answer = Callable[[Request], tuple[str, str]]


class Scripted(Engine):
    """Answers as a function of the request says: text and finish reason."""

    family = "local"

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked = answer, list[Request]()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            text, finish = self.answer(request)
            yield Completion(request.id, text, text, finish, 1, 1)  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    use_tiny_pfgen(monkeypatch)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], Scripted]:
    def use(answer: Answer) -> Scripted:
        engine = Scripted(answer)
        monkeypatch.setattr(evalkit.engines, "build_engine", lambda *args, **kwargs: engine)
        return engine

    return use


def run(out: Path, *words: str, command: list[str] = RANDOM, code: int = 0) -> Path:
    assert main([*command, f"out={out}", *words]) == code
    folders = [path.parent for path in out.rglob("results.json")]
    return max(folders, key=lambda folder: folder.stat().st_mtime_ns) if folders else out


def rows(folder: Path, kind: str = "samples") -> dict[str, dict[str, Any]]:
    return read_log(folder / kind / "pfgen.jsonl")[0]


def results(folder: Path) -> Results:
    return read_results(folder / "results.json")


def good(request: Request) -> tuple[str, str]:
    number = request.id[2]
    return (f" {number}は水です\n\nQ:" if (int(number) + request.seed) % 3 else f" {number}は"), "stop_string"


def test_more_trials_continue_fewer_and_a_restart_is_the_same(
    tmp_path: Path, scripted: Callable[[Answer], Scripted], capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(lambda request: (f"{request.seed}{text_sha256(str(request.prompt))}", "stop"))
    folder = run(tmp_path / "out", "samples=2")
    two = rows(folder)
    assert set(two) == {f"{one.id}/{trial}" for trial in (1, 2) for one in QUESTIONS}
    identity = results(folder).run["identity"]
    assert identity["pfgen"]["mode"] == "completion" and identity["pfgen"]["stop"][:2] == ["Q:", "\n\n"]
    assert identity["protocol"] == "pfgen-bench" and identity["num_few_shots"] == 20
    assert identity["generation"]["top_p"] == 0.98 and set(identity["data"]["pfgen"]) == {"metadata_hash"}
    capsys.readouterr()
    assert run(tmp_path / "out", "samples=3") == folder
    assert "continuing: 12 of 18" in capsys.readouterr().err
    three = rows(folder)
    assert {key: three[key] for key in two} == two and results(folder).run["pfgen"]["trials"] == 3
    assert run(tmp_path / "out", "samples=2") == folder and rows(folder) == three
    # The first trial alone is in the same folder too, and others have another seed.
    assert run(tmp_path / "one", "samples=1").name == folder.name
    assert run(tmp_path / "other", "samples=1", "seed=7").name != folder.name
    log = folder / "samples" / "pfgen.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    (folder / "results.json").unlink()
    run(tmp_path / "out", "samples=3", "engine.batch_size=2")
    assert rows(folder) == three


def test_answers_are_scored_by_trial_and_again(
    tmp_path: Path, scripted: Callable[[Answer], Scripted], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = scripted(good)
    folder = run(tmp_path / "out")
    assert len(engine.asked) == 60 and engine.asked[6].seed == trial_seed(2)
    found = results(folder)
    details = found.run["pfgen"]
    assert details["trials"] == 10 and details["resampled"] == "questions and trials"
    assert sum(details["variance"].values()) == pytest.approx(1)
    assert found.protocol.options["num_few_shots"] == 20
    assert found.protocol.deviations == {"generation.output_length": 6, "dtype": "float32"}
    said = capsys.readouterr().out
    assert "scale: the published ground truth scores 1.05" in said and "variance of the scores: " in said
    first = rows(folder, "scores")["Q01"]["repeats"][0]
    assert first["id"] == "Q01/1" and first["prediction"] in ("1は水です", "1は")
    assert main(["score", f"run={folder}"]) == 0
    assert "nothing moved" in capsys.readouterr().out and results(folder).scores == found.scores
    assert main(["score", f"run={folder}", "protocol.strip=true"]) == 2
    assert "pfgen asks and reads answers by its own protocol" in capsys.readouterr().err
    other = run(tmp_path / "out", "samples=4", "pfgen.mode=completion", "generation.output_length=7")
    assert other != folder
    assert main(["compare", str(folder), str(other), "--across-rules"]) == 2
    assert "token limit of pfgen differs" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path / "out")]) == 0
    assert "pfgen-bench" in capsys.readouterr().out
    kept = folder / "samples" / "pfgen.jsonl"
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:-1]))
    assert main(["score", f"run={folder}"]) == 2
    assert "completions are missing or damaged: pfgen (1 samples)" in capsys.readouterr().err
    assert main(["score", f"run={folder}", "allow_missing=true"]) == 0
    # A question counts by the answers that it has.
    assert results(folder).partial.partial and results(folder).scores["pfgen_score"].n == 6
    assert results(folder).run["pfgen"]["resampled"] == "questions, and answers within questions"
    # Stopped in its first trial, it has no results at all.
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[:2]))
    (folder / "results.json").unlink()
    assert main(["score", f"run={folder}"]) == 2
    assert "the run is not finished" in capsys.readouterr().err
    assert main(["score", f"run={folder}", "allow_missing=true"]) == 0
    assert results(folder).partial.partial and results(folder).scores["pfgen_score"].n == 2


def test_runs_of_two_models_are_paired_by_question(
    tmp_path: Path, scripted: Callable[[Answer], Scripted], capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(good)
    a = run(tmp_path / "a", "samples=2", "model.name=a")
    scripted(lambda request: ("は", "length"))
    b = run(tmp_path / "b", "samples=3", "model.name=b")
    assert results(b).datasets["pfgen"].truncated == 1.0 and results(a).datasets["pfgen"].truncated == 0.0
    assert rows(b, "scores")["Q01"]["repeats"][0]["status"] == "cut_off"
    capsys.readouterr()
    assert main(["compare", str(a), str(b)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pfgen "))
    values = [results(folder).scores["pfgen_score"].value for folder in (a, b)]
    assert line.split()[1:3] == [f"{value:.4f}" for value in values]


def test_a_run_is_paired_with_published_sets_and_what_is_unknown_is_said(
    tmp_path: Path, scripted: Callable[[Answer], Scripted], capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(good)
    own = run(tmp_path / "a", "samples=2", "model.name=a", command=RANDOM[:-1])
    for mode in ("completion", "qa"):
        path = published(tmp_path / mode, model="m", mode=mode)
        assert main(["score", "suite=pfgen", f"completions={path}", f"out={tmp_path / 'out' / mode}"]) == 0
    same, other = tmp_path / "out" / "completion", tmp_path / "out" / "qa"
    capsys.readouterr()
    assert main(["compare", str(own), str(same)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the answers of m to pfgen were made elsewhere, and it cannot be checked that prompts" in said
    values = [results(folder).scores["pfgen_score"].value for folder in (own, same)]
    assert f"pfgen {values[0]:.4f} {values[1]:.4f}" in said
    assert main(["compare", str(own), str(other)]) == 2
    assert "pfgen.mode differs: - and qa" in capsys.readouterr().err
    assert main(["compare", str(same), str(other)]) == 2
    # Other data are never compared.
    found = results(same)
    data = {"pfgen": {**found.run["datasets"]["pfgen"], "sha256": {"metadata_hash": "0" * 40}}}
    changed = replace(found, run={**found.run, "datasets": data})
    assert "data of pfgen differs" in str(data_differences(results(own), changed))


def test_empty_answers_are_asked_ten_times_in_all(
    tmp_path: Path, scripted: Callable[[Answer], Scripted]
) -> None:
    def answer(request: Request) -> tuple[str, str]:
        if request.id == "Q02/1":
            return "\n\n", "stop_string"
        if request.id == "Q03/1":
            return "", "error"
        return ("", "stop") if request.seed == trial_seed(1) else ("1は水です", "stop")

    engine = scripted(answer)
    folder = run(tmp_path / "out", "samples=1", "limit=3")
    assert [request.id for request in engine.asked].count("Q02/1") == 10
    assert len({request.seed for request in engine.asked if request.id == "Q02/1"}) == 10
    kept = rows(folder)
    assert [kept[f"Q0{n}/1"].get("attempts") for n in (1, 2, 3)] == [2, 10, None]
    scores = [rows(folder, "scores")[f"Q0{n}"]["repeats"][0] for n in (1, 2, 3)]
    assert [one.get("status") for one in scores] == [None, "empty", "failed"]
    assert [one["values"]["score"] > 0 for one in scores] == [True, False, False]
    found = results(folder)
    assert found.datasets["pfgen"].empty == pytest.approx(2 / 3) and found.run["errors"] == 1
    reasons = str(found.partial.reasons)
    assert "limit=3: the protocol takes 50" in reasons and "1 samples count as wrong" in reasons


def test_chats_thoughts_and_servers(tmp_path: Path) -> None:
    script = ("<think>", "Q:は何か", "</think>", "\nA: ", "1は水", "です")
    model = save_thinking_model(tmp_path / "model", script)
    command = ["model=hf", f"model.path={model}", "model.name=chat", *RANDOM[1:4], "limit=2", "samples=1"]
    words = ("pfgen.mode=chat", "reasoning.thought_length=50")
    folder = run(tmp_path / "out", *words, command=command)
    first = rows(folder)["Q01/1"]
    # A stop string within the thought ends nothing.
    assert (first["thought"], first["status"]) == ("Q:は何か", "answered")
    assert rows(folder, "scores")["Q01"]["repeats"][0]["prediction"] == "1は水です"
    assert results(folder).run["identity"]["chat"] and results(folder).datasets["pfgen"].thoughts
    assert results(folder).protocol.deviations["pfgen.mode"] == "chat"
    config = Config(
        model=ModelConfig(name="chat", path=str(model)),
        engine=EngineConfig(name="local", device="cpu", threads=1),
    )
    with serving(config) as server:
        served = run(
            tmp_path / "served", *words, "engine=api", f"engine.base_url={server.url}", command=command
        )
    assert rows(served) == rows(folder)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("samples=101", "pfgen has at most 100 trials"),
        ("samples=0", "samples=0 is below 1"),
        ("pfgen.mode=poem", "pfgen.mode=poem is not one of completion, qa, chat"),
        ("suite.chat=true", "by its own protocol\n  where: option suite.chat"),
        ("generation=swallow", "pfgen asks and reads answers by its own protocol"),
        ("num_few_shots=4", "pfgen asks and reads answers by its own protocol"),
        ("generation.do_sample=false", "temperature, top_p and top_k are for sampled generation"),
    ],
)
def test_bad_options_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    run(tmp_path / "out", word, code=2)
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["ask", "model=random", "Q01", "ask.temperature=0"],
            "decides this\n  where: option ask.temperature",
        ),
        (["score", "completions=x", "out=y", "samples=3"], "completions= has its own number of answers"),
        (["score", "completions=x", "out=y", "suite.limit=3"], "fix:   leave it out\n"),
    ],
)
def test_what_pfgen_does_not_take_is_refused_by_other_verbs(
    capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert main([*command, "suite=pfgen", "offline=true"]) == 2
    assert message in capsys.readouterr().err


def test_the_mode_of_pfgen_is_for_pfgen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["model=random", "suite=sample", "offline=true"]
    run(tmp_path / "out", "pfgen.mode=qa", command=command, code=2)
    assert "this option is for another suite" in capsys.readouterr().err


def test_prompts_are_written_with_their_seeds_and_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prompts"
    assert main(["prompts", "suite=pfgen", "samples=2", f"out={out}"]) == 0
    lines = [json.loads(line) for line in (out / "pfgen.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 12 and lines[6]["id"] == "Q01/2"
    assert lines[0]["prompt"].startswith("## 回答例\nQ: ") and lines[0]["prompt"].endswith("Q: 質問1？\nA:")
    assert (lines[0]["stop"], lines[0]["max_new_tokens"]) == (["Q:", "\n\n"], 300)
    assert (lines[6]["seed"], lines[6]["temperature"], lines[6]["top_p"]) == (trial_seed(2), 1.0, 0.98)
    answers = [{"id": line["id"], "completion": "は\n\n", "finish_reason": "stop"} for line in lines]
    (out / "pfgen.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    assert main(["score", "suite=pfgen", f"completions={out}", f"out={tmp_path / 'scores'}"]) == 0
    assert results(tmp_path / "scores").datasets["pfgen"].truncated == 0.0
    assert main(["prompts", "suite=pfgen", "pfgen.mode=chat", "samples=1", f"out={out}"]) == 0
    first = json.loads((out / "pfgen.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert [one["role"] for one in first["messages"]] == ["system", "user"]


def test_plan_ask_and_certify(
    tmp_path: Path, scripted: Callable[[Answer], Scripted], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    assert main(["plan", "model=random", "suite=pfgen", "samples=2", "gpus=0", f"out={plan}"]) == 0
    (counted,) = json.loads(plan.read_text())["datasets"]
    assert (counted["name"], counted["samples"], counted["source"]) == ("pfgen", 12, "data")
    assert counted["computed_tokens"] < counted["prompt_tokens"] and counted["new_tokens_most"] == 12 * 300
    assert counted["new_tokens_typical"] == 12 * (len("1は水です".encode()) + 2)
    capsys.readouterr()
    assert main(["certify", "model=random", "suite=pfgen"]) == 2
    assert "certify compares greedy answers, and pfgen draws its answers" in capsys.readouterr().err
    engine = scripted(good)
    for words, key in ((("Q03",), "Q03/1"), (("質問3？",), "Q03/1"), (("Q03/2",), "Q03/2")):
        assert main(["ask", "model=random", "suite=pfgen", "offline=true", *words]) == 0
        assert engine.asked[-1].id == key and engine.asked[-1].max_new_tokens == 300
    assert "Q: 質問3？\nA:" in capsys.readouterr().out
    assert main(["ask", "model=random", "suite=pfgen", "offline=true", "Q07"]) == 2
    assert "no question of pfgen: 'Q07'" in capsys.readouterr().err


@pytest.mark.sources
@pytest.mark.campaign
def test_smollm2_answers_the_published_questions(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real model and the real data: two trials, bundled and without a network."""
    monkeypatch.undo()
    model = cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1-b179c9523d0e"
    if not model.is_dir():
        pytest.skip("SmolLM2 is not in the cache: evalkit prepare model=smollm2-135m")
    command = ["model=hf", f"model.path={model}", "suite=pfgen", "generation.output_length=32"]
    command += [f"mirror={mirror}", "offline=true"]
    folder = run(tmp_path / "out", "samples=2", "limit=2", command=command)
    assert sorted(rows(folder)) == ["Q01/1", "Q01/2", "Q02/1", "Q02/2"]
    assert main(["score", f"run={folder}"]) == 0
    assert "nothing moved" in capsys.readouterr().out
    bundle = tmp_path / "bundle.tar"
    assert main(["bundle", "suite=pfgen", f"mirror={mirror}", f"out={bundle}"]) == 0
    with tarfile.open(bundle) as tar:
        tar.extractall(tmp_path, filter="data")
    # The files of a bundle replace those of the machine, by these variables.
    for name in ("EVALKIT_CACHE", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    command = [*command[:4], f"data_dir={tmp_path / 'bundle'}", "offline=true"]
    there = run(tmp_path / "there", "samples=1", "limit=1", command=command)
    assert there.name == folder.name and rows(there)["Q01/1"] == rows(folder)["Q01/1"]
