"""evalkit leaderboard [FOLDER or FILE ...] [--partial] [--reference llm-jp-3] [--format F]

Collects finished runs into leaderboard.csv, leaderboard.md and leaderboard.html, the last one page
that needs no network and no server.

    evalkit leaderboard results/
    evalkit leaderboard results/ --reference llm-jp-3     with the published rows
    evalkit leaderboard results/ --partial                partial runs too, marked
    evalkit leaderboard results/ old/result.json          a result of llm-jp-eval itself
    evalkit leaderboard results/ --format model-card      README blocks with model-index

--format takes csv, markdown, html, model-card, lm-eval or wandb, or several with commas.
wandb needs its extra; WANDB_MODE chooses where it writes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from evalkit.cli.command import path_of
from evalkit.cli.printing import SHORT, print_line, report_console
from evalkit.core.config import Config
from evalkit.core.words import shown, t
from evalkit.leaderboard.board import Board, build_board
from evalkit.leaderboard.page import PageOptions
from evalkit.leaderboard.publish import formats_of, publish
from evalkit.leaderboard.rows import BoardRow, Origin, Table, tables_of
from evalkit.leaderboard.tables import PARTIAL, TIE, Mark, marks, not_shown, notes_of, rounded, row_notes
from evalkit.records.results import Figure

OPTIONS = ("partial", "reference", "format", "out", "metrics.resamples", "data_dir", "mirror", "lang")


_NAME_WIDTH = 12


def run(config: Config) -> int:
    """Writes the leaderboard; exit code 0, also when some runs cannot be shown."""
    places = [Path(folder).expanduser() for folder in config.folders] or [Path("results")]
    formats = formats_of(config.format)
    board = build_board(places, partial=config.partial, reference=config.reference)
    first = places[0] if places[0].is_dir() else places[0].parent
    written = publish(board, path_of(config.out) or first, formats, page_options(config))
    console = report_console()
    _print_board(board, console)
    for line in written:
        print_line(console, line)
    return 0


def page_options(config: Config) -> PageOptions:
    """The options of a page."""
    return PageOptions(
        config.lang, config.metrics.resamples, config.data_dir, config.mirror, config.across_rules
    )


def _print_board(board: Board, console: Console) -> None:
    """Prints the tables, and what is not shown by its reason."""
    for table in tables_of(board.rows):
        rows = table.rows(board.rows)
        if rows:
            figures = _figures(table, rows)
            # Where the card's four digits do not fit next to a name, three do; the files have all.
            fits = console.width >= _NAME_WIDTH + len(figures) * (table.digits + 5)
            console.print(f"[bold]{t(table.title)}[/]", highlight=False)
            notes = notes_of([table.rules(row) for row in rows])
            names = [_name(row, notes.get(table.rules(row))) for row in rows]
            console.print(_grid(names, figures, table.digits if fits else min(table.digits, 3)))
            for rule, note in notes.items():
                print_line(console, f"  [{note}] {shown(rule)}" if note else f"  {shown(rule)}")
    for line in row_notes(board.rows):
        print_line(console, f"  {line}")
    if board.left_out:
        console.print(t("not shown:"))
    for why, entries in not_shown(board):
        more = [t("and {n} more", n=len(entries) - 1)] if len(entries) > 1 else []
        print_line(console, f"  {' '.join([str(entries[0].path), *more])}: {why}")


def _figures(table: Table, rows: Sequence[BoardRow]) -> dict[str, list[tuple[Figure, Mark]]]:
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


def _name(row: BoardRow, note: int | None) -> str:
    kind = f" ({t(row.kind.value)})" if row.kind is not Origin.run else ""
    return row.model + kind + (f" [{note}]" if note else "")


def _cell(cell: Figure, mark: Mark, digits: int) -> str:
    text = rounded(cell.value, digits) + (PARTIAL if cell.partial and cell.value is not None else "")
    return f"[bold]{text}[/]" if mark == "best" else text + (TIE if mark == "tie" else "")
