"""A board -> the page's data as plain JSON values, without samples and conversations."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from evalkit import __version__
from evalkit.core import words
from evalkit.core.config import Lang
from evalkit.core.durable import is_whole_text
from evalkit.core.errors import EvalkitError
from evalkit.core.reasons import sentences_in
from evalkit.leaderboard.board import Board, natural_order
from evalkit.leaderboard.compare import Comparison, compare_samples, differences
from evalkit.leaderboard.comparison_report import sentences
from evalkit.leaderboard.rows import PFGEN, BoardRow, Table, tables_of
from evalkit.leaderboard.runs import FinishedRun
from evalkit.leaderboard.steps import step_of_row
from evalkit.leaderboard.tables import left_out_by_reason, marks, notes_by_text
from evalkit.records.environment import CONFIG, kept_environment, read_timings
from evalkit.records.results import Figure
from evalkit.scoring.categories import category_members
from evalkit.tasks.spec import CATEGORIES

# Pairs grow with the square of the rows: runs beyond this many are compared by `compare` only.
MOST_PAIRED = 8
_VERSIONS = ("evalkit", "torch", "transformers", "vllm")


def page_data(
    board: Board,
    runs: Mapping[int, FinishedRun],
    lang: Lang,
    resamples: int,
    tokens: Mapping[Path, int],
    *,
    across_rules: bool = False,
) -> dict[str, Any]:
    """The page's data without samples and conversations.

    Args:
        board: the rows.
        runs: their runs, by the index of the row.
        lang: the language the page opens in.
        resamples: of the intervals of each pair of runs.
        tokens: how many each run folder generated.
        across_rules: compare runs although their options differ.
    """
    content = {
        "version": __version__,
        "lang": lang.value,
        "words": words.catalogue(),
        "tables": [_table(table, board.rows) for table in tables_of(board.rows)],
        "categories": {name: category_members()[name] for name in CATEGORIES},
        "datasets": _datasets(runs),
        "rows": [_row(row, tokens) for row in board.rows],
        "notes": [[models, note] for note, models in notes_by_text(board.rows).items()],
        "leftOut": [
            [
                sorted({e.model for e in entries if e.model}, key=natural_order),
                [str(e.path) for e in entries],
                why,
            ]
            for why, entries in left_out_by_reason(board).items()
        ],
        "talks": [place for place, row in enumerate(board.rows) if row.mt_bench_run is not None],
        "pairs": _pairs(runs, resamples, across_rules),
    }
    return content | {"reasons": sentences_in(content)}


def _table(table: Table, rows: Sequence[BoardRow]) -> dict[str, Any]:
    places = {id(row): index for index, row in enumerate(rows)}
    shown = table.rows(rows)
    rules = [table.rules(row) for row in shown]
    columns = {name: table.column(name, shown) for name in table.filled(shown)}
    return {
        "id": table.name,
        "title": table.title,
        "columns": list(columns),
        "digits": table.digits,
        "rows": [places[id(row)] for row in shown],
        "cells": {
            name: [[*_cell(cell), mark] for cell, mark in zip(cells, marks(cells, rules), strict=True)]
            for name, cells in columns.items()
        },
        "rules": rules,
    }


def _cell(cell: Figure) -> list[Any]:
    low, high = cell.ci95 or (None, None)
    return [_short(cell.value), _short(low), _short(high), cell.n or None, cell.partial]


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _datasets(runs: Mapping[int, FinishedRun]) -> dict[str, dict[str, Any]]:
    members = {name: category for category, names in category_members().items() for name in names}
    found: dict[str, dict[str, Any]] = {}
    for run in runs.values():
        results = run.results
        facts = results.run.get("datasets", {})
        for name in results.datasets:
            entry = {
                "category": members.get(name),
                "metric": run.metric(name),
                # The scale of its scores has no right and wrong.
                "scored": name == PFGEN,
                "license": facts.get(name, {}).get("license"),
                "citation": facts.get(name, {}).get("citation"),
            }
            found.setdefault(name, entry)
    return found


def _row(row: BoardRow, tokens: Mapping[Path, int]) -> dict[str, Any]:
    series, step = step_of_row(row) or (None, None)
    results = row.run.results if row.run else None
    datasets = results.datasets if results else {}
    return {
        "model": row.model,
        "url": row.url,
        "kind": row.kind.value,
        "rules": row.rules,
        "reasons": list(row.reasons),
        "remarks": list(row.remarks),
        "partial": row.partial,
        "datasets": {
            name: _cell(row.datasets[f"{name}_{metric}"])
            for name in datasets
            if row.run and (metric := row.run.metric(name)) is not None
        },
        "rates": {
            name: [rates.empty, rates.truncated, rates.out_of_format] for name, rates in datasets.items()
        },
        "thoughts": {
            name: [found.unclosed, found.empty, found.cut_off, found.median_thought_tokens]
            for name, rates in datasets.items()
            if (found := rates.thoughts) is not None
        },
        "facts": [
            *(
                _facts(run.folder, run.results.run.get("suite"), run.identity, tokens)
                for run in (row.run.leaves if row.run else ())
            ),
            *(_facts(one.folder, "MT-Bench", one.identity, tokens) for one in [row.mt_bench_run] if one),
        ],
        "series": series,
        "step": step,
    }


def _facts(
    folder: Path, suite: str | None, identity: Mapping[str, Any], tokens: Mapping[Path, int]
) -> dict[str, Any]:
    """How a run was made: time, tokens, versions, machine, configuration; null where it is not known."""
    environment = kept_environment(folder) or {}
    seconds, generated = sum(read_timings(folder).values()), tokens.get(folder, 0)
    packages = {"evalkit": environment.get("evalkit"), **environment.get("packages", {})}
    config = folder / CONFIG
    return {
        "suite": suite,
        "folder": str(folder),
        "seconds": round(seconds, 1) if seconds else None,
        "tokens": generated or None,
        "speed": round(generated / seconds) if generated and seconds else None,
        "engine": identity.get("engine_family"),
        "dtype": identity.get("dtype"),
        "versions": ", ".join(f"{name} {packages[name]}" for name in _VERSIONS if packages.get(name)) or None,
        "machine": environment.get("platform"),
        "config": config.read_text(encoding="utf-8") if is_whole_text(config) else None,
    }


def _pairs(runs: Mapping[int, FinishedRun], resamples: int, across_rules: bool) -> dict[str, dict[str, Any]]:
    chosen = list(runs.items())[:MOST_PAIRED]
    return {
        f"{first}-{second}": _pair(a, b, resamples, across_rules)
        for (first, a), (second, b) in combinations(chosen, 2)
    }


def _pair(a: FinishedRun, b: FinishedRun, resamples: int, across_rules: bool) -> dict[str, Any]:
    options, data = differences(a, b)
    if data or (options and not across_rules):
        return {"refused": [*options, *data]}
    try:
        comparison = compare_samples(a, b, across=options, resamples=resamples)
    except EvalkitError as error:
        return {"refused": [error.what]}
    average = [comparison.average] if comparison.average is not None else []
    lines = [*average, *comparison.categories, *comparison.datasets]
    return {
        "sentences": {lang.value: _sentences(comparison, lang) for lang in Lang},
        "remarks": list(comparison.remarks),
        "lines": {
            line.name: [
                _short(line.difference),
                *(map(_short, line.ci95) if line.ci95 else (None, None)),
                _short(line.p),
                _short(line.p_holm),
                line.verdict,
            ]
            for line in lines
        },
    }


def _sentences(comparison: Comparison, lang: Lang) -> list[str]:
    before = words.chosen()
    words.use(lang)
    try:
        return sentences(comparison)
    finally:
        words.use(before)
