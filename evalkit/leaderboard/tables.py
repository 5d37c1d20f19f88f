"""Rows -> leaderboard.csv and leaderboard.md: the card's tables, order and rounding.

In Markdown the best figure of a column is bold; `≈` marks figures that the intervals do not
distinguish from it, `*` partial figures. Only rows of one protocol are compared; published and
imported rows never are, as their samples are not known.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from evalkit.core.reasons import Reason
from evalkit.core.words import shown, t
from evalkit.leaderboard.board import Board, natural_order
from evalkit.leaderboard.join import LeftOut
from evalkit.leaderboard.rows import BoardRow, Origin, Table, escaped, tables_of
from evalkit.records.results import WITHOUT_MT, Figure

if TYPE_CHECKING:
    import pandas as pd

TIE = "≈"
PARTIAL = "*"
Mark = Literal["best", "tie", ""]


def csv_frame(rows: Sequence[BoardRow]) -> "pd.DataFrame":
    """One line per row: model, kind, the card's columns rounded as the card does, then intervals.

    A missing figure is an empty field. MT-Bench columns are called `mt_bench_<category>`, the ends
    of an interval `<column>_low` and `<column>_high`.
    """
    import pandas as pd

    columns: dict[str, list[object]] = {
        "model": [spreadsheet_text(row.model) for row in rows],
        "kind": [row.kind.value for row in rows],
        "partial": [row.partial for row in rows],
    }
    ends: dict[str, list[object]] = {}
    for table in tables_of(rows):
        for name in table.filled(rows):
            cells = table.column(name, rows)
            columns[table.prefix + name] = [rounded(cell.value, table.digits) for cell in cells]
            if any(cell.ci95 for cell in cells):
                for place, end in enumerate(("low", "high")):
                    values = [cell.ci95[place] if cell.ci95 else None for cell in cells]
                    ends[f"{table.prefix}{name}_{end}"] = [rounded(value, table.digits) for value in values]
    columns |= ends
    columns["url"] = [row.url or "" for row in rows]
    columns["protocol"] = [row.rules for row in rows]
    columns["mt_bench_rules"] = [row.mt_bench_rules for row in rows]
    columns["run"] = [_folders(row) for row in rows]
    columns["remarks"] = [spreadsheet_text("; ".join((*row.reasons, *row.remarks))) for row in rows]
    return pd.DataFrame(columns)


def csv_text(rows: Sequence[BoardRow]) -> str:
    """leaderboard.csv."""
    return frame_text(csv_frame(rows))


def frame_text(frame: "pd.DataFrame") -> str:
    """A frame as CSV; starts with a byte order mark, without which Excel misreads Japanese."""
    return "\ufeff" + str(frame.to_csv(index=False, lineterminator="\r\n"))


def markdown(board: Board) -> str:
    """leaderboard.md: both tables, notes on the marks and protocols, and the folders that are not shown."""
    parts = [f"# {t('Leaderboard')}", markdown_tables(board.rows)]
    if board.left_out:
        parts.append(f"## {t('Not shown')}")
        parts.append("\n".join(f"- {escaped(why)}: {_paths(entries)}" for why, entries in not_shown(board)))
    return "\n\n".join(parts) + "\n"


def _paths(entries: Sequence[LeftOut]) -> str:
    return ", ".join("`{}`".format(str(entry.path).replace("`", "'")) for entry in entries)


def markdown_tables(rows: Sequence[BoardRow], heading: str = "##") -> str:
    """The tables with their notes; a table without figures is left out."""
    parts = []
    for table in tables_of(rows):
        if shown := table.rows(rows):
            notes = notes_of([table.rules(row) for row in shown])
            parts += [
                f"{heading} {t(table.title)}",
                _table(table, shown, notes),
                "\n".join(_legend(table, shown, notes)),
            ]
    parts.append("\n".join(f"- {escaped(line)}" for line in row_notes(rows)))
    return "\n\n".join(part for part in parts if part)


def notes_by_text(rows: Sequence[BoardRow]) -> dict[str, list[str]]:
    """What must be known of rows, and the models that each sentence is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for note in dict.fromkeys((*row.reasons, *row.remarks)):
            found.setdefault(note, []).append(row.model)
    return {note: sorted(models, key=natural_order) for note, models in found.items()}


def row_notes(rows: Sequence[BoardRow]) -> list[str]:
    """A line for each sentence about rows, said once for all models that share it."""
    return [of_models(models, note) for note, models in notes_by_text(rows).items()]


def left_out_by_reason(board: Board) -> dict[str, list[LeftOut]]:
    """What is not shown, by the reason."""
    found: dict[str, list[LeftOut]] = {}
    for entry in board.left_out:
        found.setdefault(entry.reason, []).append(entry)
    return found


def not_shown(board: Board) -> list[tuple[str, list[LeftOut]]]:
    """A line for each reason why something is not shown, with the folders."""
    return [
        (of_models([entry.model for entry in entries if entry.model], why), entries)
        for why, entries in left_out_by_reason(board).items()
    ]


def of_models(models: Sequence[str], note: str) -> str:
    """A sentence behind the names of the models that it is about, and their number."""
    names = sorted(dict.fromkeys(models), key=natural_order)
    # In a field only a reason is said in the reader's language.
    note = note if isinstance(note, Reason) else Reason(note)
    if len(names) > 1:
        return t("{n} models ({names}): {note}", n=len(names), names=", ".join(names), note=note)
    return t("{model}: {note}", model=names[0], note=note) if names else shown(note)


def marks(cells: Sequence[Figure], rules: Sequence[str]) -> list[Mark]:
    """For a column: which figure is best among those of its rules, and which do not differ from it.

    A figure gets no mark when it is the only one of its rules, all share it, it is partial, or it was not
    measured here.
    """
    result: list[Mark] = [""] * len(cells)
    for rule in dict.fromkeys(rules):
        group = [
            index
            for index, cell in enumerate(cells)
            if rules[index] == rule and cell.value is not None and _is_measured(cell) and not cell.partial
        ]
        if len(group) < 2:
            continue
        best = max(group, key=lambda index: cells[index].value or 0.0)
        if all(cells[index].value == cells[best].value for index in group):
            continue
        for index in group:
            if cells[index].value == cells[best].value:
                result[index] = "best"
            elif not _differ(cells[index], cells[best]):
                result[index] = "tie"
    return result


def _differ(a: Figure, b: Figure) -> bool:
    """Whether two figures differ by more than their intervals: neither value lies in the other's interval.

    Where only one has an interval, it decides; without any, the answer is no. This is an approximation
    for tables: `compare` pairs the samples and tests the difference.
    """
    if a.value is None or b.value is None or a.value == b.value:
        return False
    decided = [ends[0] <= value <= ends[1] for ends, value in ((a.ci95, b.value), (b.ci95, a.value)) if ends]
    return bool(decided) and not any(decided)


def _is_measured(cell: Figure) -> bool:
    """Whether the samples behind a figure are known; scores that are all equal give no interval."""
    return cell.ci95 is not None or cell.n > 0


def _folders(row: BoardRow) -> str:
    folders = [run.folder for run in row.run.leaves] if row.run else []
    folders += [row.mt_bench_run.folder] if row.mt_bench_run else []
    return "; ".join(folder.as_posix() for folder in folders)


def spreadsheet_text(text: str) -> str:
    """The text, with a quote in front where a spreadsheet would run it as a formula.

    A signed number is not a formula.
    """
    starts = text.lstrip().startswith(("=", "+", "-", "@"))
    return f"'{text}" if starts and not re.fullmatch(r"[+-][\d.,]+", text) else text


def rounded(value: float | None, digits: int) -> str:
    """The value with a fixed number of digits; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def _table(table: Table, rows: Sequence[BoardRow], notes: Mapping[str, int]) -> str:
    rules = [table.rules(row) for row in rows]
    # All of the card's columns; what stands in for its average only where a row has it.
    names = [name for name in table.columns if name != WITHOUT_MT or name in table.filled(rows)]
    columns = {name: table.column(name, rows) for name in names}
    marked = {name: marks(cells, rules) for name, cells in columns.items()}
    lines = [
        f"| {t('model')} | " + " | ".join(columns) + " |",
        "|:---|" + "---:|" * len(columns),
    ]
    for index, row in enumerate(rows):
        cells = [_cell(columns[name][index], marked[name][index], table.digits) for name in columns]
        lines.append(f"| {_name(row, notes.get(rules[index]))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(cell: Figure, mark: Mark, digits: int) -> str:
    if cell.value is None:
        return ""
    text = rounded(cell.value, digits) + (PARTIAL if cell.partial else "")
    return f"**{text}**" if mark == "best" else text + (TIE if mark == "tie" else "")


def _name(row: BoardRow, note: int | None) -> str:
    name = escaped(row.model)
    linked = f"[{name}]({row.url})" if row.url else name
    kind = f" ({t(row.kind.value)})" if row.kind is not Origin.run else ""
    return linked + kind + (f" <sup>{note}</sup>" if note else "")


def notes_of(rules: Sequence[str]) -> dict[str, int]:
    """A number for each set of rules, from 1; 0 for the only one."""
    kinds = list(dict.fromkeys(rules))
    return {rule: number for number, rule in enumerate(kinds, int(len(kinds) > 1))}


def _legend(table: Table, rows: Sequence[BoardRow], notes: Mapping[str, int]) -> list[str]:
    lines = []
    if sum(any(cell.ci95 for cell in table.cells(row).values()) for row in rows) > 1:
        lines.append(
            t("**Bold**: best of its protocol. {tie}: not told from it by the 95 % intervals.", tie=TIE)
        )
    if any(cell.partial for row in rows for cell in table.cells(row).values()):
        lines.append(t("\\*: partial, not comparable with complete figures."))
    numbers = {rule: f"<sup>{number}</sup> " if number else "" for rule, number in notes.items()}
    lines += [f"{number}{escaped(shown(rule))}" for rule, number in numbers.items() if rule]
    return [f"- {line}" for line in lines]
