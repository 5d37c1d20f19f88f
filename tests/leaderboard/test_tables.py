"""leaderboard.csv, leaderboard.md and the model card's block."""

import csv
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from evalkit.__main__ import main
from evalkit.cli.leaderboard import _cell, _print_board
from evalkit.core.config import Config
from evalkit.leaderboard.board import Board, build_board
from evalkit.leaderboard.card import load_cards, published_rows
from evalkit.leaderboard.exports import model_card
from evalkit.leaderboard.rows import TABLES, BoardRow, Origin, escaped, jaster_row, tables_of
from evalkit.leaderboard.runs import FinishedRun
from evalkit.leaderboard.tables import csv_text, markdown, marks, spreadsheet_text
from evalkit.records.results import Figure
from evalkit.scoring.categories import summarise
from evalkit.tasks.load import Task
from evalkit.tasks.spec import DataSpec
from tests.conftest import ROOT
from tests.leaderboard.conftest import World
from tests.scored import answers, record_of, score

# The columns of the two tables on the llm-jp-3 model cards, in their order.
CARD = ["AVG", "EL", "FA", "HE", "MC", "MR", "MT", "NLI", "QA", "RC"]
MT_CARD = [
    "average",
    "coding",
    "extraction",
    "humanities",
    "math",
    "reasoning",
    "roleplay",
    "stem",
    "writing",
]


def table_lines(text: str, title: str) -> list[list[str]]:
    lines = text.split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_card_s_tables_come_out_as_published() -> None:
    text = markdown(Board(tuple(published_rows("llm-jp-3")), ()))
    head, _, *rows = table_lines(text, "llm-jp-eval v1.3.1")
    assert [cell.strip("| ") for cell in head] == ["model", *CARD]
    found = {row[0].strip("| ").split("]")[0].strip("["): [c.strip("| ") for c in row[1:]] for row in rows}
    assert found["llm-jp-3-1.8b"] == [f"{v:.4f}" for v in load_cards()["llm-jp-3-1.8b"].columns.values()]
    head, _, *rows = table_lines(text, "Japanese MT-Bench")
    assert [cell.strip("| ") for cell in head] == ["model", *MT_CARD]
    first = [cell.strip("| ") for cell in rows[0]]
    assert first[1:] == ["6.47", "3.15", "7.05", "9.15", "3.75", "5.40", "8.30", "7.50", "7.45"]
    # Each table has its own order: best first.
    averages = [float(row[1]) for row in rows]
    assert averages == sorted(averages, reverse=True)


def test_each_table_is_in_the_order_of_its_own_figures() -> None:
    one = BoardRow("one", Origin.run, cells={"AVG": Figure(0.9)}, mt_bench={"average": Figure(2.0)})
    two = BoardRow("two", Origin.run, cells={"AVG": Figure(0.1)}, mt_bench={"average": Figure(8.0)})
    jaster, bench = (table.rows([one, two]) for table in TABLES[:2])
    assert [row.model for row in jaster] == ["one", "two"]
    assert [row.model for row in bench] == ["two", "one"]


def test_pandas_and_the_csv_module_read_the_csv(world: World, tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "leaderboard.csv"
    text = csv_text(build_board([world.results], reference="llm-jp-3-1.8b").rows)
    path.write_bytes(text.encode("utf-8"))
    frame = pd.read_csv(path)
    assert list(frame.columns[:13]) == ["model", "kind", "partial", *CARD]
    assert frame["AVG"].dtype == float and frame["partial"].dtype == bool
    assert frame.loc[frame.model == "llm-jp-3-1.8b", "AVG"].item() == 0.3767
    assert frame.loc[frame.model == "llm-jp-3-1.8b", "AVG_low"].isna().all()
    assert (frame.loc[frame.kind == "run", "AVG_low"] <= frame.loc[frame.kind == "run", "AVG"]).all()
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert rows[0]["model"] == "strong-モデル" and len(rows[0]["AVG"]) == 6


def test_a_model_called_like_a_formula_stays_text() -> None:
    row = BoardRow(model="=HYPERLINK(1)", kind=Origin.run, cells={"AVG": Figure(0.5)})
    assert "\r\n'=HYPERLINK(1),run" in csv_text([row])


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", " =1", "\t=1"])
def test_no_text_is_a_formula(text: str) -> None:
    assert spreadsheet_text(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-5", "+0.5", "-1,000", "答え=1", "", "neutral"])
def test_numbers_and_other_texts_stay_as_they_are(text: str) -> None:
    assert spreadsheet_text(text) == text


def test_names_cannot_break_the_markdown() -> None:
    row = BoardRow(model="a|b<script>*x*\n[y](z)", kind=Origin.run, cells={"AVG": Figure(0.5)})
    line = markdown(Board((row,), ())).splitlines()[6]
    assert line.startswith("| a\\|b&lt;script&gt;\\*x\\* \\[y\\](z) | 0.5000 |")
    assert escaped("-a&lt;b ~~x~~-c") == "\\-a&amp;lt;b \\~\\~x\\~\\~-c"


def test_the_only_rules_of_a_table_are_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    bench = {"average": Figure(5.0)}
    one = BoardRow("one", Origin.run, mt_bench=bench, mt_bench_rules="fastchat, gpt-4")
    alone, both = (
        Board((one,), ()),
        Board((one, replace(one, model="two", mt_bench_rules="stability, o")), ()),
    )
    assert "\n- fastchat, gpt-4\n" in markdown(alone)
    assert "\n- <sup>2</sup> stability, o" in markdown(both) and "one <sup>1</sup>" in markdown(both)
    _print_board(alone, Console(width=80))
    _print_board(both, Console(width=80))
    said = capsys.readouterr().out
    assert "\n  fastchat, gpt-4\n" in said and "[2] stability, o" in said
    # Where there is no figure there is nothing to mark.
    assert _cell(Figure(None, partial=True), "", 2) == ""


def test_marks() -> None:
    best, near, far = (
        Figure(0.8, ci95=(0.7, 0.9)),
        Figure(0.75, ci95=(0.6, 0.85)),
        Figure(0.5, ci95=(0.4, 0.6)),
    )
    one = ["p"] * 3
    assert marks([near, best, far], one) == ["tie", "best", ""]
    assert marks([near, best, far], ["p", "q", "q"]) == ["", "best", ""]
    assert marks([Figure(0.9), best, near], one) == ["", "best", "tie"], "no interval, no mark"
    assert marks([Figure(0.9, ci95=(0.8, 1.0), partial=True), best, near], one) == ["", "best", "tie"]
    assert marks([best, best, far], one) == ["best", "best", ""]
    # Scores that are all equal have no interval, and still are the best or not.
    all_right, all_wrong = Figure(1.0, 100), Figure(0.0, 100)
    assert marks([all_right, best, far], one) == ["best", "", ""]
    assert marks([best, near, all_wrong], one) == ["best", "tie", ""]
    assert marks([Figure(0.3, 4), all_wrong, Figure(0.1, 4)], one) == ["best", "tie", "tie"]
    assert marks([best, Figure(None), Figure(None)], one) == ["", "", ""]


def own_row(model: str, metrics: list[str], data: str = "a" * 64, shift: float = 0.0) -> BoardRow:
    """A row whose only figures are of a task of one's own."""
    (task,) = answers(["jamp"], n=8, wrong=shift)
    spec = replace(
        task.spec, name="mine", category=None, counts=None, metrics=metrics, data=DataSpec("x.csv")
    )
    run = {"model": model, "datasets": {"mine": Task(spec, (), (), {"data": data}).facts}}
    results = summarise(score([replace(task, spec=spec)]), record_of(Config()), run=run)
    return jaster_row(FinishedRun(Path(model), results, 0.0))


def test_a_column_of_own_tasks_has_what_was_measured_alike() -> None:
    one, two = own_row("one", ["char_f1"]), own_row("two", ["char_f1"], shift=1.0)
    assert tables_of([one, two])[-1].columns == ("mine",)
    # Of a metric that counts and could not be computed another takes no place.
    lacking = own_row("lacking", ["comet_wmt22", "bleu_ja"])
    assert "mine_bleu_ja" in lacking.datasets and tables_of([lacking]) == list(TABLES)
    assert tables_of([one, lacking])[-1].rows([one, lacking]) == [one]
    for other, metric in (
        (own_row("other", ["bleu_ja"]), "bleu_ja"),
        (own_row("o", ["char_f1"], "b"), "char_f1"),
    ):
        rows = [one, other, two]
        table = tables_of(rows)[-1]
        assert len(table.columns) == 2 and all(name.startswith("mine (") for name in table.columns)
        by_row = [list(table.cells(row)) for row in rows]
        assert by_row[0] == by_row[2] != by_row[1] and by_row[1][0].startswith(f"mine ({metric}, ")
        assert table.cells(other)[by_row[1][0]] is other.datasets[f"mine_{metric}"]
        assert f"task_{by_row[1][0]}" in csv_text(rows).replace('"', "")


def test_the_command_writes_all_three(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leaderboard", str(world.results), f"out={tmp_path}", "--reference", "llm-jp-3"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "leaderboard.csv",
        "leaderboard.md",
        "leaderboard.html",
    }
    said = capsys.readouterr().out
    assert "strong-モデル" in said and "llm-jp-3-13b" in said and "(published)" in said
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "| strong-モデル <sup>1</sup> | **0." in text
    assert "published by llm-jp, not measured here" in text


def test_the_model_card_block_is_what_the_hub_reads(world: World) -> None:
    from huggingface_hub import ModelCard, ModelCardData
    from huggingface_hub.repocard_data import model_index_to_eval_results

    row = build_board([world.results]).rows[0]
    text = model_card(row)
    metadata = yaml.safe_load(text.split("---")[1])
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "strong-モデル"
    assert {result.metric_type: result.metric_value for result in results} == {
        column: round(cell.value or 0, 4) for column, cell in row.cells.items()
    }
    assert (
        ModelCardData(model_name=name, eval_results=results).to_yaml().strip() == text.split("---")[1].strip()
    )
    assert [result.metric_type for result in results] == CARD
    assert "### llm-jp-eval v1.3.1" in text and "| AVG | EL |" in text
    # The hub's own reader of a whole README.
    card = ModelCard(text, ignore_metadata_errors=False)
    assert card.data.model_name == "strong-モデル" and card.data.eval_results == results
    assert card.text.strip().startswith("<!-- evalkit: begin -->")


def test_partial_figures_are_no_metadata() -> None:
    row = BoardRow(
        "m", Origin.run, cells={"NLI": Figure(0.5, 50, ci95=(0.4, 0.6), partial=True)}, reasons=("limit=50",)
    )
    text = model_card(row)
    assert "0.5000*" in text and "model-index" not in text


def test_unknown_formats_are_named(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", str(world.results), "--format", "markdwn"]) == 2
    assert "markdown" in capsys.readouterr().err


def test_the_embedded_library_is_the_pinned_one() -> None:
    assets = ROOT / "evalkit" / "leaderboard" / "assets"
    digest = hashlib.sha256((assets / "chart.umd.min.js").read_bytes()).hexdigest()
    assert digest in (assets / "NOTICE.md").read_text(encoding="utf-8")
