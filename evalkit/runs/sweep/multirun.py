"""Many jobs from one command line (-m): one after another on this machine, or by SLURM."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evalkit.core.config import Config, ModelConfig, given_model
from evalkit.core.errors import EvalkitError, InputError, reason
from evalkit.core.options import WORDS, CommandLine, load_config
from evalkit.core.secrets import public_address
from evalkit.core.signals import signals_stop_the_run
from evalkit.runs.jobs import INTERRUPTED, STOP_SECONDS, Job, run_in_child
from evalkit.runs.suite import check_run
from evalkit.runs.sweep.launchers import LocalOptions, SlurmOptions, check_launcher
from evalkit.runs.sweep.submitted import Queue, slurm_text
from evalkit.runs.sweep.values import expand

# The folder for the files of sweeps, below the results; hidden, so it is never taken for results.
SWEEPS = ".sweeps"
# The options that tell one model from another.
_SOURCES = ("path", "revision", "pypi", "random")
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
    for config in configs if line.verb == "run" else ():
        given_model(config.model)
        check_run(config)
    _refuse_a_shared_server(configs)
    folder = _sweep_folder(configs[0].out)
    models = [_name(config.model) for config in configs]
    paths = _write_jobs(expanded, models, folder)
    print(f"{len(paths)} jobs, launcher {launcher}: {folder}", flush=True)
    interrupted, going = _launch(folder, paths, options, run_job)
    ended = [Job.read(path) for path in paths]
    going = {at: name for at, name in going.items() if ended[at].code in (None, INTERRUPTED)}
    print()
    for text in lines(ended, going):
        print(text)
    return exit_code(ended, interrupted=interrupted)


def _refuse_a_shared_server(configs: Sequence[Config]) -> None:
    """Refuses jobs of different models that a server would answer with one."""
    asked: dict[tuple[str, str | None], ModelConfig] = {}
    for config in configs:
        model, engine = config.model, config.engine
        if engine.name != "api" or model is None or model.served:
            continue
        from evalkit.engines.servers.server_facts import addresses

        for address in addresses(engine):
            first = asked.setdefault((address, engine.model), model)
            if any(getattr(first, key) != getattr(model, key) for key in _SOURCES):
                raise InputError(
                    f"one server would answer for different models: {_name(first)} and {_name(model)}",
                    where=f"engine.base_url={public_address(address)}",
                    fix="-m model=served model.name=NAME,NAME (as the server knows them), "
                    "or a command for each model, with engine.model=NAME",
                )


def _sweep_folder(out: str | None) -> Path:
    results = Path(out or "results").expanduser().resolve()
    return results / SWEEPS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def _write_jobs(commands: Sequence[CommandLine], models: Sequence[str], folder: Path) -> list[Path]:
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
) -> tuple[bool, Mapping[int, str]]:
    """Runs the jobs, by submitit where the launcher has `options`.

    Returns:
        Whether it was interrupted, and the jobs that go on in SLURM: position and SLURM's name.

    Raises:
        EvalkitError: none of them could be started.
    """
    queue = None
    # Jobs of SLURM go on, also those that run on this machine.
    first = None if isinstance(options, SlurmOptions) else lambda: _stop_jobs(paths)
    try:
        with signals_stop_the_run(first=first):
            if options is None:
                # An interrupted job ends the multirun.
                return any(run_in_child(path) == INTERRUPTED for path in paths), {}
            queue = Queue.submit(folder / "slurm", paths, options, run_job)
            queue.wait(paths)
    except KeyboardInterrupt:
        return True, {at: queue.ids[at] for at in queue.open} if queue and queue.slurm else {}
    except EvalkitError:
        raise
    # SLURM's commands and submitit raise exceptions of any type.
    except Exception as error:
        text = slurm_text(str(error))
        why = f"the launcher failed: {text if ' ' in text else reason(error)}"
        if queue is None:
            fix = "evalkit list launchers --long" if isinstance(options, SlurmOptions) else None
            raise EvalkitError(why, where=str(folder), fix=fix) from error
        for path, job in zip(paths, map(Job.read, paths), strict=True):
            if job.code is None:
                replace(job, code=_FAILED, why=why).write(path)
    return False, {}


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


def lines(jobs: Sequence[Job], going: Mapping[int, str]) -> list[str]:
    """What to print: how many are fine, then each job with its run folder or what went wrong.

    `going` are the jobs that go on in SLURM: position and SLURM's name.
    """
    fine = sum(job.code == 0 for job in jobs)
    width = max(len(job.label) for job in jobs)
    what = "job" if len(jobs) == 1 else "jobs"
    shown = [f"{len(jobs)} {what}: {fine} ok" + (f", {len(jobs) - fine} not" if fine < len(jobs) else "")]
    for number, job in enumerate(jobs):
        state, why = _state(job), job.why or "it never started"
        if number in going:
            state, why = "unfinished", f"it goes on as SLURM job {going[number]}"
        parts = [f"{number + 1:>4}  {job.label:<{width}}  {state:<11}  {job.folder or '-'}"]
        if job.code != 0:
            parts.append(why)
            if job.log and Path(job.log).exists():
                parts.append(f"log: {job.log}")
        shown.append("  ".join(parts))
    if going:
        array = min(going.values()).partition("_")[0]
        shown.append(f"stop the jobs that go on: scancel {array} (nothing they finished is lost)")
    return shown


def _state(job: Job) -> str:
    if job.code is None:
        return "unfinished"
    return {0: "ok", INTERRUPTED: "interrupted"}.get(job.code, "failed")
