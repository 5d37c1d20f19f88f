"""Checkpoints of one model: which step a run is of, and the scores step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from evalkit.core.errors import InputError
from evalkit.core.text import step_of
from evalkit.leaderboard.rows import Run


@dataclass(frozen=True)
class Checkpoint:
    """A run of a model at a training step; `series` is the model's name without the step."""

    series: str
    step: int
    run: Run


def checkpoint_of(run: Run) -> Checkpoint | None:
    """The checkpoint a run is of: by the model's name, else by the folder it was read from."""
    path = str(run.results.run.get("identity", {}).get("model", {}).get("path", ""))
    for name in (run.model, path):
        if found := step_of(name):
            return Checkpoint(*found, run)
    return None


def series_of(runs: Sequence[Run]) -> list[Checkpoint]:
    """The runs in the order of their steps.

    Raises:
        InputError: a run without a step, runs of several models, or two runs of one step.
    """
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
