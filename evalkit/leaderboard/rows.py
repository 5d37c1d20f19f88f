"""The runs of a leaderboard, and its rows: one model under one protocol."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from evalkit.core.durable import read_log
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.metrics import METRICS
from evalkit.metrics.base import CorrelationMetric
from evalkit.records.results import AVERAGE, Figure, Results, is_number
from evalkit.records.run_folder import RunDirectory, SampleRecord
from evalkit.scoring.categories import missing_dataset

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
HUB = "https://huggingface.co/"
# Options that change no sample's score: how many samples, how many resamples, a further metric.
AMOUNT_OPTIONS = ("limit", "metrics.resamples", "metrics.bert_score")


class Kind(Enum):
    """What a row's figures are: measured here, published, or read from llm-jp-eval's own result."""

    run = "run"
    published = "published"
    llm_jp_eval = "llm-jp-eval"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its results, and when results.json was written (seconds).

    The scores and records of its samples are read on demand, each file once.
    """

    folder: Path
    results: Results
    finished: float
    _scores: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, repr=False, compare=False)
    _records: dict[str, dict[str, SampleRecord]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def model(self) -> str:
        """The model's name, else that of the folder."""
        return str(self.results.run.get("model") or self.folder.name)

    def scores(self, dataset: str) -> Mapping[str, Mapping[str, Any]]:
        """The lines of scores/<dataset>.jsonl by sample id.

        Raises:
            InputError: lines are damaged.
        """
        if dataset not in self._scores:
            path = RunDirectory(self.folder).scores_path(dataset)
            self._scores[dataset], damaged = read_log(path)
            if damaged:
                raise InputError(
                    f"{damaged} lines of the scores are damaged",
                    where=path,
                    fix=f"python -m evalkit score run={self.folder}",
                )
        return self._scores[dataset]

    def numbers(self, dataset: str, metric: str, ids: Sequence[str]) -> list[float]:
        """One number per sample: its score, or what a correlation reads in its prediction."""
        rows, kind = self.scores(dataset), METRICS.get(metric)
        if isinstance(kind, CorrelationMetric):
            return [kind.parse(str(rows[key]["prediction"])) for key in ids]
        values = [rows[key]["values"] for key in ids]
        return [float(value[metric]) for value in values if isinstance(value, dict)]

    def records(self, dataset: str) -> Mapping[str, SampleRecord]:
        """The kept records by sample id; none where the completions came from elsewhere."""
        if dataset not in self._records:
            self._records[dataset] = RunDirectory(self.folder).records(dataset)
        return self._records[dataset]


@dataclass(frozen=True)
class MtBenchRun:
    """One model's part of a judged MT-Bench run; `content` is the whole results.json.

    `mark` follows the preset's name where different presets have that name.
    """

    folder: Path
    model: str
    content: Mapping[str, Any]
    finished: float
    mark: str = ""

    def check(self) -> None:
        """Checks every field that a leaderboard reads.

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
        """The hash of the whole preset; empty where the results lack it."""
        return cast(str, self.content["preset"].get("sha256", ""))

    @property
    def table(self) -> Mapping[str, Any]:
        """The model's table (evalkit.mtbench.tables.model_tables.ModelTable as JSON)."""
        return cast(Mapping[str, Any], self.content["tables"][self.model])

    @property
    def reasons(self) -> list[str]:
        """Why the table is partial; empty when it is not."""
        return list(self.content["partial"]["reasons"])

    @property
    def rules(self) -> str:
        """Preset, judge and how repeated judgments become one: tables are comparable when these are equal."""
        repeats = int(self.table.get("repeats", 1))
        repeated = f", {self.table['reduce']} of {repeats} judgments" if repeats > 1 else ""
        return f"{self.content['preset']['name']}{self.mark}, {self.table['judge']}{repeated}"


@dataclass(frozen=True)
class Row:
    """One row: `cells` and `mt_bench` by the card's columns; columns without a figure are absent.

    `rules` names the protocol and every deviation: rows are comparable when theirs are equal. `remarks`
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

    `prefix` distinguishes its columns where a file has both tables in one line per row.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    digits: int
    prefix: str
    cells: Callable[[Row], Mapping[str, Figure]]
    rules: Callable[[Row], str]

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that have figures in this table, best overall figure first."""
        shown = [row for row in rows if self.cells(row)]
        return sorted(shown, key=lambda row: -(self.cells(row).get(self.columns[0], NO_FIGURE).value or 0.0))

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


def rules_of(results: Results) -> str:
    """The protocol's name with every deviation that says how rather than how much, and other data."""
    deviations = sorted(results.protocol.deviations.items())
    listed = [f"{key}={value}" for key, value in deviations if key not in AMOUNT_OPTIONS]
    rules = ", ".join([results.protocol.name, *listed])
    return (
        Reason("{rules}, other data than published", rules=rules) if results.run.get("other_data") else rules
    )


def measured(rows: Sequence[Row]) -> list[Row]:
    """The rows that were measured here.

    Raises:
        InputError: there is none.
    """
    own = [row for row in rows if row.kind is Kind.run]
    if not own:
        raise InputError("no row was measured here: published and imported rows are not exported")
    return own


def jaster_row(run: Run, remarks: Iterable[str] = ()) -> Row:
    """The row of one run."""
    results = run.results
    whole = bool(whole_reasons(results))
    cells = {
        name: replace(value, partial=whole or name in results.partial.categories)
        for name, value in results.categories.items()
    }
    average = results.average.get(AVERAGE)
    if average is not None and average.value is not None:
        cells[AVERAGE] = replace(average, partial=whole)
    return Row(
        model=run.model,
        kind=Kind.run,
        url=model_url(results.run.get("identity", {}).get("model", {})),
        cells=cells,
        datasets={key: replace(value, partial=whole) for key, value in results.scores.items()},
        rules=rules_of(results),
        reasons=partial_reasons(results),
        remarks=tuple(remarks),
        run=run,
    )


def partial_reasons(results: Results) -> tuple[str, ...]:
    """Why a run is partial, categories included; empty when it is not."""
    if not results.partial.partial:
        return ()
    inner = [
        Reason("{name}: {reason}", name=category, reason=reason)
        for category, reasons in results.partial.categories.items()
        for reason in reasons
        if reason not in results.partial.reasons
    ]
    return tuple([*results.partial.reasons, *inner] or ["a category is incomplete"])


def whole_reasons(results: Results) -> list[str]:
    """The reasons that concern every figure, not one dataset."""
    of_one = {missing_dataset(name, why) for name, why in results.partial.datasets.items()}
    of_one |= {entry.sentence for entry in results.missing_metrics}
    return [reason for reason in results.partial.reasons if reason not in of_one]


def model_url(identity: Any) -> str | None:
    """The hub page of a model by its identity, where it is known."""
    if isinstance(identity, dict) and isinstance(identity.get("hub"), str):
        commit = identity.get("commit")
        path = identity["hub"] + (f"/tree/{commit}" if commit else "")
        return HUB + quote(path)
    return None
