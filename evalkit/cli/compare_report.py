"""Comparisons and checkpoints in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.core.secrets import printable
from evalkit.core.words import shown, t
from evalkit.leaderboard.compare import Compared, Comparison, Flip
from evalkit.leaderboard.comparison_report import sentences
from evalkit.leaderboard.rows import JASTER_DIGITS, NO_FIGURE
from evalkit.leaderboard.steps import Checkpoint, columns_of
from evalkit.leaderboard.tables import PARTIAL, rounded

# How many flipped samples of a dataset are shown, and how many characters of an answer.
_SHOWN = 3
_WIDTH = 40
# From this console width on there is room for four digits.
_WIDE = 90
_BARS = "▁▂▃▄▅▆▇█"
_STEP_WIDTH = 9
_ARROWS = {"a": "↑", "b": "↓"}


def print_comparison(comparison: Comparison, console: Console, *, long: bool = False) -> None:
    """Prints the sentences, the table and flipped samples (all of them with `long`)."""
    a, b = escape(comparison.a.model), escape(comparison.b.model)
    console.print(f"[bold]{a}[/] - [bold]{b}[/]", highlight=False)
    for sentence in sentences(comparison):
        console.print(f"  {escape(sentence)}", soft_wrap=True, highlight=False)
    console.print(_comparison_table(comparison, digits=4 if console.width >= _WIDE else 3))
    for remark in comparison.remarks:
        console.print(f"  {escape(shown(remark))}", soft_wrap=True, highlight=False)
    _print_flips(comparison, console, long)


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
    console.print(t("flipped samples (A's score, B's score, A's answer, B's answer):"), highlight=False)
    by_dataset: dict[str, list[Flip]] = {}
    for flip in comparison.flips:
        by_dataset.setdefault(flip.dataset, []).append(flip)
    for flips in by_dataset.values():
        for flip in flips if long else flips[:_SHOWN]:
            answers = " | ".join(_short(text) for text in (flip.prediction_a, flip.prediction_b))
            line = f"  {flip.id}  {flip.a:.3g} {flip.b:.3g}  {answers}"
            console.print(escape(line), soft_wrap=True, highlight=False)
        if not long and len(flips) > _SHOWN:
            more = t("and {n} more (--long, or out=DIR for a file)", n=len(flips) - _SHOWN)
            console.print(f"  {more}", style="dim", highlight=False)


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
    console.print(
        t("↑ ↓: better or worse than the step before (paired, Holm's p below 0.05)"), highlight=False
    )


def _step_cell(point: Checkpoint, column: str, digits: int) -> str:
    cell = point.cells.get(column, NO_FIGURE)
    arrow = ""
    if point.gain is not None:
        lines = [*point.gain.categories, *([point.gain.average] if point.gain.average else [])]
        arrow = next((_ARROWS.get(line.verdict, "") for line in lines if line.name == column), "")
    return rounded(cell.value, digits) + (PARTIAL if cell.partial else "") + arrow


def _plot(points: Sequence[Checkpoint], column: str) -> str:
    values = [cell.value for point in points if (cell := point.cells.get(column)) and cell.value is not None]
    if len(values) < 2 or len(values) != len(points):
        return ""
    low, high = min(values), max(values)
    scale = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / scale * (len(_BARS) - 1))] for value in values)
