"""Many jobs from one command line (-m): one after another on this machine, or by SLURM."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.options import WORDS, CommandLine, load_config
from evalkit.runs.sweep.launchers import check_launcher
from evalkit.runs.sweep.values import expand

if TYPE_CHECKING:
    from evalkit.core.config import Config
    from evalkit.runs.jobs import Job
    from evalkit.runs.sweep.launchers import LocalOptions

# The folder for the files of sweeps, below the results; hidden, so it is never taken for results.
SWEEPS = ".sweeps"
STOP_SECONDS = 60.0
INTERRUPTED = 130
# Of a job that never came to say how it ended.
_FAILED = 1


def multirun(line: CommandLine, run_job: Callable[[Path], int]) -> int:
    """Runs every job of a command line, prints how each ended, and returns the exit code.

    A job that fails does not stop the others. `run_job` runs the job of a file in the process it is
    called in, and returns its exit code.

    Raises:
        InputError: the command line of a job is wrong, or the launcher or its options; nothing ran.
    """
    if line.verb in WORDS:
        raise InputError(f"the verb {line.verb} has no -m", fix="-m is for verbs whose options are key=value")
    launcher, options = check_launcher(line.launcher)
    expanded = expand(line)
    configs = [load_config(single) for single in expanded]
    if any(config.watch is not None for config in configs):
        raise InputError("watch= is for one command of its own, without -m")
    folder = _sweep_folder(configs[0])
    jobs = _jobs(expanded, configs, folder, own_log=options is not None)
    print(f"{len(jobs)} jobs, launcher {launcher}: {folder}", flush=True)
    interrupted = _launch(folder, len(jobs), options, run_job)
    ended = _read(folder, len(jobs))
    print()
    for text in lines(ended):
        print(text)
    if interrupted and launcher == "slurm":
        print("jobs that SLURM has taken go on: scancel stops them; nothing they finished is lost")
    return exit_code(ended, interrupted=interrupted)


def _sweep_folder(config: "Config") -> Path:
    results = Path(config.out or "results").expanduser().resolve()
    return results / SWEEPS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def _jobs(
    lines: Sequence[CommandLine], configs: Sequence["Config"], folder: Path, *, own_log: bool
) -> "list[Job]":
    """Writes the file of every job."""
    from evalkit.runs.jobs import Job

    swept = _swept(lines)
    jobs = []
    for number, (line, config) in enumerate(zip(lines, configs, strict=True)):
        path = _job_path(folder, number)
        flags = [f"--{key.replace('_', '-')}" for key, value in line.flags if value is True]
        flags += [f"--{key}={value}" for key, value in line.flags if value is not True]
        jobs.append(
            Job(
                words=(line.verb, *line.overrides, *flags),
                label=" ".join([_model(config), *(line.overrides[index] for index in swept)]).strip(),
                directory=str(Path.cwd()),
                log=str(path.with_suffix(".log")) if own_log else None,
            ).write(path)
        )
    return jobs


def _swept(lines: Sequence[CommandLine]) -> list[int]:
    """The positions of the words that differ between jobs, the model's name apart."""
    return [
        index
        for index, word in enumerate(lines[0].overrides)
        if not word.startswith("model=") and len({line.overrides[index] for line in lines}) > 1
    ]


def _model(config: "Config") -> str:
    if config.model is None:
        return ""
    return config.model.name or Path(config.model.path or "model").name


def _read(folder: Path, count: int) -> "list[Job]":
    from evalkit.runs.jobs import Job

    return [Job.read(_job_path(folder, number)) for number in range(count)]


def _launch(folder: Path, count: int, options: "LocalOptions | None", run_job: Callable[[Path], int]) -> bool:
    """Runs the jobs, by SLURM or its stand-in when it has `options`; whether it was interrupted.

    Raises:
        EvalkitError: none of them could be started.
    """
    from evalkit.core.signals import signals_stop_the_run

    paths = [_job_path(folder, number) for number in range(count)]
    try:
        with signals_stop_the_run(first=lambda: _stop_jobs(folder, count)):
            if options is None:
                return _one_after_another(paths)
            from evalkit.runs.sweep.launchers import launch

            lost = launch(folder / "slurm", paths, options, run_job)
    except KeyboardInterrupt:
        return True
    except EvalkitError:
        raise
    # SLURM's commands and submitit raise whatever they meet.
    except Exception as error:
        why = f"the launcher failed: {type(error).__name__}: {_first_line(error)}"
        if all(job.pid is None for job in _read(folder, count)):
            raise EvalkitError(why, where=str(folder)) from error
        lost = [why] * count
    for path, job, reason in zip(paths, _read(folder, count), lost, strict=True):
        if job.code is None and reason is not None:
            replace(job, code=1, why=reason).write(path)
    return False


def _one_after_another(paths: Sequence[Path]) -> bool:
    """Runs each job in a process of its own; whether one was interrupted, which ends the multirun."""
    from evalkit.runs.jobs import run_in_child

    return any(run_in_child(path) == INTERRUPTED for path in paths)


def _job_path(folder: Path, number: int) -> Path:
    """The file of a job; numbers start at 0, people count from 1."""
    return folder / f"{number + 1:04}.json"


def _stop_jobs(folder: Path, count: int) -> None:
    """Asks the jobs that run on this machine to stop, and waits until they have saved their work."""
    for job in _read(folder, count):
        job.stop()
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(job.runs_here for job in _read(folder, count)):
        time.sleep(0.1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def exit_code(jobs: Sequence[Job], *, interrupted: bool) -> int:
    """0 when every job is fine, 130 when the multirun was interrupted, else the largest of the jobs'."""
    if interrupted:
        return INTERRUPTED
    return max(_FAILED if job.code is None else job.code for job in jobs)


def lines(jobs: Sequence[Job]) -> list[str]:
    """What to print: how many are fine, then each job with its run folder or what went wrong."""
    fine = sum(job.code == 0 for job in jobs)
    width = max(len(job.label) for job in jobs)
    what = "job" if len(jobs) == 1 else "jobs"
    shown = [f"{len(jobs)} {what}: {fine} ok" + (f", {len(jobs) - fine} not" if fine < len(jobs) else "")]
    for number, job in enumerate(jobs, 1):
        parts = [f"{number:>4}  {job.label:<{width}}  {_state(job):<11}  {job.folder or '-'}"]
        if job.code != 0:
            parts.append(job.why or "it never started")
            if job.log:
                parts.append(f"log: {job.log}")
        shown.append("  ".join(parts))
    return shown


def _state(job: Job) -> str:
    if job.code is None:
        return "unfinished"
    return {0: "ok", INTERRUPTED: "interrupted"}.get(job.code, "failed")
