"""`score suite=pfgen`: published sets and evalkit's own form, through the command line, on tiny data."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from evalkit.records.results import Results, read_results
from evalkit.runs.foreign import read_trials
from evalkit.sources.pfgen import read_pool
from evalkit.tasks.load import Task
from evalkit.tasks.pfgen import SPEC
from tests.tiny_pfgen import POOL, QUESTIONS, answer, published, use_tiny_pfgen


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    use_tiny_pfgen(monkeypatch)


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
    said = capsys.readouterr().out
    assert "pfgen: the published ground truth scores 1.05." in said
    line = next(line for line in said.splitlines() if line.startswith("pfgen "))
    values = [
        read_results(tmp_path / "out" / name / "results.json").scores["pfgen_score"].value for name in "mn"
    ]
    assert line.split()[1:3] == [f"{value:.4f}" for value in values]


def test_own_answers_have_trials(tmp_path: Path) -> None:
    results = score(own(tmp_path / "own", IDS), tmp_path / "out", "pfgen.mode=completion")
    details: dict[str, Any] = results.run["pfgen"]
    # The mean over a category's questions of the mean of their answers.
    rows, _ = read_log(tmp_path / "out" / "scores" / "pfgen.jsonl")
    means = {key: sum(one["values"]["score"] for one in row["repeats"]) / 3 for key, row in rows.items()}
    of_it, of_arts = (sum(means[key] for key in keys) / 3 for keys in (list(means)[:3], list(means)[3:]))
    assert details["categories"] == pytest.approx({"it": of_it, "arts": of_arts})
    assert details["resampled"] == "questions and trials" and details["variance"]["trials"] is not None
    assert sum(details["variance"].values()) == pytest.approx(1)
    one = score(own(tmp_path / "one", IDS[:6]), tmp_path / "out-one")
    assert one.run["pfgen"]["trials"] == 1 and one.run["pfgen"]["variance"] is None
    assert one.run["pfgen"]["resampled"] == "questions"


def test_thoughts_are_split_off_before_an_answer_is_cut(tmp_path: Path) -> None:
    plain = own(tmp_path / "plain", IDS) / "pfgen.jsonl"
    thinking = tmp_path / "thinking.jsonl"
    rows = [json.loads(line) for line in plain.read_text().splitlines()]
    for row in rows:
        row["completion"] = f"<think>Q: A: ？</think>\n\nA: {row['completion'].strip()}"
    thinking.write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = score(thinking, tmp_path / "split", "pfgen.mode=chat", "reasoning.parser=think")
    assert split.scores == score(plain, tmp_path / "out", "pfgen.mode=chat").scores
    assert split.datasets["pfgen"].thoughts is not None
    unsplit = score(thinking, tmp_path / "unsplit", "pfgen.mode=chat")
    assert "18 completions have the marks of a thought" in str(unsplit.run["warnings"])


def test_how_a_published_set_was_made_is_recorded(tmp_path: Path) -> None:
    folder = published(tmp_path / "m").parent
    described = {"model": "a\nb ", "num_examples": 5, "temperature": 0.5, "top_p": 0.98, "engine": "vllm"}
    (folder / "config.json").write_text(json.dumps(described))
    results = score(folder, tmp_path / "out")
    assert results.protocol.deviations == {"generation.temperature": 0.5, "num_few_shots": 5}
    assert results.run["model"] == "a b" and results.run["completions"] == str(folder / "trials.jsonl.xz")
    whole = score(folder, tmp_path / "whole", "limit=0")
    assert whole.protocol == results.protocol and not whole.partial.partial


def lines(rows: list[tuple[str, str]]) -> bytes:
    return "".join(
        json.dumps({"question": q, "answer": a, "timestamp": "t"}) + "\n" for q, a in rows
    ).encode()


def test_bad_answers_are_one_message_with_the_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(question.text, "は") for question in QUESTIONS for _ in range(2)]
    packed = lzma.compress(lines(rows))
    file = tmp_path / "set" / "trials.jsonl"
    xz = file.with_name("trials.jsonl.xz")
    file.parent.mkdir()
    cases: list[tuple[Path, bytes | None, tuple[str, ...]]] = [
        (xz, packed[:-20], (f"{xz}, line 13", "it is cut short")),
        (xz, packed[: len(packed) // 2], (f"{xz}, line ", "it is cut short")),
        (xz, b"", (f"{xz}, line 1", "it is cut short")),
        (xz, b"no xz" * 9, (f"{xz}, line 1", "it is damaged")),
        # What follows a whole stream is not its end.
        (xz, packed + packed[:30], (f"{xz}, line ", "it is cut short")),
        (xz, packed + b"garbage", (f"{xz}, line ", "not a whole xz file")),
        (xz, lzma.compress(b""), ("there are no completions for pfgen",)),
        (file, lines([*rows, ("質問7？", "は")]), (f"{file}, line 13", "no question of pfgen: '質問7？'")),
        (file, lines(rows[2:]), (f"{file}, line 10", "Q01/1, Q01/2; Q01 asks '質問1？'")),
        (file, lines(rows[:-1]), (f"{file}, line 11", "Q06/2; Q06 asks '質問6？'")),
        (file, lines(rows)[:-30], (f"{file}, line 12", "not JSON")),
        (
            file,
            b'{"question": "\xe8\xb3\xaa\xe5\x95\x8f1\xef\xbc\x9f"}\n',
            (f"{file}, line 1, field answer",),
        ),
        (file, b"\n", (str(file), "there are no completions for pfgen")),
        (
            own(tmp_path / "lacking", IDS[:-1]),
            None,
            ("pfgen.jsonl, line 12", "completion: Q06/3"),
        ),
        (own(tmp_path / "twice", [*IDS, "Q01/1"]), None, ("line 19", "the id Q01/1 is there twice")),
        (own(tmp_path / "unknown", [*IDS, "Q07/1"]), None, ("line 19", "no sample with the id Q07/1")),
        (own(tmp_path / "zero", [*IDS, "Q01/0"]), None, ("line 19", "no sample with the id Q01/0")),
        (own(tmp_path / "empty", []), None, ("there are no completions for pfgen",)),
        (tmp_path / "nowhere.jsonl", None, ("cannot read the answers",)),
        (
            published(tmp_path / "mode", mode="poem"),
            None,
            ("the answers are of mode poem",),
        ),
        (published(tmp_path / "other", mode="qa"), None, ("the answers are of mode qa, not chat",)),
    ]
    for path, content, messages in cases:
        if content is not None:
            path.write_bytes(content)
        command = ["score", "suite=pfgen", f"completions={path}", f"out={tmp_path / 'out'}"]
        assert main([*command, *(["pfgen.mode=chat"] if path.parent.name == "other" else [])]) == 2
        said = capsys.readouterr().err
        assert all(message in said for message in messages), said
        assert not (tmp_path / "out").exists()


def test_answers_are_read_packed_and_plain_from_a_file_or_a_folder(tmp_path: Path) -> None:
    packed = published(tmp_path / "m", model="llm-jp/m", mode="qa")
    plain = packed.with_suffix("")
    rows = lzma.decompress(packed.read_bytes()).splitlines(keepends=True)
    plain.write_bytes(b"".join(rows))
    packed.write_bytes(lzma.compress(b"".join(rows[:5])) + lzma.compress(b"".join(rows[5:])))
    task = Task(SPEC, POOL, POOL, {})
    (one, of_evalkit), (two, _) = (read_trials(path, task) for path in (packed, plain))
    assert one == two and not of_evalkit and list(one)[:2] == ["Q01/1", "Q01/2"]
    assert score(plain, tmp_path / "out").run["model"] == "llm-jp/m"
    (plain.parent / "config.json").unlink()
    unnamed = score(plain, tmp_path / "unnamed", "pfgen.mode=chat")
    assert unnamed.run["model"] is None and unnamed.protocol.deviations["pfgen.mode"] == "chat"
    folder = own(tmp_path / "own", IDS)
    (folder / "config.json").write_text('{"model": "m"}')
    found = score(folder / "pfgen.jsonl", tmp_path / "own-out")
    assert (found.run["model"], found.run["pfgen"]["resampled"]) == ("m", "questions and trials")
    assert found.scores == score(folder, tmp_path / "own-out-2").scores


def test_missing_answers_make_a_partial_result(tmp_path: Path) -> None:
    results = score(own(tmp_path / "lacking", IDS[:-1]), tmp_path / "out", "allow_missing=true")
    assert results.partial.partial and "1 of 18 samples have no completion" in str(results.partial.reasons)
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


def test_unequal_published_answers_make_a_partial_result(tmp_path: Path) -> None:
    rows = [(question.text, "は") for question in QUESTIONS for _ in range(2)]
    (tmp_path / "trials.jsonl").write_bytes(lines(rows[2:-1]))
    results = score(tmp_path / "trials.jsonl", tmp_path / "out", "allow_missing=true")
    assert results.partial.partial and "3 of 12 samples have no completion" in str(results.partial.reasons)
    assert (results.run["samples"], results.run["pfgen"]["trials"]) == (5, 1)


@pytest.mark.sources
def test_a_published_set_is_read_as_it_is(mirror: Path) -> None:
    folder = mirror / "pfgen"
    pool = read_pool(folder / "data" / "questions.jsonl")
    path = folder / "published" / "llm-jp-3-1.8b-instruct" / "7b08b08" / "trials.jsonl.xz"
    answers, _ = read_trials(path, Task(SPEC, pool, pool, {}))
    assert set(answers) == {f"{one.id}/{trial}" for one in pool for trial in range(1, 101)}
