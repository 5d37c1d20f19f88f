"""`score suite=pfgen`: published sets and evalkit's own form, through the command line, on tiny data."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from evalkit.metrics.pfgen import Question
from evalkit.records.results import Results, read_results
from tests.tiny_pfgen import QUESTIONS, use_tiny_pfgen


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    use_tiny_pfgen(monkeypatch)


def answer(question: Question, trial: int) -> str:
    return ("水です", f"{question.id[-1]}は水", "は火")[(trial + int(question.id[1:])) % 3]


def published(folder: Path, trials: int = 3, **config: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question": q.text, "answer": answer(q, t)} for q in QUESTIONS for t in range(trials)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "trials.jsonl.xz").write_bytes(lzma.compress(text.encode()))
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "trials.jsonl.xz"


def own(folder: Path, ids: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    by_id = {question.id: question for question in QUESTIONS}
    rows = [
        {"id": key, "completion": f" {answer(by_id[key[:3]], int(key[4:]))}\n\n" if key[:3] in by_id else ""}
        for key in ids
    ]
    (folder / "pfgen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


IDS = [f"{question.id}/{trial}" for trial in (1, 2, 3) for question in QUESTIONS]


def score(completions: Path, out: Path, *words: str) -> Results:
    assert main(["score", "suite=pfgen", f"completions={completions}", f"out={out}", *words]) == 0
    return read_results(out / "results.json")


def test_a_published_set_has_scores_intervals_and_the_published_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_of_m = published(tmp_path / "m", model="llm-jp/m", mode="completion")
    results = score(set_of_m, tmp_path / "out" / "m")
    assert set(results.scores) == {
        f"pfgen_{name}" for name in ("score", "fluency", "truthfulness", "helpfulness", "length")
    }
    figure, details = results.scores["pfgen_score"], results.run["pfgen"]
    assert figure.n == 6 and figure.ci95 is not None and figure.ci95[0] < (figure.value or 0) < figure.ci95[1]
    assert details["published"]["score"] == round(figure.value or 0, 4) and details["trials"] == 3
    assert set(details["categories"]) == {"it", "arts"} and set(details["aspects"]["fluency"]) == {"P"}
    assert details["resampled"] == "questions, and answers within questions"
    assert details["variance"]["trials"] is None
    assert results.run["model"] == "llm-jp/m" and results.protocol.deviations == {}
    rows, damaged = read_log(tmp_path / "out" / "m" / "scores" / "pfgen.jsonl")
    assert not damaged and list(rows) == [question.id for question in QUESTIONS]
    first = rows["Q01"]["repeats"]
    assert [row["id"] for row in first] == ["Q01/1", "Q01/2", "Q01/3"]
    assert [row.get("missing", []) for row in first] == [
        ["は"] if "は" not in row["prediction"] else [] for row in first
    ]
    assert "scale: the published ground truth scores 1.05" in capsys.readouterr().out
    score(published(tmp_path / "qa", model="llm-jp/m", mode="qa"), tmp_path / "out" / "qa")
    capsys.readouterr()
    assert main(["leaderboard", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "pfgen-bench (the ground truth scores 1.05)" in shown and "pfgen-bench, pfgen.mode=qa" in shown


def test_two_models_are_compared_by_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, trials in (("m", 3), ("n", 1)):
        score(published(tmp_path / name, trials, model=name), tmp_path / "out" / name)
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "out" / "m"), str(tmp_path / "out" / "n")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pfgen "))
    values = [
        read_results(tmp_path / "out" / name / "results.json").scores["pfgen_score"].value for name in "mn"
    ]
    assert line.split()[1:3] == [f"{value:.3f}" for value in values]


def test_own_answers_have_trials(tmp_path: Path) -> None:
    results = score(own(tmp_path / "own", IDS), tmp_path / "out", "pfgen.mode=completion")
    details: dict[str, Any] = results.run["pfgen"]
    assert details["resampled"] == "questions and trials" and details["variance"]["trials"] is not None
    assert sum(details["variance"].values()) == pytest.approx(1)
    one = score(own(tmp_path / "one", IDS[:6]), tmp_path / "out-one")
    assert one.run["pfgen"]["trials"] == 1 and one.run["pfgen"]["variance"] is None


def test_bad_answers_are_one_message_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = published(tmp_path / "cut")
    cut.write_bytes(cut.read_bytes()[:-20])
    cases = [
        (cut, "not a whole xz file: it is cut short"),
        (own(tmp_path / "lacking", IDS[:-1]), "answers are missing: Q06/3"),
        (own(tmp_path / "twice", [*IDS, "Q01/1"]), "the id Q01/1 is there twice"),
        (own(tmp_path / "unknown", [*IDS, "Q07/1"]), "no id of pfgen: 'Q07/1'"),
        (own(tmp_path / "zero", [*IDS, "Q01/0"]), "no id of pfgen: 'Q01/0'"),
        (own(tmp_path / "empty", []), "there are no answers"),
        (tmp_path / "nowhere.jsonl", "cannot read the answers"),
        (published(tmp_path / "mode", mode="poem"), "unknown mode 'poem'"),
    ]
    for path, message in cases:
        assert main(["score", "suite=pfgen", f"completions={path}", f"out={tmp_path / 'out'}"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_missing_answers_make_a_partial_result(tmp_path: Path) -> None:
    results = score(own(tmp_path / "lacking", IDS[:-1]), tmp_path / "out", "allow_missing=true")
    assert results.partial.partial and "1 of 18 answers are missing" in str(results.partial.reasons)
    assert results.run["pfgen"]["resampled"] == "questions, and answers within questions"
    # Each answer keeps the number of its trial, and trials that lack other questions are no whole ones.
    score(
        own(tmp_path / "gap", [key for key in IDS if key != "Q06/2"]),
        tmp_path / "gap-out",
        "allow_missing=true",
    )
    rows, _ = read_log(tmp_path / "gap-out" / "scores" / "pfgen.jsonl")
    assert [row["id"] for row in rows["Q06"]["repeats"]] == ["Q06/1", "Q06/3"]


def test_a_limit_takes_the_first_questions_and_marks_the_result(tmp_path: Path) -> None:
    ids = [key for key in IDS if key < "Q03"]
    results = score(own(tmp_path / "own", ids), tmp_path / "out", "limit=2")
    assert results.scores["pfgen_score"].n == 2 and results.partial.partial
    assert "limit=2" in str(results.partial.reasons)
