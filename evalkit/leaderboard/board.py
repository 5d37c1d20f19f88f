"""The leaderboard: the rows of the runs below some folders, best first.

A model and protocol has one row: its newest run among the most complete ones.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.leaderboard.card import published_rows
from evalkit.leaderboard.collect import LeftOut, collect
from evalkit.leaderboard.llm_jp_eval import read_llm_jp_eval
from evalkit.leaderboard.rows import MT_BENCH_COLUMNS, NO_FIGURE, Kind, Row, jaster_row
from evalkit.leaderboard.runs import MtBenchRun, Run
from evalkit.mtbench.tables.model_tables import scope_figures
from evalkit.records.results import AVERAGE

AnyRun = TypeVar("AnyRun", Run, MtBenchRun)


@dataclass(frozen=True)
class Board:
    """A leaderboard: rows, best first, and the folders that are not shown, with the reason."""

    rows: tuple[Row, ...]
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
    rows: dict[tuple[str, str], Row] = {}
    left_out = list(found.left_out)
    for row in _jaster_rows(found.runs, partial, left_out):
        rows[row.model, row.rules] = row
    for bench in _mt_bench_runs(found.mt_bench, partial, left_out):
        _add_mt_bench(rows, bench)
    board = [*rows.values(), *_llm_jp_eval_rows(found.llm_jp_eval, left_out)]
    if reference:
        board += published_rows(reference)
    if not board:
        listed = "".join(f"\n  {entry.path}: {entry.reason}" for entry in left_out)
        raise InputError(
            f"nothing to show{listed}",
            where=", ".join(map(str, places)),
            fix="--partial shows partial runs" if left_out else "a folder with finished runs: results/",
        )
    return Board(tuple(sorted(board, key=_order)), tuple(left_out))


def _jaster_rows(runs: Sequence[Run], partial: bool, left_out: list[LeftOut]) -> Iterator[Row]:
    groups, refused = _grouped(runs, partial)
    for run in refused:
        reason = Reason("partial: {reasons} (--partial shows it)", reasons=run.reasons)
        left_out.append(LeftOut(run.folder, reason))
    for best, *others in groups:
        for other in others:
            reason = Reason(
                "{model} has a newer run: {folder}"
                if other.completeness == best.completeness
                else "{model} has a more complete run: {folder}",
                model=best.model,
                folder=best.folder,
            )
            left_out.append(LeftOut(other.folder, reason))
        remark = Reason("one of {n} runs of this model: {name}", n=1 + len(others), name=best.folder.name)
        yield jaster_row(best, (remark,) if others else ())


def _mt_bench_runs(
    runs: Sequence[MtBenchRun], partial: bool, left_out: list[LeftOut]
) -> Iterator[MtBenchRun]:
    groups, refused = _grouped(runs, partial)
    for run in refused:
        text = "{model} partial: {reasons} (--partial shows it)"
        left_out.append(LeftOut(run.folder, Reason(text, model=run.model, reasons=run.reasons)))
    for best, *others in groups:
        newer = Reason("{model} has a newer MT-Bench run: {folder}", model=best.model, folder=best.folder)
        left_out += [LeftOut(other.folder, newer) for other in others]
        yield best


def _grouped(runs: Sequence[AnyRun], partial: bool) -> tuple[list[list[AnyRun]], list[AnyRun]]:
    """The runs of each model and protocol, best first, and the partial runs that may not be shown.

    The best run is the newest of the most complete ones.
    """
    groups: dict[tuple[str, str], list[AnyRun]] = {}
    refused = []
    for run in runs:
        if run.reasons and not partial:
            refused.append(run)
        else:
            groups.setdefault((run.model, run.rules), []).append(run)
    order = (sorted(group, key=lambda run: (-run.completeness, -run.finished)) for group in groups.values())
    return list(order), refused


def _add_mt_bench(rows: dict[tuple[str, str], Row], bench: MtBenchRun) -> None:
    """Puts an MT-Bench table into the model's row, or into a separate row."""
    figures = scope_figures(bench.table, partial=bool(bench.reasons))
    known = {name: figure for name, figure in figures.items() if figure.value is not None}
    cells = {column: known[column] for column in MT_BENCH_COLUMNS if column in known}
    reasons = tuple(Reason("MT-Bench: {reason}", reason=reason) for reason in bench.reasons)
    # A row of pfgen has rules of its own and stays alone.
    free = (k for k, row in rows.items() if row.mt_bench_run is None and "pfgen_score" not in row.datasets)
    key = next((k for k in free if k[0] == bench.model), None)
    row = rows[key] if key else Row(model=bench.model, kind=Kind.run)
    rows[key or (bench.model, f"MT-Bench {bench.rules}")] = replace(
        row,
        mt_bench=cells,
        mt_bench_rules=bench.rules,
        mt_bench_run=bench,
        reasons=(*row.reasons, *reasons),
    )


def _llm_jp_eval_rows(paths: Sequence[Path], left_out: list[LeftOut]) -> list[Row]:
    rows = []
    for path in paths:
        try:
            rows.append(read_llm_jp_eval(path))
        except InputError as error:
            left_out.append(LeftOut(path, error.what))
    return rows


def _order(row: Row) -> tuple[Any, ...]:
    """A sort key: best average first; without one, by the mean of the other figures; then by name."""
    average = row.cells.get(AVERAGE) or NO_FIGURE
    values = [cell.value for cell in row.cells.values() if cell.value is not None]
    mean = sum(values) / len(values) if values else 0.0
    return (average.value is None, -(average.value or 0.0), -mean, _natural(row.model))


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key that puts step-900 before step-1000."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
