"""What the reports of the verbs share: lines, tables and numbers."""

import os
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from evalkit.core.words import t

LOG_WIDTH = 140
# Headings that leave room for a model's name on 80 columns.
SHORT = {
    "AVG_without_MT": "AVG w/o MT",
    "average": "avg",
    "coding": "code",
    "extraction": "extr",
    "humanities": "hum",
    "reasoning": "reas",
    "roleplay": "role",
    "writing": "writ",
    "instruction_strict": "inst strict",
    "prompt_strict": "prompt strict",
    "instruction_loose": "inst loose",
    "prompt_loose": "prompt loose",
    "turn_1": "t1",
    "turn_2": "t2",
}


def report_console() -> Console:
    """Standard output; a log, which has no width of its own, is wide enough for names and figures."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Prints a text as it is, brackets included, and wraps nothing."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_folder(console: Console, folder: object, *offered: str) -> None:
    """Prints where the results are, and the commands that go on from here."""
    print_line(console, f"{t('results: ')}{folder}")
    for command in offered:
        print_line(console, f"  {t('next: ')}{command}", style="dim")


def new_table(*columns: str, title: str | None = None, **options: Any) -> Table:
    """A table; the first column is aligned left, the others right, their names in the chosen language."""
    style: dict[str, Any] = {
        "box": box.SIMPLE_HEAD,
        "header_style": "bold",
        "padding": (0, 1, 0, 0),
        **options,
    }
    table = Table(title=title, title_justify="left", **style)
    for place, column in enumerate(columns):
        table.add_column(t(column) if column else "", justify="right" if place else "left")
    return table


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A number; `-` for none."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"
