"""Folders -> the finished runs in them, and the reason for every folder that is not used."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalkit.core.durable import read_checked_json, read_log
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason, with_sentences
from evalkit.leaderboard.join import LeftOut, join_runs
from evalkit.leaderboard.runs import FinishedRun, JudgedRun, contested
from evalkit.mtbench.model_tables import with_own_intervals
from evalkit.records.results import Results, read_results
from evalkit.records.run_folder import RESULTS, RunDirectory, run_folders
from evalkit.scoring.categories import with_intervals

_OF_THE_RUN = ("metric_versions", "protocol", "deviations")


@dataclass
class Collection:
    """What lies below the folders: runs, MT-Bench tables, files of llm-jp-eval, and the rest."""

    runs: list[FinishedRun] = field(default_factory=list)
    mt_bench: list[JudgedRun] = field(default_factory=list)
    llm_jp_eval: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def unreadable(self, place: Path, error: OSError) -> None:
        """Adds a folder that cannot be searched."""
        why = Reason("the folder cannot be read: {error}", error=error.strerror)
        self.left_out.append(LeftOut(place, why))


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
        for folder in run_folders(place, seen, found.unreadable):
            _add(found, folder)
    _drop_copies(found)
    apart = contested([run.rules for run in found.mt_bench], [run.facts for run in found.mt_bench])
    names = [f"{run.model}, {run.rules}" for run in found.mt_bench]
    models = contested(names, [run.model_facts for run in found.mt_bench])
    marks = zip(found.mt_bench, apart, models, strict=True)
    found.mt_bench = [run.marked(facts, model) for run, facts, model in marks]
    return found


def _add(found: Collection, folder: Path) -> None:
    path = folder / RESULTS
    if not path.exists():
        found.left_out.append(LeftOut(folder, "not finished: the same command continues it"))
        return
    try:
        content = read_checked_json(path)
        kind = str(content.get("kind", ""))
        if kind.startswith("mt_bench_") or ("pairwise" in content and not content.get("tables")):
            # Pairwise matches have no row.
            return
        if kind == "mt_bench":
            found.mt_bench += _mt_bench(folder, content)
            return
        results = read_results(path)
        scores = _checked_scores(folder, results)
        finished = path.stat().st_mtime
        found.runs.append(FinishedRun(folder, with_intervals(results, folder), finished, _scores=scores))
    except InputError as error:
        found.left_out.append(LeftOut(folder, error.what))
    except (OSError, ValueError) as error:
        found.left_out.append(LeftOut(folder, Reason("results.json cannot be read: {error}", error=error)))
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        why = Reason("results.json does not fit its schema: {error}", error=repr(error))
        found.left_out.append(LeftOut(folder, why))


def _checked_scores(folder: Path, results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """The lines of scores/ by dataset and sample, which has every sample that results.json counts.

    Raises:
        InputError: a file is missing, damaged or shorter.
    """
    directory = RunDirectory(folder)
    fix = f"evalkit score run={folder}"
    found = {}
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
        # What every line says of the run takes memory that thousands of runs do not have.
        found[name] = {
            key: {name: value for name, value in row.items() if name not in _OF_THE_RUN}
            for key, row in rows.items()
        }
    return found


def _mt_bench(folder: Path, content: dict[str, Any]) -> list[JudgedRun]:
    if content.get("schema_version") != 1:
        found = content.get("schema_version")
        raise InputError(Reason("MT-Bench results of schema version {found}, not 1", found=found))
    content = with_sentences(content, content.get("sentences"))
    tables = content["tables"]
    if not isinstance(tables, dict) or not tables:
        raise InputError("no answers were judged yet: evalkit judge run=DIR")
    finished = (folder / RESULTS).stat().st_mtime
    runs = [JudgedRun(folder, model, content, finished) for model in tables]
    for run in runs:
        run.check()
    sound = with_own_intervals(content, folder)
    return [replace(run, content=sound) for run in runs]


def _drop_copies(found: Collection) -> None:
    """Keeps the newest of several folders with the same run."""
    kept: dict[str, FinishedRun] = {}
    for run in sorted(found.runs, key=lambda run: -run.finished):
        name = run.results.run.get("id") or str(run.folder)
        key = json.dumps([name, run.results.protocol.options], default=str)
        if key in kept:
            why = "the same run as another folder"
            found.left_out.append(LeftOut(run.folder, why, run.model, kept[key].folder))
        else:
            kept[key] = run
    found.runs = list(kept.values())


def find_run(place: Path) -> FinishedRun:
    """The run of a folder: a run directory, or a folder with one finished run in it or runs that join.

    Raises:
        InputError: none, several, or an unfinished one.
    """
    found = collect([place])
    joined, left_out = join_runs(found.runs, partial=True)
    if len(joined) == 1 and not left_out:
        return joined[0]
    if found.runs:
        listed = "".join(f"\n  {run.folder}" for run in sorted(found.runs, key=lambda run: -run.finished))
        raise InputError(
            f"several runs are there, newest first:{listed}", where=place, fix="name one of them"
        )
    if found.mt_bench:
        raise InputError(
            "this is an MT-Bench run, and compare pairs the samples of llm-jp-eval's datasets",
            where=place,
            fix="evalkit pairwise RUN RUN judge=NAME, or leaderboard",
        )
    why = "".join(f"\n  {entry.path}: {entry.reason}" for entry in found.left_out)
    raise InputError(f"no finished run is there{why}", where=place)
