"""Folders -> the runs in them -> the rows of a leaderboard, and the reason for all that is not shown.

A model and protocol has one row: its newest run among the most complete ones.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalkit.core.durable import read_checked_json, read_log
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason, with_sentences
from evalkit.leaderboard.card import published_rows
from evalkit.leaderboard.llm_jp_eval import read_llm_jp_eval
from evalkit.leaderboard.rows import (
    MT_BENCH_COLUMNS,
    NO_FIGURE,
    Kind,
    MtBenchRun,
    Row,
    Run,
    jaster_row,
    partial_reasons,
    rules_of,
    whole_reasons,
)
from evalkit.mtbench.tables.model_tables import scope_figures, with_own_intervals
from evalkit.records.results import AVERAGE, Results, read_results
from evalkit.records.run_folder import RunDirectory
from evalkit.scoring.categories import with_intervals

RESULTS = "results.json"
# Files that only a run directory has, finished or not.
_RUN_FILES = ("samples", "config.yaml", "mt_bench.json")


@dataclass(frozen=True)
class LeftOut:
    """A folder or file that is not shown, and why."""

    path: Path
    reason: str


@dataclass
class Collection:
    """What lies below the folders: runs, MT-Bench tables, files of llm-jp-eval, and the rest."""

    runs: list[Run] = field(default_factory=list)
    mt_bench: list[MtBenchRun] = field(default_factory=list)
    llm_jp_eval: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def collect(places: Sequence[Path]) -> Collection:
    """Everything at or below `places` (folders, or llm-jp-eval's result files).

    Raises:
        InputError: a place does not exist.
    """
    found, seen = Collection(), set[Path]()
    for place in places:
        if not place.exists():
            raise InputError("there is no such folder or file", where=place)
        if place.is_file():
            found.llm_jp_eval.append(place)
            continue
        for folder in _run_folders(place, found, seen):
            _add(found, folder)
    _drop_copies(found)
    found.mt_bench = _with_preset_hashes(found.mt_bench)
    return found


def _run_folders(place: Path, found: Collection, seen: set[Path]) -> Iterator[Path]:
    """The run directories at or below a folder, in order; the inside of one is not searched.

    A folder that is reached twice, by links or arguments, counts once.
    """
    if (real := place.resolve()) in seen:
        return
    seen.add(real)
    if (place / RESULTS).exists() or any((place / name).exists() for name in _RUN_FILES):
        yield place
        return
    try:
        inner = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        found.left_out.append(
            LeftOut(place, Reason("the folder cannot be read: {error}", error=error.strerror))
        )
        return
    for folder in inner:
        yield from _run_folders(folder, found, seen)


def _add(found: Collection, folder: Path) -> None:
    path = folder / RESULTS
    if not path.exists():
        found.left_out.append(LeftOut(folder, "not finished: the same command continues it"))
        return
    try:
        content = read_checked_json(path)
        if content.get("kind") == "mt_bench":
            found.mt_bench += _mt_bench(folder, content)
            return
        results = read_results(path)
        _check_scores(folder, results)
        results = with_intervals(results, folder)
    except InputError as error:
        found.left_out.append(LeftOut(folder, error.what))
    except (OSError, ValueError) as error:
        found.left_out.append(LeftOut(folder, Reason("results.json cannot be read: {error}", error=error)))
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        found.left_out.append(
            LeftOut(folder, Reason("results.json does not fit its schema: {error}", error=repr(error)))
        )
    else:
        found.runs.append(Run(folder, results, path.stat().st_mtime))


def _check_scores(folder: Path, results: Results) -> None:
    """Checks that scores/ has every sample that results.json counts.

    Raises:
        InputError: a file is missing, damaged or shorter.
    """
    directory = RunDirectory(folder)
    fix = f"python -m evalkit score run={folder}"
    for name, rates in results.datasets.items():
        path = directory.scores_path(name)
        if not path.exists():
            raise InputError(Reason("damaged: scores/{name}.jsonl is not there; {fix}", name=name, fix=fix))
        rows, damaged = read_log(path)
        if damaged:
            text = "damaged: scores/{name}.jsonl: damaged lines: {n}; {fix}"
            raise InputError(Reason(text, name=name, n=damaged, fix=fix))
        if len(rows) != rates.n:
            text = "damaged: scores/{name}.jsonl: {n} of {all} samples; {fix}"
            raise InputError(Reason(text, name=name, n=len(rows), all=rates.n, fix=fix))


def _mt_bench(folder: Path, content: dict[str, Any]) -> list[MtBenchRun]:
    if content.get("schema_version") != 1:
        found = content.get("schema_version")
        raise InputError(Reason("MT-Bench results of schema version {found}, not 1", found=found))
    content = with_sentences(content, content.get("sentences"))
    tables = content["tables"]
    if not isinstance(tables, dict) or not tables:
        raise InputError("no answers were judged yet: python -m evalkit judge run=DIR")
    finished = (folder / RESULTS).stat().st_mtime
    runs = [MtBenchRun(folder, model, content, finished) for model in tables]
    for run in runs:
        run.check()
    sound = with_own_intervals(content, folder)
    return [replace(run, content=sound) for run in runs]


def _drop_copies(found: Collection) -> None:
    """Keeps the newest of several folders with the same run."""
    kept: dict[str, Run] = {}
    for run in sorted(found.runs, key=lambda run: -run.finished):
        name = run.results.run.get("id") or str(run.folder)
        key = json.dumps([name, run.results.protocol.options], default=str)
        if key in kept:
            found.left_out.append(
                LeftOut(run.folder, Reason("the same run as {folder}", folder=kept[key].folder))
            )
        else:
            kept[key] = run
    found.runs = list(kept.values())


def _with_preset_hashes(runs: Sequence[MtBenchRun]) -> list[MtBenchRun]:
    """Where different presets have one name, each run's rules name the hash of its preset."""
    hashes: dict[str, set[str]] = {}
    for run in runs:
        hashes.setdefault(run.rules, set()).add(run.preset_sha256)
    return [
        replace(run, mark=f" {run.preset_sha256[:8]}") if len(hashes[run.rules]) > 1 else run for run in runs
    ]


def find_run(place: Path) -> Run:
    """The run of a folder: a run directory, or a folder with just one finished run in it.

    Raises:
        InputError: none, several, or an unfinished one.
    """
    found = collect([place])
    if len(found.runs) == 1:
        return found.runs[0]
    if found.runs:
        listed = "".join(f"\n  {run.folder}" for run in sorted(found.runs, key=lambda run: -run.finished))
        raise InputError(
            f"several runs are there, newest first:{listed}", where=place, fix="name one of them"
        )
    if found.mt_bench:
        raise InputError(
            "this is an MT-Bench run, and compare pairs the samples of llm-jp-eval's datasets",
            where=place,
            fix="python -m evalkit pairwise RUN RUN judge=NAME, or leaderboard",
        )
    why = "".join(f"\n  {entry.path}: {entry.reason}" for entry in found.left_out)
    raise InputError(f"no finished run is there{why}", where=place)


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
    for run, remarks in _chosen(found.runs, partial, left_out):
        rows[run.model, rules_of(run.results)] = jaster_row(run, remarks)
    for bench in _chosen_mt_bench(found.mt_bench, partial, left_out):
        _add_mt_bench(rows, bench)
    board = [*rows.values(), *_llm_jp_eval_rows(found, left_out)]
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


def _chosen(
    runs: Sequence[Run], partial: bool, left_out: list[LeftOut]
) -> Iterable[tuple[Run, tuple[str, ...]]]:
    """Of each model and protocol the newest run among those with the most complete columns."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.results.partial.partial and not partial:
            reasons = partial_reasons(run.results)
            reason = Reason("partial: {reasons} (--partial shows it)", reasons=reasons)
            left_out.append(LeftOut(run.folder, reason))
        else:
            groups.setdefault((run.model, rules_of(run.results)), []).append(run)
    for group in groups.values():
        best, *others = sorted(group, key=lambda run: (-_completeness(run.results), -run.finished))
        for other in others:
            as_complete = _completeness(other.results) == _completeness(best.results)
            reason = Reason(
                "{model} has a newer run: {folder}"
                if as_complete
                else "{model} has a more complete run: {folder}",
                model=best.model,
                folder=best.folder,
            )
            left_out.append(LeftOut(other.folder, reason))
        remark = Reason("one of {n} runs of this model: {name}", n=len(group), name=best.folder.name)
        yield best, (remark,) if others else ()


def _completeness(results: Results) -> int:
    if whole_reasons(results):
        return 0
    complete = [name for name in results.categories if name not in results.partial.categories]
    return 1 + len(complete)


def _chosen_mt_bench(
    runs: Sequence[MtBenchRun], partial: bool, left_out: list[LeftOut]
) -> Iterable[MtBenchRun]:
    groups: dict[tuple[str, str], list[MtBenchRun]] = {}
    for run in runs:
        if run.reasons and not partial:
            text = "{model} partial: {reasons} (--partial shows it)"
            left_out.append(LeftOut(run.folder, Reason(text, model=run.model, reasons=run.reasons)))
        else:
            groups.setdefault((run.model, run.rules), []).append(run)
    for group in groups.values():
        best, *others = sorted(group, key=lambda run: (bool(run.reasons), -run.finished))
        newer = Reason("{model} has a newer MT-Bench run: {folder}", model=best.model, folder=best.folder)
        left_out += [LeftOut(other.folder, newer) for other in others]
        yield best


def _add_mt_bench(rows: dict[tuple[str, str], Row], bench: MtBenchRun) -> None:
    """Puts an MT-Bench table into the model's row, or into a row of its own."""
    figures = scope_figures(bench.table, partial=bool(bench.reasons))
    cells = {column: figures[column] for column in MT_BENCH_COLUMNS if column in figures}
    reasons = tuple(Reason("MT-Bench: {reason}", reason=reason) for reason in bench.reasons)
    key = next((k for k, row in rows.items() if k[0] == bench.model and row.mt_bench_run is None), None)
    row = rows[key] if key else Row(model=bench.model, kind=Kind.run)
    rows[key or (bench.model, f"MT-Bench {bench.rules}")] = replace(
        row,
        mt_bench=cells,
        mt_bench_rules=bench.rules,
        mt_bench_run=bench,
        reasons=(*row.reasons, *reasons),
    )


def _llm_jp_eval_rows(found: Collection, left_out: list[LeftOut]) -> list[Row]:
    rows = []
    for path in found.llm_jp_eval:
        try:
            rows.append(read_llm_jp_eval(path))
        except InputError as error:
            left_out.append(LeftOut(path, error.what))
    return rows


def _order(row: Row) -> tuple[Any, ...]:
    """Best average first; without one, by the mean of what is there; then by name."""
    average = row.cells.get(AVERAGE) or NO_FIGURE
    values = [cell.value for cell in row.cells.values() if cell.value is not None]
    mean = sum(values) / len(values) if values else 0.0
    return (average.value is None, -(average.value or 0.0), -mean, _natural(row.model))


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key that puts step-900 before step-1000."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
