"""The published figures (results/reference/*.csv), a run's figures in the same columns, the card's section.

The section has the heading, sentences and column names of llm-jp/llm-jp-3-3.7b-instruct at 1f5a6d0.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.core.assets import REFERENCE
from evalkit.core.errors import InputError, foreign
from evalkit.core.files import read_json_object
from evalkit.core.reasons import with_sentences
from evalkit.core.text import did_you_mean
from evalkit.leaderboard.rows import (
    HUB,
    JASTER_DIGITS,
    MT_BENCH_DIGITS,
    NO_FIGURE,
    TABLES,
    BoardRow,
    Origin,
    Table,
    escaped,
)
from evalkit.leaderboard.runs import JudgedRun
from evalkit.mtbench.folder import logged_label
from evalkit.mtbench.model_tables import scope_figures, with_own_intervals
from evalkit.records.results import (
    AVERAGE,
    PROTOCOL_LIMIT,
    PROTOCOL_SPLIT,
    WITHOUT_MT,
    Figure,
    Results,
    read_results,
)
from evalkit.scoring.categories import with_intervals

JASTER_TABLE = "llm-jp-eval v1.3.1"
MT_BENCH_TABLE = "Japanese MT-Bench gpt-4-0613"
# The decimals of each published table.
DIGITS = {JASTER_TABLE: JASTER_DIGITS, MT_BENCH_TABLE: MT_BENCH_DIGITS}
# How the card's MT-Bench table was made.
CARD_PRESET, CARD_JUDGE, CARD_JUDGE_MODEL = "llm-jp-3-card", "gpt-4", "gpt-4-0613"
CARD_PARAMETERS = {"temperature": 0, "n": 1, "max_tokens": 2048}
_CODES = "https://github.com/llm-jp/llm-leaderboard/tree/main"
PUBLISHED_RULES = "published by llm-jp, not measured here"


@dataclass(frozen=True)
class Card:
    """One model's row of a model card: `columns` maps AVG and each category to the figure."""

    model: str
    columns: dict[str, float]


def load_cards(table: str = JASTER_TABLE) -> dict[str, Card]:
    """The rows of a published table by model name.

    Raises:
        InputError: the file is missing (it is in the folder that runs are written to).
    """
    path = REFERENCE / "llm_jp_3_card.csv"
    if not path.is_file():
        raise InputError(
            "the published figures are gone", where=path, fix="git checkout -- results/reference"
        )
    columns: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["table"] == table:
                column = AVERAGE if row["column"] == "average" else row["column"]
                columns.setdefault(row["model"], {})[column] = float(row["value"])
    return {model: Card(model, figures) for model, figures in columns.items()}


def has_row(model: object) -> bool:
    """Whether the card has a row for a model; False where the published figures are missing."""
    try:
        return model in load_cards()
    except InputError:
        return False


def published_rows(reference: str) -> list[BoardRow]:
    """The published rows of the models whose names start with `reference`.

    Raises:
        InputError: there is none.
    """
    jaster, bench = load_cards(JASTER_TABLE), load_cards(MT_BENCH_TABLE)
    names = [name for name in dict.fromkeys([*jaster, *bench]) if name.startswith(reference)]
    if not names:
        raise InputError(
            f"no published model is called {reference}{did_you_mean(reference, [*jaster, 'llm-jp-3'])}",
            where="option --reference",
            fix="--reference llm-jp-3",
        )
    return [_published_row(name, _figures(jaster, name), _figures(bench, name)) for name in names]


def card_section(rows: Sequence[BoardRow], siblings: Sequence[BoardRow] = ()) -> str:
    """The evaluation section of a model card in Markdown, as the llm-jp-3 card has it.

    Args:
        rows: those of a board that were measured here, one set of rules in each table.
        siblings: published rows, shown where `rows` have figures; one of the same model is left out.

    Raises:
        InputError: no figure is in the card's tables, or rows of one table have different rules.
    """
    parts = ["## Evaluation"]
    for table, about in ((TABLES[0], _jaster_about), (TABLES[1], _mt_bench_about)):
        own = [row for row in rows if table.cells(row)]
        if not own:
            continue
        if len(found := sorted({str(table.rules(row)) for row in own})) > 1:
            raise InputError(
                "the card has one protocol in a table, and these runs have several: " + "; ".join(found),
                where=table.title,
                fix="run= one of them",
            )
        shown = {row.model: row for row in siblings if table.cells(row)} | {row.model: row for row in own}
        columns = [name for name in table.columns if name != WITHOUT_MT]
        names = ["average" if name == AVERAGE else name for name in columns]
        partial = any(cell.partial for row in own for cell in table.cells(row).values())
        notes = dict.fromkeys(reason for row in own for reason in row.reasons) if partial else {}
        lines = [f"| {' | '.join(['Model name', *names])} |", f"| :--- |{' ---: |' * len(names)}"]
        lines += [
            f"| {_linked(row)} | {' | '.join(_card_cells(row, table, columns))} |" for row in shown.values()
        ]
        parts += [*about(own[0], len(shown) > len(own)), "\n".join(lines)]
        parts += [f"\\*: partial, {'; '.join(notes)}"] if partial else []
    if len(parts) == 1:
        raise InputError("the card has no table for these runs", fix="a run of suite=jaster or mt-bench-ja")
    return "\n\n".join(parts) + "\n"


def _jaster_about(row: BoardRow, beside: bool) -> list[str]:
    options = row.run.results.protocol.options if row.run else {}
    limit, split = options.get("limit", PROTOCOL_LIMIT), options.get("split", PROTOCOL_SPLIT)
    usual = f"{PROTOCOL_LIMIT} examples from the {PROTOCOL_SPLIT} split"
    given = f"{limit if limit > 0 else 'all'} examples from the {split} split"
    other = [f"Published rows are of {usual}."] if beside and given != usual else []
    return ["### llm-jp-eval (v1.3.1)", " ".join([f"We evaluated the models using {given}.", *other])]


def _mt_bench_about(row: BoardRow, beside: bool) -> list[str]:
    heading = "### Japanese MT Bench"
    run = row.mt_bench_run
    if run is None or not (differing := mt_bench_deviations(run)):
        how = f"We evaluated the models using `{CARD_JUDGE_MODEL}`."
        return [heading, f"{how} Please see the [codes]({_CODES}) for details."]
    other = [f"Published rows were judged by `{CARD_JUDGE_MODEL}`."] if beside else []
    shown = {"preset": run.content["preset"]["name"]} | differing
    judge = shown.pop("judge", CARD_JUDGE)
    how = ", ".join(f"{name} `{value}`" for name, value in shown.items())
    return [heading, " ".join([f"We evaluated the models using `{judge}` ({how}).", *other])]


def mt_bench_deviations(run: JudgedRun) -> dict[str, Any]:
    """The options by which a model's MT-Bench table is not made as the card's."""
    content, table = run.content, run.table
    preset, judge, repeats = content["preset"], table["judge"], table.get("repeats", 1)
    found: dict[str, Any] = run.deviations
    if preset["name"] != CARD_PRESET:
        found["preset"] = preset["name"]
    # A replayed log of the card's judge is that judge.
    if judge not in (CARD_JUDGE, logged_label(CARD_JUDGE)):
        found["judge"] = judge
    if own := preset.get("prompts"):
        found["judge.prompts"] = own["file"]
    if repeats != 1:
        found["judge.repeats"] = repeats
    answers = content.get("answers", {}).get(run.model, {}).get("preset")
    if answers not in (None, preset["name"]):
        found["answers"] = answers
    # A log does not say how its judge was asked.
    asked = {"n": 1} | content.get("judge", {}).get("parameters", CARD_PARAMETERS)
    # New models take the same limit by another name.
    asked["max_tokens"] = asked.pop("max_completion_tokens", asked.get("max_tokens"))
    for key in sorted(CARD_PARAMETERS | asked):
        if asked.get(key) != CARD_PARAMETERS.get(key):
            found[f"judge.parameters.{key}"] = asked.get(key)
    return found


def _card_cells(row: BoardRow, table: Table, columns: Sequence[str]) -> list[str]:
    cells = [table.cells(row).get(name, NO_FIGURE) for name in columns]
    return [
        "" if cell.value is None else f"{cell.value:.{table.digits}f}" + ("*" if cell.partial else "")
        for cell in cells
    ]


def _linked(row: BoardRow) -> str:
    name = escaped(row.model)
    return f"[{name}]({row.url.split('/tree/')[0]})" if row.url else name


def _figures(cards: Mapping[str, Card], name: str) -> dict[str, Figure]:
    return {column: Figure(value) for column, value in cards[name].columns.items()} if name in cards else {}


def _published_row(name: str, jaster: Mapping[str, Figure], bench: Mapping[str, Figure]) -> BoardRow:
    return BoardRow(
        model=name,
        kind=Origin.published,
        url=f"{HUB}llm-jp/{name}",
        cells=jaster,
        mt_bench={"average" if column == AVERAGE else column: figure for column, figure in bench.items()},
        rules=PUBLISHED_RULES,
        mt_bench_rules=PUBLISHED_RULES if bench else "",
    )


@dataclass(frozen=True)
class RunTable:
    """One model's figures in a run, under the card's column names.

    `table` is the card's table; `partial` names the columns that are not complete, `reasons` say
    why; `deviations` are the options that differ from those behind the card.
    """

    model: str | None
    table: str
    cells: Mapping[str, Figure]
    partial: frozenset[str] = frozenset()
    reasons: Sequence[str] = ()
    deviations: Mapping[str, Any] = field(default_factory=dict)


def read_run_tables(path: Path) -> list[RunTable]:
    """The tables of a results file: one of llm-jp-eval, or one per model of an MT-Bench run.

    Raises:
        InputError: no results file, or MT-Bench answers without judgments.
    """
    content = _mt_bench_content(path)
    if content is None:
        return [_jaster_table(with_intervals(read_results(path), path.parent))]
    with foreign("the results file does not fit its schema", where=path):
        if not content["tables"]:
            fix = "evalkit judge run=DIR"
            raise InputError("the answers are not judged yet", where=path, fix=fix)
        content = with_own_intervals(with_sentences(content, content.get("sentences")), path.parent)
        return [_mt_bench_table(JudgedRun(path.parent, model, content, 0.0)) for model in content["tables"]]


def contains(figure: Figure, published: float, digits: int) -> bool | None:
    """Whether a published value, known to half a unit of its last digit, lies in a figure's interval.

    None where there is no interval.
    """
    if figure.ci95 is None:
        return None
    (low, high), rounding = figure.ci95, 0.5 * 10.0**-digits
    return low - rounding <= published <= high + rounding


def _jaster_table(results: Results) -> RunTable:
    partial = results.partial
    return RunTable(
        model=results.run.get("model"),
        table=JASTER_TABLE,
        cells={**results.average, **results.categories},
        partial=frozenset(partial.categories),
        reasons=(partial.reasons or ["a category is incomplete"]) if partial.partial else (),
        deviations=results.protocol.deviations,
    )


def _mt_bench_table(run: JudgedRun) -> RunTable:
    figures = scope_figures(run.table)
    return RunTable(
        model=run.model,
        table=MT_BENCH_TABLE,
        cells={AVERAGE if name == "average" else name: figure for name, figure in figures.items()},
        reasons=run.reasons,
        deviations=mt_bench_deviations(run),
    )


def _mt_bench_content(path: Path) -> dict[str, Any] | None:
    """The content of an MT-Bench results file; None for any other file, which `read_results` judges."""
    try:
        content = read_json_object(path)
    except InputError:
        return None
    return content if content.get("kind") == "mt_bench" else None
