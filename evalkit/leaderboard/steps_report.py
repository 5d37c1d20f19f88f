"""Scores by training step: a table for the terminal and for pandas."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.core.config import Config
from evalkit.core.durable import write_text_atomic
from evalkit.core.words import t
from evalkit.leaderboard.build import jaster_row
from evalkit.leaderboard.compare import Comparison, compare
from evalkit.leaderboard.publish import write_page
from evalkit.leaderboard.rows import JASTER_COLUMNS, JASTER_DIGITS, NO_FIGURE
from evalkit.leaderboard.steps import Checkpoint
from evalkit.leaderboard.tables import PARTIAL, rounded
from evalkit.records.results import Figure

if TYPE_CHECKING:
    import pandas as pd

_BARS = "▁▂▃▄▅▆▇█"
_STEP_WIDTH = 9
_ARROWS = {"a": "↑", "b": "↓"}


@dataclass(frozen=True)
class Point:
    """A checkpoint and how it compares with the one before it (None: the first)."""

    checkpoint: Checkpoint
    gain: Comparison | None

    @property
    def cells(self) -> dict[str, Figure]:
        """Its figures by column: the card's, and those of datasets where a category is not whole."""
        row = jaster_row(self.checkpoint.run)
        return {**row.cells} if row.cells else {**row.datasets}


def trace(checkpoints: Sequence[Checkpoint], *, partial: bool, resamples: int) -> list[Point]:
    """Every checkpoint beside the one before it.

    Raises:
        InputError: two of them do not compare.
    """
    points = [Point(checkpoints[0], None)]
    for before, now in pairwise(checkpoints):
        points.append(Point(now, compare(now.run, before.run, partial=partial, resamples=resamples)))
    return points


def print_steps(points: Sequence[Point], console: Console) -> None:
    """Prints a line per step; an arrow marks a gain or loss against the step before that is certain."""
    console.print(f"[bold]{escape(points[0].checkpoint.series)}[/]", highlight=False)
    columns = _columns(points)
    fits = console.width >= _STEP_WIDTH + len(columns) * (JASTER_DIGITS + 5)
    digits = JASTER_DIGITS if fits else 3
    table = Table(box=None, header_style="bold underline", padding=(0, 1, 0, 0))
    table.add_column(t("step"), justify="right")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for point in points:
        cells = [_cell(point, column, digits) for column in columns]
        table.add_row(str(point.checkpoint.step), *cells)
    table.add_row("", *(_plot(points, column) for column in columns), style="dim")
    console.print(table)
    console.print(
        t("↑ ↓: better or worse than the step before (paired, Holm's p below 0.05)"), highlight=False
    )


def steps_frame(points: Sequence[Point]) -> "pd.DataFrame":
    """One line per step: figures and the ends of their intervals."""
    import pandas as pd

    rows = []
    for point in points:
        row: dict[str, object] = {"model": point.checkpoint.run.model, "step": point.checkpoint.step}
        for column in _columns(points):
            cell = point.cells.get(column, NO_FIGURE)
            row[column] = cell.value
            row[f"{column}_low"], row[f"{column}_high"] = cell.ci95 or (None, None)
        rows.append(row)
    return pd.DataFrame(rows)


def write_steps(out: Path, points: Sequence[Point], config: Config) -> list[Path]:
    """Writes steps.csv and steps.html, whose tab of checkpoints plots the scores."""
    table = steps_frame(points).to_csv(index=False, lineterminator="\r\n")
    write_text_atomic(out / "steps.csv", f"\ufeff{table}")
    write_page(out / "steps.html", [point.checkpoint.run for point in points], config)
    return [out / "steps.csv", out / "steps.html"]


def _columns(points: Sequence[Point]) -> list[str]:
    there = {name for point in points for name in point.cells}
    known = [column for column in JASTER_COLUMNS if column in there]
    return known or sorted(there)


def _cell(point: Point, column: str, digits: int) -> str:
    cell = point.cells.get(column, NO_FIGURE)
    arrow = ""
    if point.gain is not None:
        lines = [*point.gain.categories, *([point.gain.average] if point.gain.average else [])]
        arrow = next((_ARROWS.get(line.verdict, "") for line in lines if line.name == column), "")
    return rounded(cell.value, digits) + (PARTIAL if cell.partial else "") + arrow


def _plot(points: Sequence[Point], column: str) -> str:
    values = [cell.value for point in points if (cell := point.cells.get(column)) and cell.value is not None]
    if len(values) < 2 or len(values) != len(points):
        return ""
    low, high = min(values), max(values)
    scale = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / scale * (len(_BARS) - 1))] for value in values)
