"""Python in two lines: `evalkit.evaluate` and `evalkit.load` (docs/python.md).

results = evalkit.evaluate(model="llm-jp/llm-jp-3-1.8b", suite="mc", limit=20)
frame = evalkit.load("results")
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.cli.command import environment_error, path_of, prepare_process, refuse_other_options
from evalkit.core.errors import InputError
from evalkit.core.options import CommandLine, load_config, words_of
from evalkit.core.progress import say
from evalkit.records.unpacked import put_back

if TYPE_CHECKING:
    import pandas as pd

    from evalkit.core.config import Config
    from evalkit.records.results import Results


def evaluate(
    model: str | os.PathLike[str],
    suite: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    **options: Any,
) -> "Results":
    """Evaluates a model, as `evalkit model=... suite=...` does, and returns what results.json holds.

    The same call again continues an unfinished run and finds a finished one. Progress goes to standard
    error. `run["folder"]` of the results is the run's folder.

    Args:
        model: a name of `evalkit list models`, a hub name, or a folder.
        suite: a name of `evalkit list suites`, a dataset, a task file, or several of these.
        options: every option of the verb run: `limit=20`; one with a full stop in its name as
            `**{"engine.batch_size": 8}` or `engine={"batch_size": 8}`.

    Raises:
        InputError: bad options or data; nothing was started.
        EvalkitError: something failed on the way; finished completions are kept.
        KeyboardInterrupt: Ctrl-C or a signal; finished completions are kept.
    """
    try:
        line = CommandLine("run", tuple(words_of({"model": model, "suite": suite, **options})))
        refuse_other_options(line)
        config = load_config(line)
        _check(config)
        from evalkit.runs.run import evaluate as run

        with put_back(path_of(config.data_dir)):
            prepare_process(config)
            outcome = run(config, say=say)
    except Exception as error:
        if known := environment_error(error):
            raise known from error
        raise
    return replace(outcome.results, run={**outcome.results.run, "folder": str(outcome.folder)})


def _check(config: "Config") -> None:
    if config.watch is not None:
        raise InputError("watch= belongs to the command line", fix="evalkit watch=FOLDER suite=NAME")
    if config.suite is not None and config.suite.mt_bench is not None:
        raise InputError(
            f"the answers to {config.suite.name} have no scores before a judge has read them",
            where="suite",
            fix=f"evalkit model=NAME suite={config.suite.name}, then evalkit judge run=FOLDER",
        )


def load(folder: str | os.PathLike[str], samples: bool = False) -> "pd.DataFrame":
    """The finished runs at or below a folder as one table, a line for each figure or each sample.

    Figures: `model`, `run` (the run id), `step` (of a checkpoint, else missing), `dataset`, `metric`,
    `value` (unrounded; missing where nothing could be computed), `low` and `high` (the 95 % interval;
    missing where there is none), `n` (samples behind it) and `partial` (whether it covers less than the
    protocol asks). Categories and AVG stand among the datasets, with the metric `score`; MT-Bench is the
    dataset `mt_bench`, its categories are the metrics.

    Args:
        folder: a results folder, or any folder in it.
        samples: a line for each sample and metric, with the further columns `id`, `input`, `gold`,
            `prediction`, `completion` and `finish_reason`.

    Raises:
        InputError: no such folder, or no finished run in it.
    """
    import pandas as pd

    from evalkit.leaderboard.collect import collect
    from evalkit.leaderboard.frames import FIGURE_COLUMNS, SAMPLE_COLUMNS, figure_rows, sample_rows
    from evalkit.leaderboard.runs import FinishedRun, JudgedRun

    place = Path(folder).expanduser()
    found = collect([place])
    runs: list[FinishedRun | JudgedRun] = [*found.runs, *found.mt_bench]
    left_out = "".join(f"\n  {entry.path}: {entry.reason}" for entry in found.left_out)
    if not runs:
        raise InputError(f"no finished run is there{left_out}", where=place)
    if left_out:
        warnings.warn(f"left out:{left_out}", stacklevel=2)
    rows, columns = (sample_rows, SAMPLE_COLUMNS) if samples else (figure_rows, FIGURE_COLUMNS)
    frame = pd.DataFrame((row for run in runs for row in rows(run)), columns=list(columns))
    numbers = {"value": "float64", "low": "float64", "high": "float64", "n": "int64", "step": "Int64"}
    return frame.astype(numbers)
