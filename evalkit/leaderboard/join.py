"""Runs of one model, made apart -> one run: suites, categories and own tasks in one row.

Runs join in the categories when all that decides a figure is equal, the datasets aside: model, engine,
precision, the way of asking, and the number of samples. Other suites and own tasks have columns of their
own under their own rules: there the model and its precision must be equal.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.reasons import Reason
from evalkit.leaderboard.runs import ASIDE_OPTIONS, FinishedRun, model_of
from evalkit.scoring.categories import (
    MISSING_DATASET,
    OWN_DATASET,
    PER_DATASET,
    category_members,
    join_results,
)

NEWER = "a newer run of the model is shown"
FULLER = "a more complete run of the model is shown"


@dataclass(frozen=True)
class LeftOut:
    """A folder or file that is not shown, and why; `beside` is the folder shown in its place."""

    path: Path
    reason: str
    model: str = ""
    beside: Path | None = None


def join_runs(runs: Sequence[FinishedRun], *, partial: bool) -> tuple[list[FinishedRun], list[LeftOut]]:
    """One run for each row of a board, and the runs that are in none.

    Without `partial` only what is complete is taken; a category may become complete by joining.
    """
    left_out: list[LeftOut] = []
    groups: dict[tuple[str, str], list[FinishedRun]] = {}
    others = []
    members = {name for names in category_members().values() for name in names}
    for run in sorted(runs, key=lambda run: (-run.completeness, -run.finished)):
        if not partial and _lasting_reasons(run):
            left_out.append(_refused(run))
        elif members & run.results.datasets.keys():
            groups.setdefault((run.model, run.protocol), []).append(run)
        else:
            others.append(run)
    rows = [row for group in groups.values() for row in _joined_group(group, left_out, partial=partial)]
    rows.sort(key=lambda run: -run.completeness)
    for run in others:
        _attach(rows, run, left_out)
    return rows, left_out


def _joined_group(
    group: Sequence[FinishedRun], left_out: list[LeftOut], *, partial: bool
) -> list[FinishedRun]:
    """The runs that runs of one model and protocol make, the best first: one for each weights of COMET."""
    if not group:
        return []
    best, taken = group[0], [group[0]]
    without, others = [], []
    for run in group[1:]:
        if any(_other_weights(one, run) for one in taken):
            others.append(run)
        elif not _adds(taken, run):
            why = NEWER if run.completeness == best.completeness else FULLER
            without.append(LeftOut(run.folder, why, run.model, best.folder))
        elif differing := _differing(_conditions(best), _conditions(run)):
            why = Reason("not joined with the model's other runs: {what} differs", what=", ".join(differing))
            without.append(LeftOut(run.folder, why, run.model, best.folder))
        else:
            taken.append(run)
    joined = _joined(taken)
    if not partial:
        open_ones = joined.results.partial.categories.keys()
        kept = [run for run in taken if not open_ones & run.results.partial.categories.keys()]
        if len(kept) < len(taken):
            left_out += [_refused(run) for run in taken if run not in kept]
            rest = [run for run in group if run in kept or run not in taken]
            return _joined_group(rest, left_out, partial=False)
    left_out += without
    return [joined, *_joined_group(others, left_out, partial=partial)]


def _attach(rows: list[FinishedRun], run: FinishedRun, left_out: list[LeftOut]) -> None:
    """Adds a run without categories to the model's row, or as a row of its own."""
    for place, row in enumerate(rows):
        if row.model != run.model:
            continue
        shared = row.results.datasets.keys() & run.results.datasets.keys()
        if any(row.leaf(name).rules != run.rules for name in shared):
            continue
        if not _adds([row], run):
            left_out.append(LeftOut(run.folder, NEWER, run.model, row.leaf(min(shared)).folder))
            return
        if not other_model(row.identity, run.identity):
            rows[place] = _joined([*row.leaves, run])
            return
    rows.append(run)


def _joined(runs: Sequence[FinishedRun]) -> FinishedRun:
    """The joined run; a single one stays as it is, but for own datasets in its categories."""
    first = runs[0]
    own = (why for whys in first.results.partial.categories.values() for why in whys)
    if len(runs) == 1 and OWN_DATASET not in map(_template, own):
        return first
    folders = [run.folder for run in runs]
    return FinishedRun(
        folder=Path(os.path.commonpath(map(os.path.abspath, folders))) if len(runs) > 1 else first.folder,
        results=join_results([(run.results, run.folder) for run in runs]),
        finished=max(run.finished for run in runs),
        label=first.label,
        parts=tuple(runs),
    )


def _adds(taken: Sequence[FinishedRun], run: FinishedRun) -> bool:
    """Whether a run has a dataset that none of these has."""
    return any(all(name not in one.results.datasets for one in taken) for name in run.results.datasets)


def _other_weights(a: FinishedRun, b: FinishedRun) -> bool:
    """Whether their figures are of other weights of COMET, by choice: a newer version of it is no choice."""
    return a.own_comet != b.own_comet and len({a.comet, b.comet} - {None}) == 2


def _refused(run: FinishedRun) -> LeftOut:
    reason = Reason("partial: {reasons} (--partial shows it)", reasons=run.reasons)
    return LeftOut(run.folder, reason, run.model)


def _lasting_reasons(run: FinishedRun) -> list[str]:
    """Why a run is partial, but for datasets that are missing, which another run may have."""
    partial = run.results.partial
    reasons = [*partial.reasons, *(why for whys in partial.categories.values() for why in whys)]
    return [why for why in reasons if _template(why) not in (MISSING_DATASET, OWN_DATASET)]


def _template(why: str) -> str:
    return getattr(why, "template", "")


def _conditions(run: FinishedRun) -> dict[str, Any]:
    """All that decides a run's figures, its datasets aside."""
    identity, options = run.identity, run.results.protocol.options
    sampling = bool(options.get("generation.do_sample") or options.get("generation.from_model"))
    passed_over = {*PER_DATASET, *(() if sampling else ("seed",))}
    of_tasks = "suite.num_few_shots."
    aside = set(ASIDE_OPTIONS) - {"limit"}
    return {
        **{key: value for key, value in identity.items() if key not in passed_over},
        **{key: value for key, value in options.items() if key not in aside and not key.startswith(of_tasks)},
    }


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def other_model(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Which of model and precision two identities contradict each other in.

    A served model's weights are not known, nor those behind completions made elsewhere: they are taken to be
    those of the name.
    """
    found = []
    models = [model_of(one) for one in (a, b)]
    if models[0].keys() == models[1].keys() and models[0] != models[1]:
        found.append("model")
    types = [one.get("dtype") for one in (a, b)]
    served = any("server" in model for model in models)
    if all(types) and "server" not in types and not served and types[0] != types[1]:
        found.append("dtype")
    return found
