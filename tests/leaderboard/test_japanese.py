"""`lang=ja`: what the terminal says is Japanese, reasons and remarks too."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalkit.__main__ import main
from evalkit.core import words
from evalkit.core.config import Lang
from evalkit.core.reasons import Reason
from tests.leaderboard.conftest import World
from tests.leaderboard.made import Made, make_run
from tests.mtbench.little_bench import make_bench, write_jsonl

# Three words in a row are a sentence; commands, paths, options and names are none.
ENGLISH = re.compile(r"\b[a-z]{2,} [a-z]{2,} [a-z]{2,}\b")
FOREIGN = re.compile(r"(?:python -m )?evalkit .*|Expecting .*|avg code .*")


@pytest.fixture(autouse=True)
def english_afterwards() -> Iterator[None]:
    yield
    words.use(Lang.en)


def untranslated(text: str) -> list[str]:
    # Answers of models and what a library says of broken JSON are not evalkit's words.
    lines = [FOREIGN.sub("", line) for line in text.splitlines() if "/dev/" not in line]
    return [line for line in lines if ENGLISH.search(line)]


def test_a_sentence_is_shown_by_its_template_and_fields() -> None:
    short = Reason("limit={limit}: the protocol takes {n} samples of each dataset", limit=50, n=100)
    lacking = Reason("{name} is missing: {reason}", name="jnli", reason=Reason("not in this suite"))
    reasons = (short, Reason("{name}: {reason}", name="NLI", reason=lacking))
    reason = Reason("partial: {reasons} (--partial shows it)", reasons=reasons)
    english = (
        "limit=50: the protocol takes 100 samples of each dataset; NLI: jnli is missing: not in this suite"
    )
    assert words.shown(reason) == f"partial: {english} (--partial shows it)"
    words.use(Lang.ja)
    japanese = "limit=50: プロトコルでは各データセット 100 件; NLI: jnli がない: このスイートに含まれない"
    assert words.shown(reason) == f"部分的: {japanese}（--partial で表示）"
    for text in ("never said before by anyone", "", "a; b"):
        assert words.shown(text) == text


def test_leaderboard_compare_and_steps(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Path(shutil.copytree(world.results, tmp_path / "results"))
    short = make_run(Made("short", 0.5, 3), world.data, results, "limit=9").folder
    make_run(Made("lacking", 0.5, 4), world.data, results, "suite=task", "suite.tasks=[jamp,niilc]")
    make_run(Made("weak", 0.5, 5), world.data, results)
    steps = [
        str(make_run(Made(f"m-step-{step}", 0.5, step), world.data, tmp_path / "steps", "suite=nli").folder)
        for step in (1, 2)
    ]
    for name, text in {"old": '{"schema_version": 9}', "torn": "{", "odd": '{"schema_version": 1}'}.items():
        (results / name).mkdir()
        (results / name / "results.json").write_text(text)
    shutil.copytree(world.weak, results / "copy")
    (shutil.copytree(world.weak, results / "unfinished") / "results.json").unlink()
    (shutil.copytree(world.weak, results / "scoreless") / "scores" / "jamp.jsonl").unlink()
    (tmp_path / "foreign.json").write_text(json.dumps({"scores": {"AVG": 0.4}}))
    (tmp_path / "empty.json").write_text("{}")
    places = [str(results), str(tmp_path / "foreign.json"), str(tmp_path / "empty.json")]
    # What the runs said in English, their language.
    capsys.readouterr()
    for command in (
        ["leaderboard", *places, "--reference", "llm-jp-3", "--format", "markdown", f"out={tmp_path}"],
        ["leaderboard", *places, "--partial", "--format", "csv", f"out={tmp_path}"],
        ["compare", str(short), str(world.weak), "--partial", "metrics.resamples=100"],
        ["compare", *steps, "--steps", "metrics.resamples=100"],
    ):
        assert main([*command, "lang=ja"]) == 0
    said = capsys.readouterr()
    assert not untranslated(said.out) and not untranslated(said.err)
    assert "表示していないもの" in said.out and "未完了" in said.out and "破損" in said.out
    assert not untranslated((tmp_path / "leaderboard.md").read_text(encoding="utf-8"))


def test_run_score_and_reproduce(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "model=random", "suite=sample", "limit=1", "offline=true", f"out={tmp_path}", "lang=ja"]
    assert main(run) == 0 and main(run) == 0
    weak = f"run={world.weak}"
    assert (
        main(["score", weak, "protocol.strip=true", "offline=true", f"out={tmp_path / 'again'}", "lang=ja"])
        == 0
    )
    assert main(["reproduce", weak, "--reference", "llm-jp-3-1.8b", "lang=ja"]) == 0
    assert main(["prepare", "suite=sample", "model=random", "lang=ja"]) == 0
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if not line.startswith("データ: ")]
    assert not untranslated("\n".join(lines))
    assert (
        " to " not in said.out
        and "部分的な結果" in said.out
        and "完了済み" in said.out
        and "生成中" in said.err
    )


def test_mt_bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    bench = make_bench(tmp_path, per_category=1)
    answers = bench.answers(tmp_path / "answers.jsonl", "weak")
    texts = ["Rating: [[5]]", "no rating"]
    rows = [
        {
            "question_id": number,
            "model": "weak",
            "judge": ["gpt-4", "single-v1" if turn == 1 else "single-v1-multi-turn"],
            "user_prompt": "",
            "judgment": texts[number % 2],
            "score": 5 if number % 2 == 0 else -1,
            "turn": turn,
            "tstamp": 0.0,
        }
        for number in range(1, bench.questions)
        for turn in (1, 2)
    ]
    log = write_jsonl(tmp_path / "judgments.jsonl", rows)
    options = [f"judgments={log}", f"answers={answers}", f"preset={bench.preset}", f"mirror={bench.mirror}"]
    assert main(["replay", *options, f"out={tmp_path / 'results'}", "lang=ja"]) == 0
    assert main(["leaderboard", str(tmp_path / "results"), "--partial", "--format", "csv", "lang=ja"]) == 0
    said = capsys.readouterr()
    assert not untranslated(said.out) and not untranslated(said.err)
    assert "評点なし" in said.out and "部分的な結果" in said.out and "集計規則" in said.out
