"""A row of the leaderboard: one model under one protocol, and where its figures come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from evalkit.records.results import AVERAGE, Figure, Results, is_number

# The order and the rounding of the model card's two tables.
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
JASTER_DIGITS = 4
MT_BENCH_DIGITS = 2
NO_FIGURE = Figure(None)


class Kind(Enum):
    """What a row's figures are: measured here, published, or read from llm-jp-eval's own result."""

    run = "run"
    published = "published"
    llm_jp_eval = "llm-jp-eval"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its results, and when results.json was written (seconds)."""

    folder: Path
    results: Results
    finished: float

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.results.run.get("model") or self.folder.name)


@dataclass(frozen=True)
class MtBenchRun:
    """One model's part of a judged MT-Bench run; `content` is the whole results.json.

    `mark` tells presets of one name apart, where that is needed.
    """

    folder: Path
    model: str
    content: Mapping[str, Any]
    finished: float
    mark: str = ""

    def check(self) -> None:
        """Looks at everything a leaderboard reads.

        Raises:
            KeyError, TypeError, ValueError: the content does not fit its schema.
        """
        for name, scope in self.table["scopes"].items():
            low, high = scope["ci95"] or (0, 0)
            numbers = (scope["n"], low, high, 0 if scope["value"] is None else scope["value"])
            if not all(map(is_number, numbers)):
                raise TypeError(f"the numbers of {name}")
        for text in (self.rules, self.preset_sha256, *self.reasons):
            if not isinstance(text, str):
                raise TypeError("a text was expected")

    @property
    def preset_sha256(self) -> str:
        """The hash of everything the preset says; empty where the results do not tell."""
        digest: str = self.content["preset"].get("sha256", "")
        return digest

    @property
    def table(self) -> Mapping[str, Any]:
        """The model's table (evalkit.mtbench.tables.model_tables.ModelTable as JSON)."""
        table: Mapping[str, Any] = self.content["tables"][self.model]
        return table

    @property
    def reasons(self) -> list[str]:
        """Why the table is partial; empty when it is not."""
        return list(self.content["partial"]["reasons"])

    @property
    def rules(self) -> str:
        """Preset, judge and how repeated judgments become one: tables compare when these are equal."""
        repeats = int(self.table.get("repeats", 1))
        repeated = f", {self.table['reduce']} of {repeats} judgments" if repeats > 1 else ""
        return f"{self.content['preset']['name']}{self.mark}, {self.table['judge']}{repeated}"


@dataclass(frozen=True)
class Row:
    """One row: `cells` and `mt_bench` by the card's columns; columns without a figure are absent.

    `rules` names the protocol and every deviation: rows compare when theirs are equal. `remarks`
    are sentences for the reader, `reasons` say why the row is partial.
    """

    model: str
    kind: Kind
    url: str | None = None
    cells: Mapping[str, Figure] = field(default_factory=dict)
    datasets: Mapping[str, Figure] = field(default_factory=dict)
    mt_bench: Mapping[str, Figure] = field(default_factory=dict)
    rules: str = ""
    mt_bench_rules: str = ""
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    run: Run | None = None
    mt_bench_run: MtBenchRun | None = None

    @property
    def partial(self) -> bool:
        """Whether any figure covers less than the protocol asks."""
        return bool(self.reasons) or any(c.partial for c in (*self.cells.values(), *self.mt_bench.values()))


@dataclass(frozen=True)
class Table:
    """One of the card's two tables: its columns, its rounding, and where a row keeps its figures.

    `prefix` tells its columns from the other table's where both stand in one line.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    digits: int
    prefix: str
    cells: Callable[[Row], Mapping[str, Figure]]
    rules: Callable[[Row], str]

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that have figures in this table, best overall figure first, else as they came."""
        there = [row for row in rows if self.cells(row)]
        return sorted(there, key=lambda row: -(self.cells(row).get(self.columns[0], NO_FIGURE).value or 0.0))

    def column(self, name: str, rows: Sequence[Row]) -> list[Figure]:
        """One cell per row; without a value where a row has none."""
        return [self.cells(row).get(name, NO_FIGURE) for row in rows]

    def filled(self, rows: Sequence[Row]) -> list[str]:
        """The columns in which any row has a figure."""
        return [n for n in self.columns if any(cell.value is not None for cell in self.column(n, rows))]


TABLES = (
    Table(
        name="jaster",
        title="llm-jp-eval v1.3.1",
        columns=JASTER_COLUMNS,
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
        cells=lambda row: row.mt_bench,
        rules=lambda row: row.mt_bench_rules,
    ),
)


def deviations(results: Results) -> dict[str, Any]:
    """A run's deviations from its protocol, without those that say how much rather than how."""
    silent = ("limit", "metrics.resamples", "metrics.bert_score")
    return {key: value for key, value in results.protocol.deviations.items() if key not in silent}


def rules_of(results: Results) -> str:
    """The protocol's name with everything that makes a run another kind of run."""
    listed = [f"{key}={value}" for key, value in sorted(deviations(results).items())]
    if results.run.get("other_data"):
        listed.append("other data than published")
    return ", ".join([results.protocol.name, *listed])
