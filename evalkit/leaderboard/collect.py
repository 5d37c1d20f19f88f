"""Folders -> the runs in them, and the reason for every one that cannot be shown."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalkit.durable import read_checked_json, read_log
from evalkit.errors import InputError
from evalkit.leaderboard.rows import MtBenchRun, Run
from evalkit.mtbench.results import with_own_intervals
from evalkit.records import RunDirectory
from evalkit.results import Results, read_results
from evalkit.suites import with_intervals

RESULTS = "results.json"
# Files that only a run directory has, finished or not.
_MARKS = ("samples", "config.yaml", "mt_bench.json")


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
    foreign: list[Path] = field(default_factory=list)
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
            found.foreign.append(place)
            continue
        for folder in _run_folders(place, found, seen):
            _add(found, folder)
    _drop_copies(found)
    found.mt_bench = _marked(found.mt_bench)
    return found


def _run_folders(place: Path, found: Collection, seen: set[Path]) -> Iterator[Path]:
    """The run directories at or below a folder, in order; what lies inside one is its own.

    A folder that links or the command line lead to twice counts once.
    """
    if (real := place.resolve()) in seen:
        return
    seen.add(real)
    if (place / RESULTS).exists() or any((place / mark).exists() for mark in _MARKS):
        yield place
        return
    try:
        inner = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        found.left_out.append(LeftOut(place, f"the folder cannot be read: {error.strerror}"))
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
        found.left_out.append(LeftOut(folder, f"results.json cannot be read: {error}"))
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        found.left_out.append(LeftOut(folder, f"results.json does not fit its schema: {error!r}"))
    else:
        found.runs.append(Run(folder, results, path.stat().st_mtime))


def _check_scores(folder: Path, results: Results) -> None:
    """A results.json whose scores are gone, torn or fewer is a damaged run."""
    directory = RunDirectory(folder)
    fix = f"python -m evalkit score run={folder}"
    for name, rates in results.datasets.items():
        path = directory.scores_path(name)
        if not path.exists():
            raise InputError(f"damaged: scores/{name}.jsonl is not there; {fix}")
        rows, damaged = read_log(path)
        if damaged or len(rows) != rates.n:
            what = f"damaged lines: {damaged}" if damaged else f"{len(rows)} of {rates.n} samples"
            raise InputError(f"damaged: scores/{name}.jsonl: {what}; {fix}")


def _mt_bench(folder: Path, content: dict[str, Any]) -> list[MtBenchRun]:
    if content.get("schema_version") != 1:
        raise InputError(f"MT-Bench results of schema version {content.get('schema_version')}, not 1")
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
    """Keeps the newest of folders that hold one and the same run."""
    kept: dict[str, Run] = {}
    for run in sorted(found.runs, key=lambda run: -run.finished):
        name = run.results.run.get("id") or str(run.folder)
        key = json.dumps([name, run.results.protocol.options], default=str)
        if key in kept:
            found.left_out.append(LeftOut(run.folder, f"the same run as {kept[key].folder}"))
        else:
            kept[key] = run
    found.runs = list(kept.values())


def _marked(runs: Sequence[MtBenchRun]) -> list[MtBenchRun]:
    """Where presets of one name say different things, each run's rules name which one it is."""
    hashes: dict[str, set[str]] = {}
    for run in runs:
        hashes.setdefault(run.rules, set()).add(run.preset_sha256)
    return [
        replace(run, mark=f" {run.preset_sha256[:8]}") if len(hashes[run.rules]) > 1 else run for run in runs
    ]
