"""The leaderboard in the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from evalkit.cli.mt_bench_report import SHORT
from evalkit.core.words import shown, t
from evalkit.leaderboard.board import Board
from evalkit.leaderboard.rows import TABLES, Kind, Row, Table
from evalkit.leaderboard.tables import PARTIAL, TIE, Mark, marks, notes_of, rounded
from evalkit.records.results import Figure

_NAME_WIDTH = 12


def print_board(board: Board, console: Console) -> None:
    """Prints both tables and every run that is not shown, with the reason."""
    for table in TABLES:
        rows = table.rows(board.rows)
        if rows:
            figures = _figures(table, rows)
            # Where the card's four digits do not fit beside a name, three do; the files have all.
            fits = console.width >= _NAME_WIDTH + len(figures) * (table.digits + 5)
            console.print(f"[bold]{table.title}[/]", highlight=False)
            notes = notes_of([table.rules(row) for row in rows])
            names = [_name(row, notes.get(table.rules(row))) for row in rows]
            console.print(_grid(names, figures, table.digits if fits else min(table.digits, 3)))
            for rule, note in notes.items():
                console.print(f"  [{note}] {shown(rule)}", markup=False, soft_wrap=True, highlight=False)
    for row in board.rows:
        for remark in (*row.reasons, *row.remarks):
            console.print(f"  {escape(row.model)}: {escape(shown(remark))}", soft_wrap=True, highlight=False)
    if board.left_out:
        console.print(t("not shown:"))
    for entry in board.left_out:
        line = f"  {entry.path}: {shown(entry.reason)}"
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def _figures(table: Table, rows: Sequence[Row]) -> dict[str, list[tuple[Figure, Mark]]]:
    """The columns that have a figure, each with its cells and their marks."""
    rules = [table.rules(row) for row in rows]
    columns = {name: table.column(name, rows) for name in table.filled(rows)}
    return {name: list(zip(cells, marks(cells, rules), strict=True)) for name, cells in columns.items()}


def _grid(names: Sequence[str], shown: Mapping[str, list[tuple[Figure, Mark]]], digits: int) -> Grid:
    grid = Grid(box=None, header_style="bold underline", padding=(0, 1, 0, 0))
    grid.add_column(t("model"), overflow="fold", min_width=8)
    for column in shown:
        grid.add_column(SHORT.get(column, column), justify="right", no_wrap=True)
    for index, name in enumerate(names):
        grid.add_row(escape(name), *(_cell(*cells[index], digits) for cells in shown.values()))
    return grid


def _name(row: Row, note: int | None) -> str:
    kind = f" ({t(row.kind.value)})" if row.kind is not Kind.run else ""
    return row.model + kind + (f" [{note}]" if note else "")


def _cell(cell: Figure, mark: Mark, digits: int) -> str:
    text = rounded(cell.value, digits) + (PARTIAL if cell.partial else "")
    return f"[bold]{text}[/]" if mark == "best" else text + (TIE if mark == "tie" else "")
