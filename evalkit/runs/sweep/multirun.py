"""Many jobs from one command line (-m): one after another on this machine, or by SLURM."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from evalkit.core.config import ModelConfig
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.options import WORDS, CommandLine, load_config
from evalkit.core.signals import signals_stop_the_run
from evalkit.runs.jobs import INTERRUPTED, STOP_SECONDS, Job, run_in_child
from evalkit.runs.sweep.launchers import LocalOptions, check_launcher, submit
from evalkit.runs.sweep.values import expand

# The folder for the files of sweeps, below the results; hidden, so it is never taken for results.
SWEEPS = ".sweeps"
# The code of a job that recorded none.
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
    folder = _sweep_folder(configs[0].out)
    models = [_name(config.model) for config in configs]
    paths = _write_jobs(expanded, models, folder, own_log=options is not None)
    print(f"{len(paths)} jobs, launcher {launcher}: {folder}", flush=True)
    interrupted = _launch(folder, paths, options, run_job)
    ended = [Job.read(path) for path in paths]
    print()
    for text in lines(ended):
        print(text)
    if interrupted and launcher == "slurm":
        print("jobs that SLURM has taken go on: scancel stops them; nothing they finished is lost")
    return exit_code(ended, interrupted=interrupted)


def _sweep_folder(out: str | None) -> Path:
    results = Path(out or "results").expanduser().resolve()
    return results / SWEEPS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def _write_jobs(
    commands: Sequence[CommandLine], models: Sequence[str], folder: Path, *, own_log: bool
) -> list[Path]:
    """Writes the file of every job; returns their paths."""
    swept = _swept(commands)
    paths = []
    for number, (line, model) in enumerate(zip(commands, models, strict=True), 1):
        path = folder / f"{number:04}.json"
        flags = [f"--{key.replace('_', '-')}" for key, value in line.flags if value is True]
        flags += [f"--{key}={value}" for key, value in line.flags if value is not True]
        Job(
            words=(line.verb, *line.overrides, *flags),
            label=" ".join([model, *(line.overrides[index] for index in swept)]).strip(),
            directory=str(Path.cwd()),
            log=str(path.with_suffix(".log")) if own_log else None,
        ).write(path)
        paths.append(path)
    return paths


def _swept(commands: Sequence[CommandLine]) -> list[int]:
    """The positions of the words that differ between jobs, the model's name apart."""
    return [
        index
        for index, word in enumerate(commands[0].overrides)
        if not word.startswith("model=") and len({line.overrides[index] for line in commands}) > 1
    ]


def _name(model: ModelConfig | None) -> str:
    return "" if model is None else model.name or Path(model.path or "model").name


def _launch(
    folder: Path, paths: Sequence[Path], options: LocalOptions | None, run_job: Callable[[Path], int]
) -> bool:
    """Runs the jobs, by submitit where the launcher has `options`; returns whether it was interrupted.

    Raises:
        EvalkitError: none of them could be started.
    """
    try:
        with signals_stop_the_run(first=lambda: _stop_jobs(paths)):
            if options is None:
                # An interrupted job ends the multirun.
                return any(run_in_child(path) == INTERRUPTED for path in paths)
            lost = submit(folder / "slurm", paths, options, run_job)
    except KeyboardInterrupt:
        return True
    except EvalkitError:
        raise
    # SLURM's commands and submitit raise exceptions of any type.
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        why = f"the launcher failed: {type(error).__name__}: {first}"
        if all(job.pid is None for job in map(Job.read, paths)):
            raise EvalkitError(why, where=str(folder)) from error
        lost = [why] * len(paths)
    for path, job, reason in zip(paths, map(Job.read, paths), lost, strict=True):
        if job.code is None and reason is not None:
            replace(job, code=1, why=reason).write(path)
    return False


def _stop_jobs(paths: Sequence[Path]) -> None:
    """Asks the jobs that run on this machine to stop, and waits until they have saved their work."""
    for job in map(Job.read, paths):
        job.stop()
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(job.runs_here for job in map(Job.read, paths)):
        time.sleep(0.1)


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
