"""Replaying FastChat logs: the published example, and small logs with every oddity."""

import json
from pathlib import Path
from typing import Any

import pytest
from little_bench import PROMPTS, Bench, write_jsonl

from evalkit.__main__ import main
from evalkit.core.durable import write_checked_json
from evalkit.core.errors import InputError
from evalkit.mtbench.books import BookOptions
from evalkit.mtbench.folder import Header, MtBenchFolder, Source, answers_of

MODEL = "ELYZA-japanese-Llama-2-7b-fast-instruct"


def replay(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["replay", *words])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.sources
def test_published_example(
    mirror: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue figures: judged with the English prompts, 160 of 160 prompts and scores, show_result's table."""
    examples = mirror / "mt_bench" / "examples"
    out = tmp_path / "run"
    code, shown = replay(
        capsys,
        f"judgments={examples / 'judgments_elyza-7b-fast-instruct.jsonl'}",
        f"answers={examples / 'answers_elyza-7b-fast-instruct.jsonl'}",
        "preset=fastchat",
        f"out={out}",
        f"mirror={mirror}",
    )
    assert code == 0
    results = json.loads((out / "results.json").read_text())
    assert results["mt_bench"][MODEL]["show_result"] == pytest.approx(
        {
            "average": 4.175,
            "turn_1": 5.05,
            "turn_2": 3.30,
            "coding": 2.55,
            "extraction": 4.90,
            "humanities": 5.75,
            "math": 1.70,
            "reasoning": 3.30,
            "roleplay": 5.50,
            "stem": 5.20,
            "writing": 4.50,
        },
        abs=1e-9,
    )
    fidelity = results["replay"][MODEL]
    assert (fidelity["prompts_equal"], fidelity["prompts_compared"]) == (160, 160)
    assert (fidelity["scores_equal"], fidelity["scores_compared"]) == (160, 160)
    assert fidelity["duplicates"] == 0
    assert not results["partial"]["partial"]
    assert "160 of 160 prompts equal" in shown
    folder = MtBenchFolder(out)
    assert len(folder.turns()) == 160
    assert len(folder.judgments("gpt-4 (log)")) == 160
    assert folder.header().source == "replayed"


@pytest.mark.sources
def test_the_clause_is_where_the_notes_say(
    mirror: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the ja-clause prompts only the 80 second turns are equal: there it is the system message."""
    examples = mirror / "mt_bench" / "examples"
    out = tmp_path / "run"
    words = (
        f"judgments={examples / 'judgments_elyza-7b-fast-instruct.jsonl'}",
        f"answers={examples}",
        f"out={out}",
        f"mirror={mirror}",
    )
    # The folder holds the judgments too, and a judgment is no answer.
    code, shown = replay(capsys, *words)
    assert code == 2 and "field model_id" in shown
    answers = examples / "answers_elyza-7b-fast-instruct.jsonl"
    assert replay(capsys, words[0], f"answers={answers}", *words[2:])[0] == 0
    results = json.loads((out / "results.json").read_text())
    assert results["preset"]["name"] == "llm-jp-3-card"
    assert results["replay"][MODEL]["prompts_equal"] == 80


def row(question: int, on: int, score: float, judgment: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "question_id": question,
        "model": "m",
        "judge": ["gpt-4", "single-v1" if on == 1 else "single-v1-multi-turn"],
        "user_prompt": "?",
        "judgment": f"Rating: [[{score}]]" if judgment is None else judgment,
        "score": score,
        "turn": on,
        "tstamp": 1.0,
    } | more


def run_little(bench: Bench, log: Path, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    code, shown = replay(
        capsys, f"judgments={log}", f"preset={bench.preset}", f"mirror={bench.mirror}", f"out={out}", *words
    )
    assert code == 0, shown
    return json.loads((out / "results.json").read_text())


def test_a_judge_has_nothing_to_do_in_a_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", f"judgments={tmp_path}", "judge=gpt-4"]) == 2
    assert "the log says who judged" in capsys.readouterr().err


def test_the_folder_of_another_run_is_left_alone(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For replay, and for the answers that judge and pairwise are given; a dry run writes nothing."""
    log = write_jsonl(tmp_path / "log.jsonl", [row(1, 1, 8)])
    run, scored, new = (tmp_path / name for name in ("run", "scored", "new"))
    write_jsonl(scored / "samples" / "jamp.jsonl", [{"id": "1"}])
    MtBenchFolder(run).write_header(Header("little", "", "ja", "generated", ("m",)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    answers = f"answers={bench.answers(tmp_path / 'given' / 'm.jsonl', 'm').parent}"
    bench.answers(tmp_path / "given" / "n.jsonl", "n")
    common = [f"preset={bench.preset}", f"mirror={bench.mirror}"]
    for out in (run, scored):
        for verb in (["replay", f"judgments={log}"], ["judge", answers], ["pairwise", answers]):
            judge = [] if verb[0] == "replay" else ["judge=gpt-4"]
            assert main([*verb, *common, *judge, f"out={out}"]) == 2
            assert "the folder belongs to another run" in capsys.readouterr().err
    assert main(["judge", answers, *common, "judge=gpt-4", f"out={new}", "--dry-run"]) == 0
    reference = ["calibrate", f"judgments={log}", answers, "judge=gpt-4", f"out={new}", "--dry-run"]
    assert main([*reference, *common]) == 0
    assert not new.exists() and all(path.read_bytes() == text for path, text in before.items())


@pytest.mark.parametrize(
    ("kind", "source"),
    [("mt_bench", "given"), ("mt_bench", "replayed"), ("mt_bench_pairwise", None), ("", None)],
)
def test_results_of_another_command_are_left_alone(kind: str, source: Source | None, tmp_path: Path) -> None:
    """Where nothing but results.json says whose folder it is; the scores of a suite have no kind."""
    folder = MtBenchFolder(tmp_path)
    folder.refuse_another(kind, source)
    for other in ("mt_bench", "mt_bench_pairwise", ""):
        write_checked_json(folder.results_path, {"kind": other} if other else {"scores": {}})
        if other == kind:
            folder.refuse_another(kind, source)
        else:
            with pytest.raises(InputError, match="belongs to another run"):
                folder.refuse_another(kind, source)
    folder.results_path.write_text("{", encoding="utf-8")
    folder.refuse_another(kind, source)


def test_oddities_of_a_log(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """String ids, duplicates, -1, $ERROR$, a float, a value off the scale, no prompt, two models."""
    log = write_jsonl(
        tmp_path / "log.jsonl",
        [
            row(1, 1, 8),
            row(1, 1, 6),
            row(1, 2, -1, "no rating here", question_id="1"),
            row(2, 1, -1, "$ERROR$"),
            row(2, 2, 7.5),
            row(71, 1, 11),
            row(71, 2, 3, user_prompt=None),
            row(71, 1, 4, model="other"),
        ],
    )
    results = run_little(bench, log, tmp_path / "run", capsys)
    table = results["tables"]["m"]
    assert table["rows"] == 7
    assert table["duplicates"] == 1
    assert table["statuses"] == {"ok": 4, "unparsed": 1, "api_error": 1, "out_of_range": 1}
    rules = results["mt_bench"]["m"]
    # Questions 1 and 2 are coding, 71 is writing.
    assert rules["llm_leaderboard"]["coding"] == pytest.approx((8 + 6 - 1 - 1 + 7.5) / 5)
    assert rules["show_result"]["coding"] == pytest.approx((8 + 6 + 7.5) / 3)
    assert rules["g_leaderboard"]["coding"] == pytest.approx((7 + 7.5) / 2)
    assert rules["llm_jp_judge"]["coding"] == pytest.approx(7)
    assert rules["llm_jp_judge"]["writing"] == 3
    assert rules["show_result"]["average"] == pytest.approx((8 + 6 + 7.5 + 11 + 3) / 5)
    assert results["mt_bench"]["other"]["show_result"]["average"] == 4
    assert results["partial"]["partial"]
    assert results["replay"]["m"]["prompts_compared"] is None
    assert results["replay"]["m"]["scores_equal"] == 7


def test_prompts_are_rendered_again(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Braces in questions and answers stay; what cannot be rendered is counted by its reason."""
    answers = bench.answers(tmp_path / "answers.jsonl", "m", text="答え{{answer}} {id}-{turn}")
    question = "codingの問い1、一つ目 {answer}"
    first = PROMPTS["single-math-v1"][1].split("{question}")
    expected = (
        first[0]
        + question
        + first[1].replace("{answer}", "答え{answer} 1-1").replace("{ref_answer_1}", "参照1-1")
    )
    second = "参照1-1|参照1-2|" + question + "|答え{answer} 1-1|codingの問い1、二つ目|答え{answer} 1-2"
    log = write_jsonl(
        tmp_path / "log.jsonl",
        [
            row(1, 1, 8, user_prompt=expected),
            row(1, 2, 8, user_prompt=second),
            row(2, 1, 8, user_prompt=expected),
            row(3, 1, 8, user_prompt=None),
            row(4, 1, 8, model="unknown"),
        ],
    )
    results = run_little(bench, log, tmp_path / "run", capsys, f"answers={answers}")
    known, unknown = results["replay"]["m"], results["replay"]["unknown"]
    assert (known["prompts_equal"], known["prompts_compared"]) == (2, 3)
    assert known["not_rendered"] == {"the log has no prompt": 1}
    assert unknown["prompts_compared"] == 0
    assert unknown["not_rendered"] == {"no answers of unknown": 1}
    kept = answers_of(MtBenchFolder(tmp_path / "run").turns())
    assert len(kept) == 80 and kept[0].turns == ("答え{answer} 1-1", "答え{answer} 1-2")


def test_a_score_that_is_not_in_the_text(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables keep the logged score, and the difference is shown."""
    log = write_jsonl(tmp_path / "log.jsonl", [row(1, 1, 9, "Rating: [[3]]"), row(2, 1, 5)])
    results = run_little(bench, log, tmp_path / "run", capsys)
    assert results["mt_bench"]["m"]["show_result"]["average"] == 7
    assert results["replay"]["m"]["scores_equal"] == 1
    assert results["replay"]["m"]["scores_compared"] == 2


def pair(question: int, first: str, second: str, verdicts: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {
        "question_id": question,
        "model_1": "a",
        "model_2": "b",
        "g1_winner": first,
        "g2_winner": second,
        "judge": ["gpt-4", "pair-v2"],
        "g1_user_prompt": "?",
        "g1_judgment": verdicts[0],
        "g2_user_prompt": "?",
        "g2_judgment": verdicts[1],
        "turn": 1,
    } | more


def test_pairwise_logs(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Section 9: both games must agree, a game in error drops the match."""
    prompt = "writingの問い71、一つ目 {{answer}}\nA: {}\nB: {}".format
    log = write_jsonl(
        tmp_path / "log.jsonl",
        [
            pair(
                71,
                "model_1",
                "model_1",
                ("[[A]]", "[[B]]"),
                g1_user_prompt=prompt("from a 71-1", "from b 71-1"),
                g2_user_prompt=prompt("from b 71-1", "from a 71-1"),
            ),
            pair(72, "model_1", "model_2", ("[[A]]", "[[A]]")),
            pair(73, "tie", "model_2", ("[[C]]", "[[A]]")),
            pair(74, "model_2", "model_2", ("[[B]]", "[[A]]")),
            pair(75, "error", "model_2", ("none", "[[A]]")),
            pair(76, "model_1", "model_1", ("[[A]]", "[[B]]")),
        ],
    )
    folder = tmp_path / "answers"
    bench.answers(folder / "a.jsonl", "a", "from a {id}-{turn}")
    bench.answers(folder / "b.jsonl", "b", "from b {id}-{turn}")
    results = run_little(bench, log, tmp_path / "run", capsys, f"answers={folder}")
    rates = results["pairwise"]["all"]["win_rates"]
    assert rates["a"] == pytest.approx(
        {
            "n": 5,
            "wins": 2,
            "losses": 1,
            "ties": 2,
            "win_rate": 0.4,
            "loss_rate": 0.2,
            "win_rate_adjusted": 0.6,
        }
    )
    assert rates["b"]["win_rate_adjusted"] == pytest.approx(0.4)
    bias = results["pairwise"]["all"]["bias"]
    assert bias["consistent"] == pytest.approx(3 / 5)
    assert bias["favours_first"] == pytest.approx(1 / 5)
    assert bias["errors"] == 1
    replayed = results["pairwise"]["replay"]
    assert (replayed["scores_equal"], replayed["scores_compared"]) == (12, 12)
    assert (replayed["prompts_equal"], replayed["prompts_compared"]) == (2, 12)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(1, 1, 5, turn=3)], "line 1, field turn"),
        ([row(1, 1, 5), row(1, 1, 5) | {"score": "five"}], "line 2, field score"),
        ([row(1, 1, 5) | {"score": 10**400}], "line 1, field score"),
        ([row(1, 1, 5) | {"score": float("inf")}], "line 1, field score"),
        ([row(1, 1, 5, judge="gpt-4")], "field judge"),
        ([row(1, 1, 5, question_id=None)], "field question_id"),
        ([row(999, 1, 5)], "question 999"),
        ([row(81, 1, 5)], "language=en"),
        ([], "no judgment"),
        ([pair(1, "model_3", "tie", ("", ""))], "field g1_winner"),
    ],
)
def test_bad_logs(
    rows: list[dict[str, Any]],
    expected: str,
    bench: Bench,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", rows)
    code, shown = replay(
        capsys,
        f"judgments={log}",
        f"preset={bench.preset}",
        f"mirror={bench.mirror}",
        f"out={tmp_path / 'o'}",
    )
    assert code == 2
    assert expected in shown
    assert not (tmp_path / "o").exists()


def test_a_line_that_is_not_json(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(row(1, 1, 5)) + "\n{not json\n")
    code, shown = replay(capsys, f"judgments={log}", f"preset={bench.preset}", f"mirror={bench.mirror}")
    assert code == 2 and "log.jsonl, line 2, column 2" in shown


def test_line_separators_inside_a_judgment(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", [row(1, 1, 5, "first\u2028second [[5]]")])
    assert run_little(bench, log, tmp_path / "run", capsys)["tables"]["m"]["rows"] == 1


def test_without_judgments(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = replay(capsys, "preset=fastchat")
    assert code == 2 and "judgments=FILE" in shown


@pytest.mark.sources
def test_english_logs_are_known_by_their_ids(
    mirror: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids 81 to 160: English questions, references and categories, without being told."""
    questions = [
        json.loads(line)
        for line in (mirror / "mt_bench" / "en" / "question_b494d0c.jsonl").read_text().splitlines()
    ]
    template = next(
        json.loads(line)["prompt_template"]
        for line in (mirror / "mt_bench" / "judge_prompts" / "judge_prompts_en_7ad1d63.jsonl").open()
        if '"name": "single-v1"' in line
    )
    rows, answers = [], []
    for question in questions:
        number = question["question_id"]
        prompt = template.replace("{question}", question["turns"][0]).replace("{answer}", "An answer.")
        rows.append(row(number, 1, 4 if question["category"] == "writing" else 6, user_prompt=prompt))
        choice = {"index": 0, "turns": ["An answer.", "Another."]}
        answers.append({"question_id": number, "model_id": "m", "choices": [choice]})
    log = write_jsonl(tmp_path / "log.jsonl", rows)
    given = write_jsonl(tmp_path / "answers.jsonl", answers)
    words = [f"judgments={log}", f"answers={given}", "preset=fastchat", f"mirror={mirror}"]
    assert replay(capsys, *words, f"out={tmp_path / 'run'}")[0] == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert MtBenchFolder(tmp_path / "run").header().language == "en"
    # 50 questions need no reference: their single-v1 prompts come out again.
    assert results["replay"]["m"]["prompts_equal"] == 50
    assert results["replay"]["m"]["prompts_compared"] == 80
    table = results["mt_bench"]["m"]["show_result"]
    assert (table["writing"], table["average"]) == (4, pytest.approx((4 * 10 + 6 * 70) / 80))
    assert replay(capsys, *words, "language=ja", f"out={tmp_path / 'no'}")[0] == 2


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_bundled_log_is_an_example_and_says_so(
    mirrored: bool, bench: Bench, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"mirror={bench.mirror}"] if mirrored else ["offline=true"]
    code, shown = replay(capsys, "judgments=example", f"out={tmp_path / 'run'}", *words)
    assert code == 0, shown
    assert "preset example (made up)" in shown and "example-judge" in shown
    assert "16 of 16 scores equal" in shown and "16 of 16 prompts equal" in shown
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert list(results["tables"]) == ["example (made up)"] and not results["partial"]["partial"]
    # The page finds its questions beside the preset.
    books = BookOptions(offline=True).books(MtBenchFolder(tmp_path / "run").header().preset)
    assert books.of(1).questions[1].turns[0].startswith("雨の朝の駅")


def test_where_no_rating_could_be_read_no_number_is_shown(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_jsonl(tmp_path / "log.jsonl", [row(1, on, -1, "no rating here") for on in (1, 2)])
    words = [f"preset={bench.preset}", f"mirror={bench.mirror}", f"out={tmp_path / 'runs' / 'run'}"]
    code, shown = replay(capsys, f"judgments={log}", *words)
    assert code == 0 and "no rating could be read: there is no score" in shown
    assert "-1.00" not in shown and "2 without a rating" in shown
    assert main(["leaderboard", str(tmp_path / "runs"), "--partial", "--format", "csv,markdown,html"]) == 2
    told = capsys.readouterr()
    assert "MT-Bench: no rating could be read" in told.err and "-1.00" not in told.out + told.err
