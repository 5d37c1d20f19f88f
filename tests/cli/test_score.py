"""`score` and `reproduce` through the command line, on completions made by hand."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from evalkit import metrics as registry
from evalkit.__main__ import main
from evalkit.core.config import Config, EngineConfig, ModelConfig, SuiteConfig, SuiteData
from evalkit.core.durable import read_log
from evalkit.core.types import Completion
from evalkit.leaderboard.card import MT_BENCH_TABLE, load_cards
from evalkit.metrics.metric import SampleMetric
from evalkit.records.results import AVERAGE, Figure, Results, read_results
from evalkit.records.run_folder import RunDirectory, SampleRecord
from evalkit.runs.rescore import UNEXPLAINED
from evalkit.scoring.categories import summarise
from evalkit.tasks.load import load_bundled
from evalkit.tasks.spec import CATEGORIES, load_spec
from tests.scored import record_of

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("jamp", "jsts", "jemhopqa")
SUITE = ["suite=sample", f"suite.tasks=[{','.join(TASKS)}]"]
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def rows() -> Rows:
    """Completions of all bundled samples: the gold, with a line too many in every second answer."""
    return {
        name: [
            {"id": sample.id, "completion": sample.gold + ("\n" if index % 2 else "\n\n### 入力:\nx")}
            for index, sample in enumerate(load_bundled(load_spec(name)).samples)
        ]
        for name in TASKS
    }


def write(folder: Path, rows: Rows) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def score(tmp_path: Path, rows: Rows, *options: str) -> int:
    given = write(tmp_path / "given", rows)
    return main(["score", *SUITE, f"completions={given}", f"out={tmp_path / 'out'}", *options])


def results(tmp_path: Path) -> Results:
    return read_results(tmp_path / "out" / "results.json")


def test_foreign_completions(tmp_path: Path, rows: Rows) -> None:
    assert score(tmp_path, rows) == 0
    found = results(tmp_path)
    assert found.scores["jamp_exact_match"].value == 0.5
    assert found.scores["jsts_pearson"].value == pytest.approx(1.0)
    assert found.scores["jemhopqa_char_f1"].value == 1.0
    assert found.datasets["jemhopqa"].truncated is None
    kept, damaged = read_log(tmp_path / "out" / "scores" / "jamp.jsonl")
    assert damaged == 0 and len(kept) == 6
    assert kept["jamp/bundled/1"]["values"] == {"exact_match": 0.0}
    assert score(tmp_path, rows, "protocol.strip=true") == 0
    assert results(tmp_path).scores["jamp_exact_match"].value == 1.0
    assert results(tmp_path).protocol.deviations == {"protocol.strip": True}


def test_the_scores_of_other_answers_are_kept(
    tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(tmp_path, rows) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    same = ["score", f"completions={tmp_path / 'given'}", f"out={tmp_path / 'out'}", "suite=sample"]
    elsewhere = write(tmp_path / "elsewhere", rows)
    for words, differs in (
        ([*same, "suite.tasks=[jamp]", "allow_missing=true"], "other datasets"),
        ([*same, SUITE[1], "model=hf", "model.name=m"], "other model"),
        ([*same, SUITE[1], f"completions={elsewhere}"], "other completions"),
    ):
        assert main(words) == 2
        assert differs in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_samples_of_a_run_are_completions_too(tmp_path: Path, rows: Rows) -> None:
    for line in rows["jemhopqa"]:
        line["finish_reason"] = "length"
    assert score(tmp_path, rows) == 0
    # A blank line ends half of them, and only half are cut off.
    assert results(tmp_path).datasets["jemhopqa"].truncated == 0.5


def test_ids_beyond_the_limit_are_known(tmp_path: Path, rows: Rows) -> None:
    assert score(tmp_path, rows, "limit=2") == 0
    assert results(tmp_path).scores["jamp_exact_match"].n == 2


def test_completions_have_one_answer_to_each_question(
    tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(tmp_path, rows, "samples=4") == 2
    assert "where: option samples=4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def drop(rows: Rows) -> None:
    del rows["jamp"][2:4]


def rename(rows: Rows) -> None:
    rows["jamp"][0]["id"] = "jamp/bundled/99"


def repeat(rows: Rows) -> None:
    rows["jamp"].append(rows["jamp"][0])


def foreign(rows: Rows) -> None:
    rows["jampp"] = rows["jamp"]


def forget(rows: Rows) -> None:
    del rows["jsts"]


def number(rows: Rows) -> None:
    rows["jamp"][3]["completion"] = 3


def reason(rows: Rows) -> None:
    rows["jamp"][1]["finish_reason"] = "eos"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, "jamp/bundled/2, jamp/bundled/3"),
        (rename, "no sample with the id jamp/bundled/99"),
        (repeat, "jamp/bundled/0 is there twice"),
        (foreign, "unknown dataset: jampp; did you mean 'jamp'"),
        (forget, "no completions for jsts"),
        (number, "line 4, field completion"),
        (reason, "line 2, field finish_reason"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path,
    rows: Rows,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Rows], None],
    message: str,
) -> None:
    spoil(rows)
    assert score(tmp_path, rows) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_broken_line_is_named(tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]) -> None:
    given = write(tmp_path / "given", rows)
    with (given / "jamp.jsonl").open("a") as file:
        file.write('{"id": "jamp/')
    assert main(["score", *SUITE, f"completions={given}", f"out={tmp_path / 'out'}"]) == 2
    assert "jamp.jsonl, line 7" in capsys.readouterr().err


def test_allow_missing_scores_the_rest_and_says_so(tmp_path: Path, rows: Rows) -> None:
    drop(rows)
    forget(rows)
    assert score(tmp_path, rows, "allow_missing=true") == 0
    found = results(tmp_path)
    assert found.scores["jamp_exact_match"].n == 4
    assert "jamp: 2 of 6 samples have no completion" in found.partial.reasons
    assert found.partial.datasets == {"jsts": "there are no completions"}
    # What lacks samples is no complete category: its figure is marked like that of a missing dataset.
    assert "jamp: 2 of 6 samples have no completion" in found.partial.categories["NLI"]


def test_llm_jp_evals_own_result(tmp_path: Path, rows: Rows) -> None:
    assert score(tmp_path, rows, "export=llm-jp-eval") == 0
    exported = tmp_path / "out" / "llm-jp-eval.json"
    content = json.loads(exported.read_text(encoding="utf-8"))
    assert content["scores"]["jamp_exact_match"] == 0.5
    again = ["score", *SUITE, f"completions={exported}", f"out={tmp_path / 'again'}"]
    assert main(again) == 0
    assert read_results(tmp_path / "again" / "results.json").scores == results(tmp_path).scores
    content["outputs"]["jamp"][1]["gold"] = "?"
    exported.write_text(json.dumps(content), encoding="utf-8")
    assert main(again) == 2


def test_a_result_with_rows_at_the_top_and_whole_prompts(tmp_path: Path) -> None:
    samples = load_bundled(load_spec("jamp")).samples
    rows = [{"input": f"### 入力:\n{s.input}\n", "pred": s.gold, "gold": s.gold} for s in samples]
    (tmp_path / "result.json").write_text(json.dumps({"scores": {}, "jamp": rows}), encoding="utf-8")
    command = [
        "score",
        "suite=sample",
        "suite.tasks=[jamp]",
        f"completions={tmp_path}",
        f"out={tmp_path / 'out'}",
    ]
    assert main(command) == 0
    assert results(tmp_path).scores["jamp_exact_match"].value == 1.0


@pytest.mark.parametrize(
    "line",
    [
        "score",
        "score run=a completions=b",
        "score suite=sample completions=nowhere out=x",
        "score suite=sample completions=.",
        "score run=nowhere",
        "reproduce",
        "reproduce run=nowhere",
    ],
)
def test_bad_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert "evalkit: " in capsys.readouterr().err


@pytest.fixture
def run(tmp_path: Path, rows: Rows) -> Path:
    """A finished run of 6 samples of each task, of which 4 were evaluated last (limit=4)."""
    folder = tmp_path / "run"
    config = Config(
        model=ModelConfig(name="llm-jp-3-1.8b"),
        suite=SuiteConfig(name="sample", tasks=list(TASKS), data=SuiteData.bundled),
        engine=EngineConfig(name="local"),
        limit=4,
    )
    with RunDirectory(folder) as directory:
        for name, lines in rows.items():
            samples = load_bundled(load_spec(name)).samples
            for sample, line in sorted(zip(samples, lines, strict=True), reverse=True, key=lambda p: p[0].id):
                text = line["completion"]
                made = Completion(sample.id, text, text, "stop", 9, 3)
                directory.append(name, SampleRecord.of(sample, "prompt", made))
    content = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"identity": {"dtype": "float32"}}))
    assert main(["score", f"run={folder}", "allow_missing=true"]) == 0
    return folder


def test_a_run_is_scored_by_what_it_kept(run: Path) -> None:
    found = read_results(run / "results.json")
    assert found.scores["jamp_exact_match"].value == 0.5 and found.scores["jamp_exact_match"].n == 4
    assert found.run["model"] == "llm-jp-3-1.8b"
    assert found.protocol.deviations == {"limit": 4, "dtype": "float32"}


def test_a_run_with_options_of_an_earlier_version(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`serve` is gone, and the options of `plan` are others now; unknown words are still refused."""
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content |= {"serve": {"host": "127.0.0.1", "port": 8000}, "plan": {"scoring_ms": 5.0}}
    content["engine"]["server"] = "evalkit"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["score", f"run={run}"]) == 0
    path.write_text(yaml.safe_dump(content | {"nonsense": 1}), encoding="utf-8")
    assert main(["score", f"run={run}"]) == 2
    assert "the run's configuration is not valid" in capsys.readouterr().err


def test_scoring_again_says_what_moved_and_why(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", f"run={run}"]) == 0
    assert "nothing moved" in capsys.readouterr().out
    assert main(["score", f"run={run}", "protocol.strip=true"]) == 0
    said = capsys.readouterr().out
    assert "protocol.strip: False -> True" in said and "+0.5000" in said
    assert read_results(run / "results.json").scores["jamp_exact_match"].value == 1.0
    # Without the option the run's own rules hold again.
    assert main(["score", f"run={run}"]) == 0
    assert "protocol.strip: True -> False" in capsys.readouterr().out


def test_a_new_metric_version_is_the_reason(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.METRICS, "exact_match", SampleMetric("exact_match", "2", lambda p, g: 0.25))
    main(["score", f"run={run}"])
    capsys.readouterr()
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["score", f"run={run}"]) == 0
    said = capsys.readouterr().out
    assert "metric version: 2 -> 1" in said and UNEXPLAINED not in said


def test_out_leaves_the_run_as_it_is(run: Path, tmp_path: Path) -> None:
    before = (run / "results.json").read_bytes()
    assert main(["score", f"run={run}", f"out={tmp_path / 'tried'}", "protocol.strip=true"]) == 0
    assert (run / "results.json").read_bytes() == before
    assert read_results(tmp_path / "tried" / "results.json").scores["jamp_exact_match"].value == 1.0


def test_the_folder_that_run_names_is_in_place(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "id")
    run.mkdir()
    inner = moved.rename(run / "id")
    assert main(["score", f"run={run}", f"out={run}", "protocol.strip=true"]) == 0
    assert not (run / "results.json").exists()
    assert read_results(inner / "results.json").scores["jamp_exact_match"].value == 1.0


def test_no_run_is_hidden_by_scores_above_it(
    run: Path, tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write(tmp_path / "given", rows)
    for words in ([*SUITE, f"completions={given}"], [f"run={run}"]):
        assert main(["score", *words, f"out={tmp_path}"]) == 2
        assert f"would not be found any more: {run}" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    # Nor by scores that were there before it.
    assert main(["model=random", *SUITE, "limit=1", "offline=true", f"out={run}"]) == 2
    assert "which would not be found" in capsys.readouterr().err


def test_two_runs_are_not_scored_into_one_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 'tried'}"
    assert main(["score", f"run={run}", out]) == 0
    assert main(["score", f"run={run}", out, "protocol.strip=true"]) == 0
    other = run.rename(tmp_path / "other")
    assert main(["score", f"run={other}", out]) == 2
    assert "other id" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["limit=2", "num_few_shots=0", "suite=sample", "protocol.bos=none"])
def test_what_decided_the_completions_cannot_change(
    run: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", f"run={run}", option]) == 2
    assert "decided the completions" in capsys.readouterr().err


def test_damaged_completions_are_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = run / "samples" / "jamp.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(line.replace(b"jamp/bundled/1", b"jamp/bundled/7", 1) for line in lines))
    assert main(["score", f"run={run}"]) == 2
    assert "jamp (1 samples)" in capsys.readouterr().err
    assert main(["score", f"run={run}", "allow_missing=true"]) == 0
    assert "jamp: 1 samples have no completion" in read_results(run / "results.json").partial.reasons
    log.unlink()
    assert main(["score", f"run={run}"]) == 2
    assert "damaged: jamp" in capsys.readouterr().err


def test_an_unfinished_run_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "results.json").unlink()
    assert main(["score", f"run={run}"]) == 2
    assert "not finished" in capsys.readouterr().err


def test_scoring_needs_no_torch(tmp_path: Path, rows: Rows) -> None:
    given = write(tmp_path / "given", rows)
    words = ["score", "suite=sample", f"completions={given}", f"out={tmp_path / 'out'}", "allow_missing=true"]
    code = (
        "import sys; from evalkit.__main__ import main\n"
        f"assert main({words!r}) == 0\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


@pytest.fixture
def card_run(tmp_path: Path) -> Iterator[Path]:
    """A run with the card's own figures, MC a little off and NLI far off; MT missing."""
    columns = load_cards()["llm-jp-3-1.8b"].columns
    off = {"MC": 0.01, "NLI": 0.2}
    found = summarise([], record_of(Config()), run={"model": "llm-jp-3-1.8b"})
    for name in CATEGORIES:
        value = columns[name] + off.get(name, 0.0)
        interval = None if name == "MT" else (value - 0.05, value + 0.05)
        found.categories[name] = Figure(None if name == "MT" else value, 100, 0.02, interval, "1")
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(found.to_json()), encoding="utf-8")
    yield folder


def test_reproduce_sets_the_run_beside_the_card(card_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", f"run={card_run}"]) == 0
    said = capsys.readouterr().out
    cells = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert cells.keys() >= {"AVG", *CATEGORIES}
    assert "+0.0100" in cells["MC"] and "yes" in cells["MC"]
    assert "+0.2000" in cells["NLI"] and "NO" in cells["NLI"]
    assert "0.7730" in cells["MT"] and "yes" not in cells["MT"]
    assert "7 of 8" in said


def test_reproduce_takes_another_row_or_names_them(
    card_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", f"run={card_run}", "--reference", "llm-jp-3-13b"]) == 0
    assert "llm-jp-3-13b" in capsys.readouterr().out
    assert main(["reproduce", f"run={card_run}", "--reference=llm-jp-3-13"]) == 2
    assert "llm-jp-3-13b" in capsys.readouterr().err


def test_reproduce_refuses_a_run_of_another_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = summarise([], record_of(Config()), run={"model": "llm-jp-3-1.8b"})
    (tmp_path / "results.json").write_text(json.dumps(found.to_json()), encoding="utf-8")
    assert main(["reproduce", f"run={tmp_path}"]) == 2
    said = capsys.readouterr()
    assert "no figure of the card" in said.err and said.out == ""


def mt_bench_run(folder: Path, judge: str, preset: str) -> Path:
    """A judged MT-Bench run with the card's own figures but for the average, a little off."""
    columns = load_cards(MT_BENCH_TABLE)["llm-jp-3-1.8b-instruct"].columns
    scopes = {
        "average" if name == AVERAGE else name: {
            "value": value,
            "ci95": [value - 0.2, value + 0.2],
            "n": 20,
        }
        for name, value in columns.items()
    }
    scopes["average"] |= {"value": 5.5, "ci95": [5.2, 5.8]}
    folder.mkdir()
    content = {
        "schema_version": 1,
        "kind": "mt_bench",
        "preset": {"name": preset, "sha256": "0" * 64},
        "tables": {
            "llm-jp-3-1.8b-instruct": {"judge": judge, "repeats": 1, "reduce": "mean", "scopes": scopes}
        },
        "partial": {"partial": True, "reasons": ["3 judgments failed"]},
    }
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_reproduce_knows_the_cards_second_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mt_bench_run(tmp_path / "mt", "gpt-4 (log)", "llm-jp-3-card")
    assert main(["reproduce", f"run={folder}"]) == 0
    said = capsys.readouterr().out
    cells = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "4.93" in cells["AVG"] and "+0.57" in cells["AVG"] and "NO" in cells["AVG"]
    assert "1.50" in cells["coding"] and "+0.00" in cells["coding"] and "yes" in cells["coding"]
    assert "8 of 9" in said and "3 judgments failed" in said and "deviates" not in said
    other = mt_bench_run(tmp_path / "other", "gpt-4o", "swallow")
    assert main(["reproduce", f"run={other}"]) == 0
    assert "preset=swallow, judge=gpt-4o" in capsys.readouterr().out


def test_only_the_card_s_own_protocol_goes_as_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`card` and `reproduce` name other judges whose names begin alike, repeats, and own judge prompts."""
    own = {"prompts": {"file": "mine.jsonl", "sha256": "1" * 64}}
    for index, (judge, preset, table, said) in enumerate(
        [
            ("gpt-4", {}, {}, ""),
            ("gpt-4 (log)", {}, {}, ""),
            ("gpt-4o-2024-08-06", {}, {}, "judge=gpt-4o-2024-08-06"),
            ("gpt-4.1", {}, {}, "judge=gpt-4.1"),
            ("gpt-4", {}, {"repeats": 5}, "judge.repeats=5"),
            ("gpt-4", own, {}, "judge.prompts=mine.jsonl"),
            ("gpt-4", {"name": "llm-jp-3-card+v2"}, {}, "preset=llm-jp-3-card+v2"),
        ]
    ):
        folder = mt_bench_run(tmp_path / str(index), judge, "llm-jp-3-card")
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        content["preset"] |= preset
        content["tables"]["llm-jp-3-1.8b-instruct"] |= table
        (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
        assert main(["card", f"run={folder}"]) == 0
        printed = capsys.readouterr()
        assert ("using `gpt-4-0613`. Please see" in printed.out) is not bool(said)
        assert ("not the card's protocol: " in printed.err) is bool(said) and said in printed.err
        assert (said.partition("=")[2] or "gpt-4-0613") in printed.out
        assert main(["reproduce", f"run={folder}"]) == 0
        printed = capsys.readouterr()
        assert ("deviates" in printed.out) is bool(said) and said in printed.out


@pytest.mark.parametrize("verb", ["score", "compare"])
def test_an_mt_bench_run_is_called_one(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mt_bench_run(tmp_path / "mt", "gpt-4", "llm-jp-3-card")
    (folder / "mt_bench.json").write_text("{}")
    words = [f"run={folder}"] if verb == "score" else [str(folder), str(folder)]
    assert main([verb, *words]) == 2
    assert "this is an MT-Bench run" in capsys.readouterr().err
