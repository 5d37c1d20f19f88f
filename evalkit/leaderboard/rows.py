"""The rows of a leaderboard, one model under one protocol each, and the columns of the tables."""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any
from urllib.parse import quote

from evalkit.core.errors import InputError
from evalkit.leaderboard.runs import (
    FinishedRun,
    JudgedRun,
    contested,
    own_task_facts,
    shipped,
    short_hash,
)
from evalkit.records.results import AVERAGE, WITHOUT_MT, Figure
from evalkit.scoring.categories import category_members

# The order and the rounding of the tables; the first two are the model card's.
JASTER_COLUMNS = (AVERAGE, "EL", "FA", "HE", "MC", "MR", "MT", "NLI", "QA", "RC")
MT_BENCH_COLUMNS = (
    "average",
    "coding",
    "extraction",
    "humanities",
    "math",
    "reasoning",
    "roleplay",
    "stem",
    "writing",
)
PFGEN = "pfgen"
PFGEN_COLUMNS = ("score", "fluency", "truthfulness", "helpfulness")
JASTER_DIGITS = 4
MT_BENCH_DIGITS = 2
INSTRUCTIONS = "mifeval-ja"
INSTRUCTION_COLUMNS = ("instruction_strict", "prompt_strict", "instruction_loose", "prompt_loose")
NO_FIGURE = Figure(None)
HUB = "https://huggingface.co/"


class Origin(Enum):
    """Where a row's figures are from: measured here, published, or read from llm-jp-eval's own result."""

    run = "run"
    published = "published"
    llm_jp_eval = "llm-jp-eval"


@dataclass(frozen=True)
class BoardRow:
    """One row: `cells` and `mt_bench` by the card's columns; columns without a figure are absent.

    `rules` names the protocol and every deviation: rows are comparable when theirs are equal. `lasting_rules`
    do not depend on other rows. `remarks` are sentences for the reader, `reasons` say why the row is partial.
    """

    model: str
    kind: Origin
    url: str | None = None
    cells: Mapping[str, Figure] = field(default_factory=dict)
    datasets: Mapping[str, Figure] = field(default_factory=dict)
    mt_bench: Mapping[str, Figure] = field(default_factory=dict)
    rules: str = ""
    mt_bench_rules: str = ""
    lasting_rules: str = ""
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    run: FinishedRun | None = None
    mt_bench_run: JudgedRun | None = None

    @property
    def partial(self) -> bool:
        """Whether any figure covers less than the protocol requires."""
        return bool(self.reasons) or any(c.partial for c in (*self.cells.values(), *self.mt_bench.values()))

    @property
    def own_datasets(self) -> list[str]:
        """The user's own tasks."""
        return [name for name in self.run.results.datasets if name not in shipped()] if self.run else []

    def rules_of(self, datasets: Iterable[str]) -> str:
        """The rules by which these datasets were scored, where the row has them."""
        there = [name for name in datasets if self.run and name in self.run.results.datasets]
        rules = list(dict.fromkeys(self.run.leaf(name).rules for name in there)) if self.run else []
        return rules[0] if len(rules) == 1 else "; ".join(rules) or self.rules


@dataclass(frozen=True)
class Table:
    """One of the tables: its columns, its rounding, and its figures in a row.

    `prefix` distinguishes its columns in a file that has all tables in one line per row.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    digits: int
    prefix: str
    cells: Callable[[BoardRow], Mapping[str, Figure]]
    rules: Callable[[BoardRow], str]

    def rows(self, rows: Sequence[BoardRow]) -> list[BoardRow]:
        """The rows that have figures in this table, best first by the first column that has any."""
        shown = [row for row in rows if self.cells(row)]
        first = [*self.filled(shown), self.columns[0]][0]

        def place(row: BoardRow) -> tuple[bool, float]:
            value = self.cells(row).get(first, NO_FIGURE).value
            return (value is None, -(value or 0.0))

        return sorted(shown, key=place)

    def column(self, name: str, rows: Sequence[BoardRow]) -> list[Figure]:
        """One cell per row; without a value where a row has none."""
        return [self.cells(row).get(name, NO_FIGURE) for row in rows]

    def filled(self, rows: Sequence[BoardRow]) -> list[str]:
        """The columns in which any row has a figure."""
        return [n for n in self.columns if any(cell.value is not None for cell in self.column(n, rows))]


def _has_other_language(row: BoardRow) -> bool:
    """Whether the row's MT-Bench has questions that are not Japanese."""
    return row.mt_bench_run is not None and row.mt_bench_run.language != "ja"


TABLES = (
    Table(
        name="jaster",
        title="llm-jp-eval v1.3.1",
        columns=(AVERAGE, WITHOUT_MT, *JASTER_COLUMNS[1:]),
        digits=JASTER_DIGITS,
        prefix="",
        cells=lambda row: row.cells,
        rules=lambda row: row.rules,
    ),
    Table(
        name="mt",
        title="Japanese MT-Bench",
        columns=MT_BENCH_COLUMNS,
        digits=MT_BENCH_DIGITS,
        prefix="mt_bench_",
        cells=lambda row: {} if _has_other_language(row) else row.mt_bench,
        rules=lambda row: row.mt_bench_rules,
    ),
    Table(
        name="mt_en",
        title="English MT-Bench",
        columns=MT_BENCH_COLUMNS,
        digits=MT_BENCH_DIGITS,
        prefix="mt_bench_en_",
        cells=lambda row: row.mt_bench if _has_other_language(row) else {},
        rules=lambda row: row.mt_bench_rules,
    ),
    Table(
        name="instructions",
        title="M-IFEval (Japanese)",
        columns=INSTRUCTION_COLUMNS,
        digits=JASTER_DIGITS,
        prefix="mifeval_ja_",
        cells=lambda row: {
            name: row.datasets[key]
            for name in INSTRUCTION_COLUMNS
            if row.run
            and (key := f"{INSTRUCTIONS}_{row.run.leaf(INSTRUCTIONS).results.named(name)}") in row.datasets
        },
        rules=lambda row: row.rules_of([INSTRUCTIONS]),
    ),
    Table(
        name="pfgen",
        title="pfgen-bench (the ground truth scores 1.05)",
        columns=PFGEN_COLUMNS,
        digits=JASTER_DIGITS,
        prefix="pfgen_",
        cells=lambda row: {
            name: row.datasets[f"pfgen_{name}"] for name in PFGEN_COLUMNS if f"pfgen_{name}" in row.datasets
        },
        rules=lambda row: row.rules_of([PFGEN]),
    ),
)


def tables_of(rows: Sequence[BoardRow]) -> list[Table]:
    """The tables of these rows: the shipped ones, and one of own tasks where there are some."""
    figures = _own_figures(rows)
    names = tuple(sorted({name for cells in figures.values() for name in cells}))
    own = Table(
        name="own",
        title="Own tasks",
        columns=names,
        digits=JASTER_DIGITS,
        prefix="task_",
        cells=lambda row: figures.get(id(row), {}),
        rules=lambda row: row.rules_of(row.own_datasets),
    )
    return [*TABLES, own] if names else list(TABLES)


def _own_figures(rows: Sequence[BoardRow]) -> dict[int, dict[str, Figure]]:
    """The figures of own tasks by the `id` of the row, and column.

    A column has what was measured alike: where the data or the task file changed, a task has several.
    """
    found: dict[int, dict[str, Figure]] = {id(row): {} for row in rows}
    for name in {name for row in rows for name in row.own_datasets}:
        runs = [(row, row.run.leaf(name)) for row in rows if row.run and name in row.run.results.datasets]
        facts = [own_task_facts(name, run.results) for _, run in runs]
        for (row, run), apart in zip(runs, contested([name] * len(runs), facts), strict=True):
            if (metric := run.metric(name)) is not None:
                column = f"{name} ({metric}, {short_hash(apart)})" if apart else name
                found[id(row)][column] = row.datasets[f"{name}_{metric}"]
    return found


def measured(rows: Sequence[BoardRow]) -> list[BoardRow]:
    """The rows that were measured here.

    Raises:
        InputError: there is none.
    """
    own = [row for row in rows if row.kind is Origin.run]
    if not own:
        raise InputError("no row was measured here: published and imported rows are not exported")
    return own


def jaster_row(run: FinishedRun, remarks: Iterable[str] = ()) -> BoardRow:
    """The row of one run."""
    results = run.results
    members = category_members()
    whole = {
        name
        for leaf in run.leaves
        for name, datasets in members.items()
        if leaf.whole_reasons and leaf.results.datasets.keys() & {*datasets}
    }
    cells = {
        name: replace(value, partial=name in whole or name in results.partial.categories)
        for name, value in results.categories.items()
    }
    average = results.average.get(AVERAGE)
    if average is not None and average.value is not None:
        cells[AVERAGE] = replace(average, partial=bool(whole))
    if (others := results.average.get(WITHOUT_MT)) is not None:
        cells[WITHOUT_MT] = replace(others, partial=True)
    return BoardRow(
        model=run.model,
        kind=Origin.run,
        url=model_url(run.identity.get("model", {})),
        cells=cells,
        datasets={
            f"{name}_{metric}": replace(
                results.scores[f"{name}_{metric}"], partial=bool(run.leaf(name).whole_reasons)
            )
            for name, rates in results.datasets.items()
            for metric in rates.metrics
        },
        rules=run.rules,
        lasting_rules=run.lasting_rules,
        reasons=run.reasons,
        remarks=tuple(remarks),
        run=run,
    )


def model_url(identity: Any) -> str | None:
    """The hub page of a model by its identity, where it is known."""
    if isinstance(identity, dict) and isinstance(identity.get("hub"), str):
        commit = identity.get("commit")
        path = identity["hub"] + (f"/tree/{commit}" if commit else "")
        return HUB + quote(path)
    return None


def escaped(text: str) -> str:
    """A text with Markdown and HTML escaped, on one line: for a cell of a table."""
    return re.sub(
        r"[\\`*_[\]|~<>&]|^[-+#]",
        lambda found: html.escape(found[0]) if found[0] in "<>&" else f"\\{found[0]}",
        " ".join(text.split()),
    )
