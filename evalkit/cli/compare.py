"""evalkit compare A B [C ...] [--partial] [--across-rules] [--long] [--steps]

Says which of two runs is better, and where: differences per dataset, category and average with
paired 95 % intervals and p-values, and the samples that flipped. Every further run is compared with
the first. Runs whose data, prompts or options differ are refused.

    evalkit compare results/A/jaster/<run> results/B/jaster/<run>
    evalkit compare A B --partial          only what both have
    evalkit compare A B --across-rules     although options differ: chat, the rule for thoughts,
                                                     sampling; each difference is named
    evalkit compare A B out=DIR            also comparison.json, flipped.csv, comparison.html
    evalkit compare results/my-model-step-* --steps    checkpoints, step by step; out=DIR plots them

A run is named by its folder, or by any folder that holds just one finished run.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.cli.command import path_of
from evalkit.cli.leaderboard import page_options
from evalkit.cli.printing import print_line, report_console
from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.core.secrets import printable
from evalkit.core.words import shown, t
from evalkit.leaderboard.collect import find_run
from evalkit.leaderboard.compare import Compared, Comparison, compare
from evalkit.leaderboard.comparison_report import sentences
from evalkit.leaderboard.publish import write_comparisons, write_steps
from evalkit.leaderboard.rows import JASTER_DIGITS, NO_FIGURE
from evalkit.leaderboard.steps import Checkpoint, columns_of, trace
from evalkit.leaderboard.tables import PARTIAL, rounded

OPTIONS = ("partial", "across_rules", "long", "steps", "out", "metrics.resamples", "lang")


# How many characters of an answer are shown.
_WIDTH = 40
# From this console width on there is room for four digits.
_WIDE = 90
_BARS = "▁▂▃▄▅▆▇█"
_STEP_WIDTH = 9
_ARROWS = {"a": "↑", "b": "↓"}


def run(config: Config) -> int:
    """Prints the comparison of the runs that `config.folders` names; exit code 0 whatever it says."""
    if len(config.folders) < 2:
        raise InputError("which runs? Two or more are needed", fix="compare results/A/... results/B/...")
    runs = [find_run(Path(folder).expanduser()) for folder in config.folders]
    console, out = report_console(), path_of(config.out)
    partial, across_rules = config.partial, config.across_rules
    resamples = config.metrics.resamples
    written: Sequence[Path] = []
    if config.steps:
        points = trace(runs, partial=partial, across_rules=across_rules, resamples=resamples)
        written = write_steps(out, points, page_options(config)) if out else []
        print_steps(points, console)
    else:
        first, *others = runs
        comparisons = [
            compare(first, other, partial=partial, across_rules=across_rules, resamples=resamples)
            for other in others
        ]
        written = write_comparisons(out, comparisons, page_options(config)) if out else []
        for comparison in comparisons:
            _print_comparison(comparison, console, long=config.long)
    for path in written:
        print_line(console, t("written: {path}", path=path))
    return 0


def _print_comparison(comparison: Comparison, console: Console, *, long: bool) -> None:
    """Prints the table, flipped samples with `long`, and last the result in sentences."""
    a, b = escape(comparison.a.model), escape(comparison.b.model)
    console.print(f"[bold]{a}[/] - [bold]{b}[/]", highlight=False)
    console.print(_comparison_table(comparison, digits=4 if console.width >= _WIDE else 3))
    _print_flips(comparison, console, long)
    for remark in comparison.remarks:
        print_line(console, f"  {shown(remark)}")
    for sentence in sentences(comparison):
        print_line(console, f"  {sentence}")


def _comparison_table(comparison: Comparison, digits: int) -> Table:
    table = Table(box=None, header_style="bold underline", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for header in ("A", "B", t("difference")):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column(t("95 % interval"), no_wrap=True)
    for header in ("p", "Holm", t("flipped")):
        table.add_column(header, justify="right", no_wrap=True)
    average = [comparison.average] if comparison.average else []
    for part in (comparison.datasets, comparison.categories, average):
        for line in part:
            table.add_row(*_cells(line, digits), style="bold" if line.verdict in ("a", "b") else None)
    return table


def _cells(line: Compared, digits: int) -> tuple[str, ...]:
    interval = f"{line.ci95[0]:+.{digits}f} {line.ci95[1]:+.{digits}f}" if line.ci95 else "–"
    return (
        line.name,
        f"{line.a:.{digits}f}",
        f"{line.b:.{digits}f}",
        f"{line.difference:+.{digits}f}",
        interval,
        _p_text(line.p),
        _p_text(line.p_holm) if line.kind != "average" else "",
        f"{line.flips}/{line.n}",
    )


def _print_flips(comparison: Comparison, console: Console, long: bool) -> None:
    if not comparison.flips:
        console.print(f"  {t('no sample is scored differently')}", highlight=False)
        return
    if not long:
        text = "{n} samples are scored differently (--long shows them, out=DIR writes them)"
        console.print(f"  {t(text, n=len(comparison.flips))}", highlight=False)
        return
    console.print(t("flipped samples (A's score, B's score, A's answer, B's answer):"), highlight=False)
    for flip in comparison.flips:
        answers = " | ".join(_short(text) for text in (flip.prediction_a, flip.prediction_b))
        print_line(console, f"  {flip.id}  {flip.a:.3g} {flip.b:.3g}  {answers}")


def _short(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def _p_text(p: float | None) -> str:
    """A p-value with three digits at most."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def print_steps(points: Sequence[Checkpoint], console: Console) -> None:
    """Prints a line per step; an arrow marks a gain or loss against the step before that is certain."""
    console.print(f"[bold]{escape(points[0].series)}[/]", highlight=False)
    columns = columns_of(points)
    fits = console.width >= _STEP_WIDTH + len(columns) * (JASTER_DIGITS + 5)
    digits = JASTER_DIGITS if fits else 3
    table = Table(box=None, header_style="bold underline", padding=(0, 1, 0, 0))
    table.add_column(t("step"), justify="right")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for point in points:
        cells = [_step_cell(point, column, digits) for column in columns]
        table.add_row(str(point.step), *cells)
    table.add_row("", *(_plot(points, column) for column in columns), style="dim")
    console.print(table)
    if any(point.gains.keys() & {*columns} for point in points):
        text = "↑ ↓: better or worse than the step before (paired, Holm's p below 0.05)"
        console.print(t(text), highlight=False)


def _step_cell(point: Checkpoint, column: str, digits: int) -> str:
    cell = point.cells.get(column, NO_FIGURE)
    arrow = _ARROWS.get(point.gains[column].verdict, "") if column in point.gains else ""
    return rounded(cell.value, digits) + (PARTIAL if cell.partial else "") + arrow


def _plot(points: Sequence[Checkpoint], column: str) -> str:
    values = [cell.value for point in points if (cell := point.cells.get(column)) and cell.value is not None]
    if len(values) < 2 or len(values) != len(points):
        return ""
    low, high = min(values), max(values)
    scale = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / scale * (len(_BARS) - 1))] for value in values)
