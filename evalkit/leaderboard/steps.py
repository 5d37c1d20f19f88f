"""Checkpoints of one model: the step of each run, and the figures step by step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from evalkit.core.errors import InputError
from evalkit.core.text import step_of
from evalkit.leaderboard.compare import Compared, Comparison, compare
from evalkit.leaderboard.rows import JASTER_COLUMNS, NO_FIGURE, BoardRow, jaster_row
from evalkit.leaderboard.runs import FinishedRun
from evalkit.records.results import Figure

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Checkpoint:
    """A run of a model at a training step; `series` is the model's name without the step.

    `gain` compares it with the checkpoint before; None for the first.
    """

    series: str
    step: int
    run: FinishedRun
    gain: Comparison | None = None

    @property
    def cells(self) -> Mapping[str, Figure]:
        """Its figures by column of the card, or by dataset where its suite covers no category."""
        row = jaster_row(self.run)
        return row.cells or row.datasets

    @property
    def gains(self) -> Mapping[str, Compared]:
        """Its differences to the checkpoint before, by the columns of `cells`."""
        if self.gain is None:
            return {}
        average = [self.gain.average] if self.gain.average else []
        of_datasets = {f"{line.name}_{line.metric}": line for line in self.gain.datasets}
        return of_datasets | {line.name: line for line in (*self.gain.categories, *average)}


def checkpoint_of(run: FinishedRun) -> Checkpoint | None:
    """The checkpoint a run is of: by the model's name, else by the folder it was read from."""
    path = str(run.results.run.get("identity", {}).get("model", {}).get("path", ""))
    for name in (run.model, path):
        if found := step_of(name):
            return Checkpoint(*found, run)
    return None


def step_of_row(row: BoardRow) -> tuple[str, int] | None:
    """The series and the step of a row: by its run, else by its name; None when they give no step."""
    point = checkpoint_of(row.run) if row.run else None
    return (point.series, point.step) if point else step_of(row.model)


def trace(
    runs: Sequence[FinishedRun], *, partial: bool, across_rules: bool = False, resamples: int
) -> list[Checkpoint]:
    """The checkpoints in the order of their steps, each compared with the one before it.

    Raises:
        InputError: a run without a step, runs of several models, two runs of one step, or two that do
            not compare.
    """
    checkpoints = _ordered(runs)
    gains = [
        compare(now.run, before.run, partial=partial, across_rules=across_rules, resamples=resamples)
        for before, now in pairwise(checkpoints)
    ]
    return [replace(one, gain=gain) for one, gain in zip(checkpoints, [None, *gains], strict=True)]


def _ordered(runs: Sequence[FinishedRun]) -> list[Checkpoint]:
    checkpoints = []
    for run in runs:
        found = checkpoint_of(run)
        if found is None:
            raise InputError(
                f"{run.model}: its name tells no training step",
                where=run.folder,
                fix="model.name=NAME-step-1000 when it is evaluated",
            )
        checkpoints.append(found)
    names = sorted({checkpoint.series for checkpoint in checkpoints})
    if len(names) > 1:
        raise InputError(
            f"these are checkpoints of several models: {', '.join(names)}", fix="name those of one model"
        )
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
    for one, other in pairwise(ordered):
        if one.step == other.step:
            raise InputError(
                f"step {one.step} is there twice", where=f"{one.run.folder} and {other.run.folder}"
            )
    return ordered


def columns_of(points: Sequence[Checkpoint]) -> list[str]:
    """The columns of the card that any step has, else the datasets."""
    there = {name for point in points for name in point.cells}
    known = [column for column in JASTER_COLUMNS if column in there]
    return known or sorted(there)


def steps_frame(points: Sequence[Checkpoint]) -> "pd.DataFrame":
    """One line per step: figures and the ends of their intervals."""
    import pandas as pd

    rows = []
    for point in points:
        row: dict[str, object] = {"model": point.run.model, "step": point.step}
        for column in columns_of(points):
            cell = point.cells.get(column, NO_FIGURE)
            row[column] = cell.value
            row[f"{column}_low"], row[f"{column}_high"] = cell.ci95 or (None, None)
        rows.append(row)
    return pd.DataFrame(rows)
