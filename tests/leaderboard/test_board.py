"""The rows of a results folder, and the reasons for the folders that are not shown."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from evalkit.__main__ import main
from evalkit.core.config import Lang
from evalkit.core.durable import CHECK, write_checked_json
from evalkit.core.errors import InputError
from evalkit.core.options import load_config, parse
from evalkit.core.types import Judgment
from evalkit.leaderboard.board import Board, build_board
from evalkit.leaderboard.card import CARD_PRESET, load_cards, mt_bench_deviations
from evalkit.leaderboard.collect import collect, find_run
from evalkit.leaderboard.compare import compare
from evalkit.leaderboard.exports import _by_series
from evalkit.leaderboard.frames import sample_rows
from evalkit.leaderboard.page_data import page_data
from evalkit.leaderboard.rows import INSTRUCTION_COLUMNS, TABLES, Origin, jaster_row, model_url, tables_of
from evalkit.leaderboard.runs import FinishedRun, JudgedRun, counting_metric, option_differences
from evalkit.leaderboard.tables import csv_text, markdown, not_shown, row_notes
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.records.results import DatasetRates, Figure, Partial, ProtocolRecord, Results, read_results
from evalkit.runs.rescore import rescore
from evalkit.scoring.categories import with_intervals
from tests.leaderboard.conftest import World
from tests.leaderboard.made import Made, make_run, write_data


@pytest.fixture
def copied(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.results, tmp_path / "results"))


def one_run(results: Path, model: str) -> Path:
    (folder,) = (results / model / "jaster").iterdir()
    return folder


def cut(path: Path, lines: int, more: str = "") -> None:
    kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
    path.write_text("".join(kept) + more, encoding="utf-8")


def set_value(folder: Path, value: object) -> None:
    path = folder / "results.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["categories"]["NLI"]["value"] = value
    # Its checksum fits: the value was written like this.
    write_checked_json(path, {key: entry for key, entry in content.items() if key != CHECK})


def reasons(board: Board) -> dict[str, str]:
    return {entry.path.name: entry.reason for entry in board.left_out}


def test_rows_hold_what_the_results_say(world: World) -> None:
    board = build_board([world.results])
    assert [row.model for row in board.rows] == ["strong-モデル", "weak"]
    assert not board.left_out
    for row in board.rows:
        assert row.run is not None
        content = json.loads((row.run.folder / "results.json").read_text(encoding="utf-8"))
        assert row.cells["AVG"].value == content["average"]["AVG"]["value"]
        assert {name: row.cells[name].value for name in content["categories"]} == {
            name: value["value"] for name, value in content["categories"].items()
        }
        assert row.cells["NLI"].ci95 == tuple(content["categories"]["NLI"]["ci95"])


def test_a_model_that_is_always_wrong_is_not_wrong_for_certain(world: World, tmp_path: Path) -> None:
    """Wilson's interval where answers are right or wrong, none where other scores are all equal."""
    wrong = make_run(Made("wrong", -1.0), world.data, tmp_path / "results").folder
    content = json.loads((wrong / "results.json").read_text(encoding="utf-8"))
    values = {**content["scores"], **content["categories"], **content["average"]}
    assert all(v["ci95"] is None or v["ci95"][0] < v["ci95"][1] for v in values.values())
    assert all((v["ci95"] is None) == (v["stderr"] is None) for v in values.values())
    jamp, chabsa = content["scores"]["mawps_exact_match"], content["scores"]["chabsa_set_f1"]
    assert jamp["value"] == 0.0 and jamp["ci95"] == [0.0, pytest.approx(0.138, abs=1e-3)]
    assert chabsa["value"] == 0.0 and chabsa["ci95"] is None
    (row,) = build_board([tmp_path / "results"]).rows
    assert row.cells["MR"].ci95 is not None and row.cells["EL"].ci95 is None
    assert row.cells["AVG"].ci95 is not None


def test_old_runs_with_intervals_of_zero_width_get_them_from_their_scores(
    world: World, tmp_path: Path
) -> None:
    wrong = make_run(Made("wrong", -1.0), world.data, tmp_path / "results").folder
    path = wrong / "results.json"
    now = json.loads(path.read_text(encoding="utf-8"))
    old = json.loads(path.read_text(encoding="utf-8"))
    for value in (*old["scores"].values(), *old["categories"].values(), *old["average"].values()):
        value |= {"ci95": [value["value"]] * 2, "stderr": 0.0}
    write_checked_json(path, {key: entry for key, entry in old.items() if key != CHECK})
    (row,) = build_board([tmp_path / "results"]).rows
    assert row.run is not None
    for place in ("scores", "categories", "average"):
        found = json.loads(json.dumps(row.run.results.to_json()))[place]
        for name, value in now[place].items():
            # comet_wmt22 is another metric while these runs are made: its scale is not known here.
            # Of correlations scores/ does not hold the parts.
            if name.endswith(("comet_wmt22", "pearson", "spearman")) or name in ("MT", "AVG"):
                assert found[name]["ci95"] is None or found[name]["ci95"][0] < found[name]["ci95"][1]
            else:
                assert found[name]["value"] == value["value"]
                assert found[name]["ci95"] == (value["ci95"] and pytest.approx(value["ci95"])), name
    for scores in (wrong / "scores").glob("*.jsonl"):
        scores.unlink()
    values = read_results(path)
    assert {value.ci95 for value in with_intervals(values, wrong).scores.values()} == {None}


def test_unfinished_damaged_and_foreign_versions_are_listed_and_the_rest_is_shown(
    world: World, copied: Path
) -> None:
    weak = one_run(copied, "weak")
    for name, change in {
        "unfinished": lambda folder: (folder / "results.json").unlink(),
        "torn": lambda folder: (folder / "results.json").write_text('{"schema_version": 1, "sco'),
        "newer": lambda folder: (folder / "results.json").write_text('{"schema_version": 99}'),
        "lacking": lambda folder: (folder / "results.json").write_text('{"schema_version": 1}'),
        "list": lambda folder: (folder / "results.json").write_text("[1, 2]"),
        "scoreless": lambda folder: (folder / "scores" / "jamp.jsonl").unlink(),
        "shortened": lambda folder: cut(folder / "scores" / "jamp.jsonl", 5),
        "scratched": lambda folder: cut(folder / "scores" / "jamp.jsonl", 24, "x"),
        "wordy": lambda folder: set_value(folder, "high"),
        "no-number": lambda folder: set_value(folder, float("nan")),
        "endless": lambda folder: set_value(folder, 10**400),
    }.items():
        folder = Path(shutil.copytree(weak, copied / "broken" / name))
        change(folder)
    board = build_board([copied])
    assert [row.model for row in board.rows] == ["strong-モデル", "weak"]
    said = reasons(board)
    assert "not finished" in said["unfinished"]
    assert "not JSON" in said["torn"] or "cannot be read" in said["torn"]
    assert "99" in said["newer"]
    assert "schema" in said["lacking"]
    assert "a JSON object was expected" in said["list"]
    assert "jamp" in said["scoreless"]
    assert "5 of 24" in said["shortened"]
    assert "damaged" in said["scratched"]
    assert all("NLI" in said[name] for name in ("wordy", "no-number", "endless"))


def test_a_folder_that_is_reached_twice_counts_once_and_links_do_not_go_round(copied: Path) -> None:
    (copied / "weak" / "round").symlink_to(copied, target_is_directory=True)
    board = build_board([copied, one_run(copied, "weak"), copied / "weak"])
    assert [row.model for row in board.rows] == ["strong-モデル", "weak"]
    assert not board.left_out


def test_a_copied_folder_counts_once(copied: Path) -> None:
    shutil.copytree(one_run(copied, "weak"), copied / "copy")
    board = build_board([copied])
    assert [row.model for row in board.rows] == ["strong-モデル", "weak"]
    (entry,) = board.left_out
    assert "the same run as" in entry.reason


def test_of_two_runs_of_a_model_the_newest_complete_one_is_shown_with_a_remark(
    world: World, copied: Path, tmp_path: Path
) -> None:
    older = one_run(copied, "weak")
    os.utime(older / "results.json", (1, 1))
    newer = make_run(Made("weak", 0.5, 5), world.data, copied).folder
    board = build_board([copied])
    (row,) = (row for row in board.rows if row.model == "weak")
    assert row.run is not None and row.run.folder == newer
    assert "one of 2 runs" in row.remarks[0]
    assert reasons(board)[older.name] == "a newer run of the model is shown"
    assert {entry.beside for entry in board.left_out} == {newer}

    # One that covers less does not win by being newer still.
    small = make_run(Made("weak", 0.9, 6), world.data, copied, "suite=nli").folder
    board = build_board([copied])
    (row,) = (row for row in board.rows if row.model == "weak")
    assert row.run is not None and row.run.folder == newer
    assert "more complete" in reasons(board)[small.name]


def test_partial_runs_are_shown_on_request_and_marked(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 12)
    make_run(Made("whole", 0.6), data, tmp_path / "results")
    make_run(Made("short", 0.6), data, tmp_path / "results", "limit=5")
    (data / "1.3.1" / "evaluation" / "dev" / "jamp.json").unlink()
    make_run(Made("lacking", 0.6), data, tmp_path / "results", "allow_missing=true")

    board = build_board([tmp_path / "results"])
    assert [row.model for row in board.rows] == ["whole"]
    assert all("partial" in entry.reason and "--partial" in entry.reason for entry in board.left_out)

    rows = {row.model: row for row in build_board([tmp_path / "results"], partial=True).rows}
    assert all(cell.partial for cell in rows["short"].cells.values())
    # Only NLI lacks a dataset: the other categories are whole, and there is no average.
    lacking = rows["lacking"].cells
    assert {name for name, cell in lacking.items() if cell.partial} == {"NLI"}
    assert "AVG" not in lacking and len(lacking) == 9
    assert any(reason.startswith("jamp is missing") for reason in rows["lacking"].reasons)
    assert not rows["whole"].partial


def test_runs_of_another_protocol_are_rows_of_their_own(world: World, copied: Path) -> None:
    make_run(Made("weak", 0.35, 1), world.data, copied, "protocol.strip=true", "num_few_shots=3")
    rows = [row for row in build_board([copied]).rows if row.model == "weak"]
    assert len(rows) == 2
    assert any("protocol.strip=True" in row.rules and "num_few_shots=3" in row.rules for row in rows)


def test_published_rows(world: World) -> None:
    rows = {row.model: row for row in build_board([world.results], reference="llm-jp-3").rows}
    cards = load_cards()
    published = {name: row for name, row in rows.items() if row.kind is Origin.published}
    assert set(published) == set(cards)
    for name, row in published.items():
        assert {column: cell.value for column, cell in row.cells.items()} == cards[name].columns
        assert row.url == f"https://huggingface.co/llm-jp/{name}"
    assert published["llm-jp-3-13b-instruct"].mt_bench["average"].value == 6.47
    with pytest.raises(InputError, match="llm-jp-3"):
        build_board([world.results], reference="llm-jp-9")


@pytest.mark.parametrize("place", [(), ("evaluation",), ("evaluation_results",)])
def test_a_result_of_llm_jp_eval_is_a_row_of_its_own_kind(
    world: World, tmp_path: Path, place: tuple[str, ...]
) -> None:
    content: dict[str, object] = {"scores": {"AVG": 0.4321, "NLI": 0.5, "jamp_exact_match": 0.35}}
    for key in place:
        content = {key: content}
    content["config"] = {"model": {"pretrained_model_name_or_path": "org/some-model"}}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    rows = {row.model: row for row in build_board([world.results, path]).rows}
    row = rows["org/some-model"]
    assert row.kind is Origin.llm_jp_eval
    assert row.cells["AVG"].value == 0.4321 and row.cells["AVG"].ci95 is None
    assert row.datasets["jamp_exact_match"].value == 0.35
    assert row.url == "https://huggingface.co/org/some-model"


def test_our_own_export_comes_back(world: World, tmp_path: Path) -> None:
    folder = make_run(Made("weak", 0.35, 1), world.data, tmp_path, "export=llm-jp-eval").folder
    (row,) = build_board([folder / "llm-jp-eval.json"]).rows
    (own,) = build_board([folder]).rows
    assert {name: cell.value for name, cell in row.cells.items()} == {
        name: round(cell.value or 0, 4) for name, cell in own.cells.items()
    }


def test_mt_bench_that_is_damaged_is_listed(copied: Path, tmp_path: Path) -> None:
    table = {"judge": "gpt-4", "repeats": 1, "reduce": "mean", "scopes": {}}
    content: dict[str, object] = {
        "schema_version": 1,
        "kind": "mt_bench",
        "preset": {"name": "fastchat", "sha256": "0" * 64},
        "tables": {"weak": table},
        "partial": {"partial": False, "reasons": []},
    }
    average = {"average": {"value": 5.0, "ci95": [4.0, 6.0], "n": 160}}
    odd = {"average": {"value": "five", "ci95": None, "n": 160}}
    for name, change in {
        "fine": {"tables": {"weak": {**table, "scopes": average}}},
        "other-preset": {
            "tables": {"weak": {**table, "scopes": average}},
            "preset": {"name": "fastchat", "sha256": "1" * 64},
        },
        "repeated": {"tables": {"weak": {**table, "scopes": average, "repeats": 3, "reduce": "median"}}},
        "odd": {"tables": {"weak": {**table, "scopes": odd}}},
        "lacking": {"preset": {}},
        "unjudged": {"tables": {}},
        "newer": {"schema_version": 2},
    }.items():
        path = copied / "weak" / "mt" / name / "results.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**content, **change}), encoding="utf-8")
    board = build_board([copied])
    assert set(reasons(board)) == {"odd", "lacking", "unjudged", "newer"}
    rules = {row.mt_bench_rules for row in board.rows if row.mt_bench}
    assert rules == {
        "fastchat 00000000, gpt-4",
        "fastchat 11111111, gpt-4",
        "fastchat, gpt-4, median of 3 judgments",
    }


def test_how_a_judge_was_asked_is_part_of_its_rules(tmp_path: Path) -> None:
    scopes = {"average": {"value": 5.0, "ci95": [4.0, 6.0], "n": 160}}
    given = {"temperature": 0, "n": 1, "max_tokens": 2048}
    asked = {"label": "gpt-4", "service": "openai", "parameters": given, "answered_by": {"gpt-4-0613": 160}}
    for name, judge, preset in (
        ("plain", asked, CARD_PRESET),
        ("elsewhere", {**asked, "service": "http://b:1", "answered_by": {}}, CARD_PRESET),
        ("warm", {**asked, "parameters": {**given, "temperature": 1}}, CARD_PRESET),
        ("thinking", {**asked, "parser": {"rule": "think"}}, CARD_PRESET),
        ("stability", asked, "stability"),
        ("earlier", {}, None),
    ):
        content = {
            "schema_version": 1,
            "kind": "mt_bench",
            "preset": {"name": CARD_PRESET, "sha256": "0" * 64},
            "tables": {name: {"judge": "gpt-4", "scopes": scopes}},
            "partial": {"partial": False, "reasons": []},
            **({"judge": judge, "answers": {name: {"preset": preset}}} if judge else {}),
        }
        write_checked_json(tmp_path / name / "results.json", content)
    runs = {run.model: run for run in collect([tmp_path]).mt_bench}
    rules = {name: run.rules for name, run in runs.items()}
    assert rules["plain"] == rules["elsewhere"] and rules["earlier"] == f"{CARD_PRESET}, gpt-4"
    assert len(set(rules.values())) == 5
    assert all(rule.startswith(f"{CARD_PRESET}, gpt-4") for rule in rules.values())
    assert {name: mt_bench_deviations(run) for name, run in runs.items()} == {
        "plain": {},
        "elsewhere": {},
        "warm": {"judge.parameters.temperature": 1},
        "thinking": {},
        "stability": {"answers": "stability"},
        "earlier": {},
    }


def judged(
    folder: Path, name: str, value: float | None = 5.0, language: str = "ja", **identity: object
) -> None:
    """An MT-Bench run of a judge's ratings, whose answers were made as `identity` says."""
    content = {
        "schema_version": 1,
        "kind": "mt_bench",
        "preset": {"name": "fastchat", "sha256": "0" * 64},
        "tables": {name: {"judge": "gpt-4", "scopes": {"average": {"value": value, "ci95": None, "n": 160}}}},
        "partial": {"partial": False, "reasons": []},
    }
    header = {"preset": "fastchat", "preset_sha256": "0" * 64, "language": language, "source": "given"}
    write_checked_json(folder / "mt_bench.json", {**header, "models": [name], "kind": "mt_bench"})
    write_checked_json(folder / "results.json", content)
    if identity:
        write_checked_json(folder / "environment.json", {"identity": identity})


def test_mt_bench_in_english_is_no_japanese_mt_bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(tmp_path / "ja", "llm-jp-3-13b-instruct", 4.0)
    judged(tmp_path / "en", "llm-jp-3-13b-instruct", 8.0, "en")
    board = build_board([tmp_path])
    assert not board.left_out
    japanese, english = TABLES[1:3]
    assert [row.mt_bench["average"].value for row in japanese.rows(board.rows)] == [4.0]
    (row,) = english.rows(board.rows)
    assert row.mt_bench_rules == "fastchat, gpt-4, language=en"
    assert "mt_bench_en_average" in csv_text(board.rows)
    assert main(["card", f"run={tmp_path}"]) == 0
    assert "4.00" in (said := capsys.readouterr().out) and "8.00" not in said
    assert main(["reproduce", f"run={tmp_path / 'en'}"]) == 0
    assert "language=en" in capsys.readouterr().out


def test_mt_bench_of_other_weights_precision_or_template_is_another_row(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.weak, tmp_path / "weak")
    (run,) = collect([world.weak]).runs
    model = run.identity["model"]
    judged(tmp_path / "same", "weak", 1.0, model=model, dtype="float32")
    judged(tmp_path / "half", "weak", 2.0, model=model, dtype="bfloat16")
    judged(tmp_path / "template", "weak", 3.0, model={**model, "chat_template": "ab" * 32}, dtype="float32")
    judged(tmp_path / "weights", "weak", 4.0, model={"files": {"w": "0" * 64}}, dtype="float32")
    judged(tmp_path / "other", "other", 5.0, model={"files": {"w": "1" * 64}}, dtype="float32")
    board = build_board([tmp_path])
    assert not board.left_out
    rules = {row.mt_bench["average"].value: row.mt_bench_rules for row in board.rows}
    assert rules[2.0] == "fastchat, gpt-4" and rules[5.0] == "fastchat, gpt-4, dtype=float32"
    assert rules[3.0] == "fastchat, gpt-4, dtype=float32, model.chat_template=abababab"
    assert rules[1.0].startswith(f"{rules[5.0]}, model ") and rules[4.0].startswith(f"{rules[5.0]}, model ")
    assert len({*rules.values()}) == 5
    (joined,) = (row for row in board.rows if row.cells)
    assert joined.mt_bench["average"].value in (1.0, 3.0), "the same weights in the same precision"
    assert joined.lasting_rules.startswith(f"{run.lasting_rules}; fastchat"), (
        "another judge is another W&B run"
    )


def test_mt_bench_without_any_rating_is_listed(tmp_path: Path) -> None:
    judged(tmp_path / "fine", "m")
    judged(tmp_path / "silent", "silent", None)
    board = build_board([tmp_path])
    assert reasons(board) == {"silent": "MT-Bench: no rating could be read"}
    assert [row.model for row in board.rows] == ["m"]
    # Of MT-Bench alone there is nothing for lm-eval.
    assert main(["leaderboard", str(tmp_path), "--format", "lm-eval"]) == 2


def test_checkpoints_of_mt_bench_alone_are_a_series(tmp_path: Path) -> None:
    for step in (100, 200):
        judged(tmp_path / str(step), f"m-step-{step}", model={"files": {"w": str(step)}})
    board = build_board([tmp_path])
    shown = page_data(board, {}, Lang.en, 50, {})["rows"]
    assert [(row["series"], row["step"]) for row in shown] == [("m", 100), ("m", 200)]
    assert [*_by_series(board.rows)] == [("m", board.rows[0].lasting_rules)]


def test_a_log_that_was_replayed_without_answers_has_its_ratings(tmp_path: Path) -> None:
    judgments = [
        Judgment(f"m/{n}/1/0", "m", n, "math", 1, "gpt-4", "p", "[[7]]", "ok", 7.0, "double", 7.0)
        for n in (1, 2)
    ]
    MtBenchFolder(tmp_path).write_judgments("gpt-4", judgments)
    content = {"tables": {"m": {"judge": "gpt-4"}}, "partial": {"partial": True, "reasons": ["short"]}}
    rows = list(sample_rows(JudgedRun(tmp_path, "m", content, 0.0)))
    assert [(row["id"], row["value"], row["partial"]) for row in rows] == [
        ("1/1/0/m", 7.0, True),
        ("2/1/0/m", 7.0, True),
    ]


def test_several_answers_to_each_instruction_are_in_the_table() -> None:
    scores = {f"mifeval-ja_{name}_avg@4": Figure(0.5, 172) for name in INSTRUCTION_COLUMNS}
    rates = DatasetRates([f"{name}_avg@4" for name in INSTRUCTION_COLUMNS], 172, 0.0, None, None)
    record = ProtocolRecord("m-ifeval", {"samples": 4}, {"samples": 4})
    results = Results(scores, {}, {}, {"mifeval-ja": rates}, Partial(False), [], record, {"model": "m"})
    row = jaster_row(FinishedRun(Path("m"), results, 0.0))
    (table,) = (table for table in tables_of([row]) if table.name == "instructions")
    assert table.filled([row]) == [*INSTRUCTION_COLUMNS] and table.rows([row]) == [row]


def test_an_odd_hub_name_is_no_link(world: World, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for name, url in {
        "org/model": "https://huggingface.co/org/model",
        "org/model) [x](https://example.org": None,
        "./model": None,
    }.items():
        content = {"scores": {"AVG": 0.4, "NLI": float("nan")}, "model": name}
        path.write_text(json.dumps(content), encoding="utf-8")
        (row,) = build_board([path]).rows
        assert (row.model, row.url) == (name, url)
        assert list(row.cells) == ["AVG"]
    assert model_url({"hub": "a/b) [x](c"}) == "https://huggingface.co/a/b%29%20%5Bx%5D%28c"


@pytest.mark.parametrize("text", ["{", "[]", '{"scores": {}}', '{"scores": {"AVG": "high"}}', ""])
def test_a_file_without_scores_is_listed(
    world: World, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text, encoding="utf-8")
    board = build_board([world.results, path])
    assert len(board.rows) == 2
    assert reasons(board)["odd.json"]
    assert main(["leaderboard", str(path)]) == 2
    assert "odd.json" in capsys.readouterr().err


def test_an_empty_folder_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", str(tmp_path)]) == 2
    assert "nothing to show" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path / "none")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_the_rule_that_auto_chose_keeps_runs_apart(world: World) -> None:
    plain = read_results(world.weak / "results.json")
    think = {"rule": "think", "start": "<think>", "end": "</think>", "thought_length": 50}
    identity = {**plain.run["identity"], "reasoning": think}
    thinks = replace(plain, run={**plain.run, "identity": identity})
    assert (plain.split_by, thinks.split_by) == ("none", "think")
    rules = [FinishedRun(world.weak, results, 0.0).rules for results in (thinks, plain)]
    assert rules[0] == rules[1].replace("float32", "float32, reasoning.parser=think")
    assert option_differences(plain, thinks) == ["reasoning.parser differs: none and think"]
    tagged = replace(thinks, protocol=replace(plain.protocol, options={"reasoning.start": "<a>"}))
    assert tagged.split_by == "think <a>" and tagged.split_anew and not thinks.split_anew


# --- runs made apart ------------------------------------------------------------------------------

SUITES = ("el", "fa", "he", "mc", "mr", "mt", "nli", "qa", "rc")
OWN = """
name: kanji
instruction: 漢字の読みを答えてください。
output_length: 5
metrics: [exact_match]
data: {{file: {file}, input: input, output: output, few_shots: 4}}
"""


@pytest.fixture(scope="module")
def apart(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weak model's nine categories, each run alone, and a task of one's own."""
    folder = tmp_path_factory.mktemp("apart")
    for suite in SUITES:
        make_run(Made("weak", 0.35, 1), world.data, folder / "results", f"suite={suite}")
    write_data(folder / "data", 24, ["jamp"])
    file = folder / "data" / "1.3.1" / "evaluation" / "dev" / "jamp.json"
    file = file.rename(file.with_name("kanji.json"))
    (folder / "kanji.yaml").write_text(OWN.format(file=file), encoding="utf-8")
    own = ("suite=task", f"suite.tasks=[{folder / 'kanji.yaml'}]", "num_few_shots=2")
    make_run(Made("weak", 0.35, 1), folder / "data", folder / "results", *own)
    return folder / "results"


def test_categories_run_apart_are_the_row_of_one_run_of_all(world: World, apart: Path) -> None:
    (row,) = build_board([apart]).rows
    (whole,) = build_board([world.weak]).rows
    assert set(row.cells) == set(whole.cells)
    for name, cell in whole.cells.items():
        assert (row.cells[name].value, row.cells[name].n) == (cell.value, cell.n)
        assert row.cells[name].ci95 == (cell.ci95 and pytest.approx(cell.ci95))
        assert row.cells[name].metric_version == cell.metric_version
    assert row.rules == whole.rules and not row.partial
    assert row.remarks[0].startswith("joined of 10 runs: el, fa, he, kanji, mc, mr, mt, nli, qa, rc")


def test_a_task_of_ones_own_is_a_column_and_pushes_no_row_away(
    world: World, apart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = build_board([apart])
    (row,) = board.rows
    own = tables_of(board.rows)[-1]
    assert (own.title, own.columns) == ("Own tasks", ("kanji",))
    assert own.rules(row) == "llm-jp-eval-1.3.1, dtype=float32, num_few_shots=2" != row.rules
    assert "kanji" in csv_text(board.rows).splitlines()[0] and "## Own tasks" in markdown(board)
    # It is no part of the comparison's categories, and joined folders compare with whole ones.
    for a, b in ((apart, world.strong), (world.strong, apart)):
        with pytest.raises(InputError, match="kanji is in only one of them"):
            compare(find_run(a), find_run(b), resamples=100)
        found = compare(find_run(a), find_run(b), partial=True, resamples=100)
        assert len(found.datasets) == 22 and found.average is not None
    assert main(["leaderboard", str(apart), f"out={tmp_path}", "metrics.resamples=100"]) == 0
    assert "joined of 10 runs" in capsys.readouterr().out


def test_the_metric_of_an_own_task_is_what_its_file_says_at_the_last_scoring(
    apart: Path, tmp_path: Path
) -> None:
    path, data = tmp_path / "kanji.yaml", apart.parent / "data"
    text = OWN.format(file=data / "1.3.1" / "evaluation" / "dev" / "kanji.json")
    path.write_text(text.replace("[exact_match]", "[exact_match, char_f1]"), encoding="utf-8")

    def run() -> Path:
        words = ("suite=task", f"suite.tasks=[{path}]", "num_few_shots=2")
        return make_run(Made("weak", 0.35, 1), data, tmp_path, *words).folder / "results.json"

    def scored() -> tuple[str | None, dict[str, object]]:
        results = read_results(run_file)
        return counting_metric("kanji", results), results.run["datasets"]["kanji"]

    run_file = run()
    metric, before = scored()
    assert metric == "exact_match" == before["counts"]
    text = text.replace("[exact_match]", "[exact_match, char_f1]\ncounts: char_f1")
    path.write_text(text, encoding="utf-8")
    rescore(load_config(parse([f"run={run_file.parent}"], ["score"])))
    # The hashes of its data stay.
    assert scored() == ("char_f1", before | {"counts": "char_f1"}) and before["sha256"]
    # The command that made the run notices the file too, and then has nothing to do.
    for metrics, again in (("[set_f1]", True), ("[set_f1]", False), ("[set_f1, char_f1, rouge1]", True)):
        path.write_text(text.replace("[exact_match, char_f1]\ncounts: char_f1", metrics), encoding="utf-8")
        state = run_file.stat().st_mtime_ns
        assert run() == run_file and (state != run_file.stat().st_mtime_ns) == again
        assert scored()[0] == "set_f1"


def test_what_would_make_other_figures_is_not_joined(world: World, tmp_path: Path) -> None:
    model = Made("weak", 0.35, 1)
    make_run(model, world.data, tmp_path, "suite=nli")
    make_run(model, world.data, tmp_path, "suite=mr", "limit=200")
    make_run(model, world.data, tmp_path, "suite=mc", "protocol.strip=true")
    make_run(Made("weak", 0.35, 2), world.data, tmp_path, "suite=rc")
    board = build_board([tmp_path])
    assert sorted([*row.cells] for row in board.rows) in ([["MC"], ["MR"], [name]] for name in ("NLI", "RC"))
    assert {"limit=200" in row.rules for row in board.rows if "MR" in row.cells} == {True}
    (why,) = (entry.reason for entry in board.left_out)
    assert why == "not joined with the model's other runs: model differs"


def test_half_a_category_waits_for_the_other_half(world: World, tmp_path: Path) -> None:
    model, halves = Made("weak", 0.35, 1), ("jamp,janli,jnli", "jsem,jsick")
    first, second = (
        make_run(model, world.data, tmp_path, "suite=task", f"suite.tasks=[{half}]").folder for half in halves
    )
    with pytest.raises(InputError, match="nothing to show"):
        build_board([first])
    (row,) = build_board([tmp_path]).rows
    (whole,) = build_board([world.weak]).rows
    assert row.cells["NLI"].value == whole.cells["NLI"].value and not row.partial
    make_run(model, world.data, tmp_path, "suite=mr")
    shutil.rmtree(second)
    board = build_board([tmp_path])
    assert [set(row.cells) for row in board.rows] == [{"MR"}]
    assert [entry.path for entry in board.left_out] == [first]


def test_what_many_models_share_is_said_once(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"m-step-{step}" for step in (100, 200, 300)]
    for seed, name in enumerate(names):
        for options in (["suite=mc"], ["suite=mr"], ["suite=qa", "limit=5"]):
            make_run(Made(name, 0.5, seed), world.data, tmp_path, *options)
    board = build_board([tmp_path])
    listed = "3 models (m-step-100, m-step-200, m-step-300)"
    assert [note.partition(": ")[0] for note in row_notes(board.rows)] == [listed] * 2
    ((why, entries),) = not_shown(board)
    assert why.startswith(f"{listed}: partial: limit=5") and len(entries) == 3
    assert markdown(board).count("m-step-200") == 1 + 2 + 1 + 1
    capsys.readouterr()
    assert main(["card", f"run={tmp_path}"]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "not the card's protocol" in line]
    assert said.startswith(f"evalkit: {listed}: ")


def test_the_card_s_section(world: World, apart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", f"run={apart}", "--reference"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[:5] == [
        "## Evaluation",
        "",
        "### llm-jp-eval (v1.3.1)",
        "",
        "We evaluated the models using 100 examples from the dev split.",
    ]
    assert lines[6] == "| Model name | average | EL | FA | HE | MC | MR | MT | NLI | QA | RC |"
    link = "[llm-jp-3-1.8b](https://huggingface.co/llm-jp/llm-jp-3-1.8b)"
    figures = "0.3767 | 0.3725 | 0.1948 | 0.2350 | 0.2500 | 0.0900 | 0.7730 | 0.3080 | 0.4629 | 0.7040"
    assert lines[8] == f"| {link} | {figures} |"
    (whole,) = build_board([world.weak]).rows
    assert lines[-1].startswith(f"| weak | {whole.cells['AVG'].value:.4f} | ") and len(lines) == 15
    assert main(["card"]) == 2 and main(["card", f"run={world.results}", "--reference", "llm-jp-9"]) == 2


def test_pairwise_matches_are_no_runs_and_no_defect(tmp_path: Path) -> None:
    """Of the verb pairwise, and of a replayed log that has nothing else."""
    own = {"schema_version": 1, "kind": "mt_bench_pairwise", "pairwise": {}}
    write_checked_json(tmp_path / "pairwise" / "1" / "results.json", own)
    replayed = {"schema_version": 1, "kind": "mt_bench", "tables": {}, "pairwise": {}}
    write_checked_json(tmp_path / "replay" / "1" / "results.json", replayed)
    assert collect([tmp_path]).left_out == []
