"""Collected runs -> the rows of a leaderboard: one per model and protocol, the newest complete run."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evalkit.core.errors import InputError
from evalkit.core.text import did_you_mean
from evalkit.leaderboard.card import JASTER_TABLE, MT_BENCH_TABLE, load_cards
from evalkit.leaderboard.collect import Collection, LeftOut, collect
from evalkit.leaderboard.foreign_results import read_foreign
from evalkit.leaderboard.rows import MT_BENCH_COLUMNS, NO_FIGURE, Kind, MtBenchRun, Row, Run, rules_of
from evalkit.mtbench.tables.model_tables import scope_figures
from evalkit.records.results import AVERAGE, Figure, Results

# `--reference` names a family of published models by the start of their names.
PUBLISHED_RULES = "published by llm-jp, not measured here"
HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Board:
    """A leaderboard: rows, best first, and what was left out with the reason."""

    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]


def build_board(places: Sequence[Path], *, partial: bool = False, reference: str | None = None) -> Board:
    """The leaderboard of everything at or below `places`.

    Args:
        places: results folders, run folders, or llm-jp-eval's result files.
        partial: show partial runs too, marked.
        reference: also show the published rows of the models whose names start so.

    Raises:
        InputError: a place does not exist, nothing can be shown, or no published model is called so.
    """
    found = collect(places)
    rows: dict[tuple[str, str], Row] = {}
    left_out = list(found.left_out)
    for run in _chosen(found.runs, partial, left_out):
        rows[run[0].model, rules_of(run[0].results)] = jaster_row(*run)
    for bench in _chosen_mt_bench(found.mt_bench, partial, left_out):
        _join(rows, bench)
    board = [*rows.values(), *_foreign_rows(found, left_out)]
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


def jaster_row(run: Run, remarks: Iterable[str] = ()) -> Row:
    """The row of one run."""
    results = run.results
    whole = _whole_reasons(results)
    cells = {
        name: replace(value, partial=bool(whole) or name in results.partial.categories)
        for name, value in results.categories.items()
    }
    average = results.average.get(AVERAGE)
    if average is not None and average.value is not None:
        cells[AVERAGE] = replace(average, partial=bool(whole))
    return Row(
        model=run.model,
        kind=Kind.run,
        url=model_url(results.run.get("identity", {}).get("model", {})),
        cells=cells,
        datasets={key: replace(value, partial=bool(whole)) for key, value in results.scores.items()},
        rules=rules_of(results),
        reasons=_reasons(results),
        remarks=tuple(remarks),
        run=run,
    )


def _reasons(results: Results) -> tuple[str, ...]:
    if not results.partial.partial:
        return ()
    inner = [
        f"{category}: {reason}"
        for category, reasons in results.partial.categories.items()
        for reason in reasons
        if reason not in results.partial.reasons
    ]
    return tuple([*results.partial.reasons, *inner] or ["a category is incomplete"])


def _whole_reasons(results: Results) -> list[str]:
    """The reasons that concern every figure, not one dataset."""
    names = {*results.partial.datasets, *(entry.dataset for entry in results.missing_metrics)}
    return [
        reason
        for reason in results.partial.reasons
        if not reason.startswith(tuple(f"{name}{mark}" for name in names for mark in (" is missing", ": ")))
    ]


def model_url(identity: Any) -> str | None:
    """The hub page of a model by its identity, where it is known."""
    if isinstance(identity, dict) and isinstance(identity.get("hub"), str):
        commit = identity.get("commit")
        path = identity["hub"] + (f"/tree/{commit}" if commit else "")
        return HUB + quote(path)
    return None


def _chosen(
    runs: Sequence[Run], partial: bool, left_out: list[LeftOut]
) -> Iterable[tuple[Run, tuple[str, ...]]]:
    """Of each model and protocol the newest run among those with the most complete columns."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.results.partial.partial and not partial:
            reason = "partial: " + "; ".join(_reasons(run.results))
            left_out.append(LeftOut(run.folder, f"{reason} (--partial shows it)"))
        else:
            groups.setdefault((run.model, rules_of(run.results)), []).append(run)
    for group in groups.values():
        best, *others = sorted(group, key=lambda run: (-_completeness(run.results), -run.finished))
        for other in others:
            why = "newer" if _completeness(other.results) == _completeness(best.results) else "more complete"
            left_out.append(LeftOut(other.folder, f"{best.model} has a {why} run: {best.folder}"))
        yield best, (f"one of {len(group)} runs of this model: {best.folder.name}",) if others else ()


def _completeness(results: Results) -> int:
    if _whole_reasons(results):
        return 0
    complete = [name for name in results.categories if name not in results.partial.categories]
    return 1 + len(complete)


def _chosen_mt_bench(
    runs: Sequence[MtBenchRun], partial: bool, left_out: list[LeftOut]
) -> Iterable[MtBenchRun]:
    groups: dict[tuple[str, str], list[MtBenchRun]] = {}
    for run in runs:
        if run.reasons and not partial:
            reason = "; ".join(run.reasons)
            left_out.append(LeftOut(run.folder, f"{run.model} partial: {reason} (--partial shows it)"))
        else:
            groups.setdefault((run.model, run.rules), []).append(run)
    for group in groups.values():
        best, *others = sorted(group, key=lambda run: (bool(run.reasons), -run.finished))
        left_out += [LeftOut(o.folder, f"{o.model} has a newer MT-Bench run: {best.folder}") for o in others]
        yield best


def _join(rows: dict[tuple[str, str], Row], bench: MtBenchRun) -> None:
    """Puts an MT-Bench table into the model's row, or into a row of its own."""
    figures = scope_figures(bench.table, partial=bool(bench.reasons))
    cells = {column: figures[column] for column in MT_BENCH_COLUMNS if column in figures}
    reasons = tuple(f"MT-Bench: {reason}" for reason in bench.reasons)
    key = next((k for k, row in rows.items() if k[0] == bench.model and row.mt_bench_run is None), None)
    row = rows[key] if key else Row(model=bench.model, kind=Kind.run)
    rows[key or (bench.model, f"MT-Bench {bench.rules}")] = replace(
        row,
        mt_bench=cells,
        mt_bench_rules=bench.rules,
        mt_bench_run=bench,
        reasons=(*row.reasons, *reasons),
    )


def _foreign_rows(found: Collection, left_out: list[LeftOut]) -> list[Row]:
    rows = []
    for path in found.foreign:
        try:
            rows.append(read_foreign(path))
        except InputError as error:
            left_out.append(LeftOut(path, error.what))
    return rows


def published_rows(reference: str) -> list[Row]:
    """The published rows of the models whose names start with `reference`.

    Raises:
        InputError: there is none.
    """
    jaster, bench = load_cards(JASTER_TABLE), load_cards(MT_BENCH_TABLE)
    names = [name for name in dict.fromkeys([*jaster, *bench]) if name.startswith(reference)]
    if not names:
        raise InputError(
            f"no published model is called {reference}{did_you_mean(reference, [*jaster, 'llm-jp-3'])}",
            where="option --reference",
            fix="--reference llm-jp-3",
        )
    rows = []
    for name in names:
        rating = {("average" if k == AVERAGE else k): v for k, v in _columns(bench, name).items()}
        rows.append(
            Row(
                model=name,
                kind=Kind.published,
                url=f"{HUB}llm-jp/{name}",
                cells={column: Figure(value) for column, value in _columns(jaster, name).items()},
                mt_bench={column: Figure(value) for column, value in rating.items()},
                rules=PUBLISHED_RULES,
                mt_bench_rules=PUBLISHED_RULES if rating else "",
            )
        )
    return rows


def _columns(cards: dict[str, Any], name: str) -> dict[str, float]:
    return dict(cards[name].columns) if name in cards else {}


def _order(row: Row) -> tuple[Any, ...]:
    """Best average first; without one, by the mean of what is there; then by name."""
    average = row.cells.get(AVERAGE) or NO_FIGURE
    values = [cell.value for cell in row.cells.values() if cell.value is not None]
    mean = sum(values) / len(values) if values else 0.0
    return (average.value is None, -(average.value or 0.0), -mean, natural(row.model))


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key that puts step-900 before step-1000."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
