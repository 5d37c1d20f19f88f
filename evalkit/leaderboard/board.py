"""The leaderboard: the rows of the runs below some folders, best first.

A model and protocol has one row: its runs that join, and of those that cover the same the newest one of the
most complete.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.leaderboard.card import published_rows
from evalkit.leaderboard.collect import collect
from evalkit.leaderboard.join import LeftOut, join_runs, other_model
from evalkit.leaderboard.llm_jp_eval import read_llm_jp_eval
from evalkit.leaderboard.rows import MT_BENCH_COLUMNS, NO_FIGURE, BoardRow, Origin, jaster_row
from evalkit.leaderboard.runs import FinishedRun, JudgedRun, told_apart
from evalkit.mtbench.model_tables import scope_figures
from evalkit.records.results import AVERAGE
from evalkit.tasks.spec import CATEGORIES


@dataclass(frozen=True)
class Board:
    """A leaderboard: rows, best first, and the folders that are not shown, with the reason."""

    rows: tuple[BoardRow, ...]
    left_out: tuple[LeftOut, ...]


def build_board(places: Sequence[Path], *, partial: bool = False, reference: str | None = None) -> Board:
    """The leaderboard of everything at or below `places`.

    Args:
        places: results folders, run folders, or llm-jp-eval's result files.
        partial: show partial runs too, marked.
        reference: also show the published rows of the models whose names start with it.

    Raises:
        InputError: a place does not exist, nothing can be shown, or no published model has that name.
    """
    found = collect(places)
    joined, without = join_runs(found.runs, partial=partial)
    runs = told_apart(joined)
    left_out = [*found.left_out, *without]
    rows = [jaster_row(run, _remarks(run, runs, without)) for run in runs]
    for bench in _mt_bench_runs(found.mt_bench, partial, left_out):
        _add_mt_bench(rows, bench)
    board = [*rows, *_llm_jp_eval_rows(found.llm_jp_eval, left_out)]
    if reference:
        board += published_rows(reference)
    if not board:
        listed = "".join(f"\n  {entry.path}: {entry.reason}" for entry in left_out)
        raise InputError(
            f"nothing to show{listed}",
            where=", ".join(map(str, places)),
            fix="--partial shows partial runs" if left_out and not partial else "a folder with finished runs",
        )
    return Board(tuple(sorted(board, key=_order)), tuple(left_out))


def _remarks(run: FinishedRun, rows: Sequence[FinishedRun], without: Sequence[LeftOut]) -> Iterator[str]:
    """What a reader must know of a row: what it joins, what it lacks, and what it was chosen from."""
    results = run.results
    if len(run.parts) > 1:
        suites = ", ".join(sorted(map(_suite, run.parts)))
        yield Reason("joined of {n} runs: {suites}", n=len(run.parts), suites=suites)
    missing = [name for name in CATEGORIES if name not in results.categories]
    if missing and results.categories:
        yield Reason("no AVG, as these are missing: {names}", names=", ".join(missing))
    if others := [entry for entry in without if entry.beside == run.leaves[0].folder]:
        yield Reason("one of {n} runs of this model", n=1 + len(others))
    same = [other for other in rows if other.model == run.model and other is not run]
    if not results.categories and same and (what := other_model(same[0].identity, run.identity)):
        yield Reason("not joined with the model's other runs: {what} differs", what=", ".join(what))


def _suite(run: FinishedRun) -> str:
    """What a part of a row covers: its suite, or its datasets where the suite is a list of tasks."""
    suite = run.results.run.get("suite")
    return str(suite) if suite not in (None, "task") else ", ".join(run.results.datasets)


def _mt_bench_runs(runs: Sequence[JudgedRun], partial: bool, left_out: list[LeftOut]) -> Iterator[JudgedRun]:
    """The newest of the most complete runs of each model and set of rules, Japanese ones first."""
    groups: dict[tuple[str, str], list[JudgedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.language != "ja", -run.completeness, -run.finished)):
        if all(figure.value is None for figure in scope_figures(run.table).values()):
            left_out.append(LeftOut(run.folder, "MT-Bench: no rating could be read", run.model))
        elif run.reasons and not partial:
            text = "MT-Bench is partial: {reasons} (--partial shows it)"
            left_out.append(LeftOut(run.folder, Reason(text, reasons=run.reasons), run.model))
        else:
            groups.setdefault((run.model, run.rules), []).append(run)
    for best, *others in groups.values():
        newer = "a newer MT-Bench run of the model is shown"
        left_out += [LeftOut(other.folder, newer, other.model, best.folder) for other in others]
        yield best


def _add_mt_bench(rows: list[BoardRow], bench: JudgedRun) -> None:
    """Puts an MT-Bench table into the model's row, or into a separate row."""
    figures = scope_figures(bench.table, partial=bool(bench.reasons))
    figures = {name: figure for name, figure in figures.items() if figure.value is not None}
    reasons = tuple(Reason("MT-Bench: {reason}", reason=reason) for reason in bench.reasons)
    row, remarks = BoardRow(model=bench.model, kind=Origin.run), []
    for place, other in enumerate(rows):
        if other.model != bench.model or other.mt_bench_run is not None:
            continue
        if not (what := other_model(other.run.identity if other.run else {}, bench.identity)):
            row = rows.pop(place)
            break
        remarks = [Reason("not joined with the model's other runs: {what} differs", what=", ".join(what))]
    rows.append(
        replace(
            row,
            mt_bench={column: figures[column] for column in MT_BENCH_COLUMNS if column in figures},
            mt_bench_rules=bench.rules,
            lasting_rules="; ".join(filter(None, (row.lasting_rules, bench.lasting_rules))),
            mt_bench_run=bench,
            reasons=(*row.reasons, *reasons),
            remarks=(*row.remarks, *(remarks if row.run is None else ())),
        )
    )


def _llm_jp_eval_rows(paths: Sequence[Path], left_out: list[LeftOut]) -> list[BoardRow]:
    rows = []
    for path in paths:
        try:
            rows.append(read_llm_jp_eval(path))
        except InputError as error:
            left_out.append(LeftOut(path, error.what))
    return rows


def _order(row: BoardRow) -> tuple[Any, ...]:
    """A sort key: best average first; without one, by the mean of the other figures; then by name."""
    average = row.cells.get(AVERAGE) or NO_FIGURE
    values = [cell.value for cell in row.cells.values() if cell.value is not None]
    mean = sum(values) / len(values) if values else 0.0
    return (average.value is None, -(average.value or 0.0), -mean, natural_order(row.model))


def natural_order(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key that puts step-900 before step-1000."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
