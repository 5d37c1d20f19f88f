"""Many jobs from one command line (-m), run by a Hydra launcher.

Hydra's compose API serves single runs; here its multirun does the work, with one number per job as
the whole configuration (conf/multirun.yaml). `hydra.main` itself would print tracebacks, exit with
its own codes and keep the results of the jobs to itself.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit import assets
from evalkit.cli.options import WORDS, CommandLine, load_config
from evalkit.errors import EvalkitError, InputError
from evalkit.sweep.expand import expand
from evalkit.sweep.launchers import check_launcher, check_options

if TYPE_CHECKING:
    from evalkit.config import Config
    from evalkit.jobs.record import Job

# The folder for the files of sweeps, below the results; hidden, so it is never taken for results.
SWEEPS = ".sweeps"
STOP_SECONDS = 60.0


def multirun(line: CommandLine) -> int:
    """Runs every job of a command line, prints how each ended, and returns the exit code.

    A job that fails does not stop the others.

    Raises:
        InputError: the command line of a job is wrong, or the launcher or its options; nothing ran.
    """
    from evalkit.sweep.report import exit_code, lines

    if line.verb in WORDS:
        raise InputError(f"the verb {line.verb} has no -m", fix="-m is for verbs whose options are key=value")
    launcher, words = check_launcher(line.launcher)
    expanded = expand(line)
    configs = [load_config(single) for single in expanded]
    if any(config.watch is not None for config in configs):
        raise InputError("watch= is for one command of its own, without -m")
    check_options(words, launcher)
    folder = _sweep_folder(configs[0])
    jobs = _jobs(expanded, configs, folder, own_log=launcher != "basic")
    print(f"{len(jobs)} jobs, launcher {launcher}: {folder}", flush=True)
    interrupted = _launch(folder, jobs, words)
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
    from evalkit.jobs.record import Job
    from evalkit.sweep.task import job_path

    swept = _swept(lines)
    jobs = []
    for number, (line, config) in enumerate(zip(lines, configs, strict=True)):
        path = job_path(folder, number)
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
    from evalkit.jobs.record import Job
    from evalkit.sweep.task import job_path

    return [Job.read(job_path(folder, number)) for number in range(count)]


def _launch(folder: Path, jobs: "Sequence[Job]", words: Sequence[str]) -> bool:
    """Has Hydra run the jobs; whether it was interrupted.

    Raises:
        EvalkitError: the launcher could not start any of them.
    """
    from evalkit.signals import signals_stop_the_run

    def stop_jobs() -> None:
        _stop_jobs(folder, len(jobs))

    try:
        with signals_stop_the_run(first=stop_jobs):
            returned = _hydra_multirun(folder, len(jobs), words)
    except KeyboardInterrupt:
        return True
    except EvalkitError:
        raise
    # A launcher raises whatever the system behind it raises.
    except Exception as error:
        returned = [f"the launcher failed: {type(error).__name__}: {_first_line(error)}"] * len(jobs)
        if all(job.pid is None for job in _read(folder, len(jobs))):
            raise EvalkitError(returned[0], where=" ".join(words) or None) from error
    _note_lost(folder, returned)
    return False


def _hydra_multirun(folder: Path, count: int, words: Sequence[str]) -> list[Any]:
    """What the jobs returned: an exit code, or a text that says why there is none."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.types import Quote, QuotedString

    from evalkit.sweep.task import SweepTask

    place = QuotedString(str(folder).replace("${", "\\${"), Quote.single).with_quotes()
    overrides = [f"job=range(0,{count})", f"hydra.sweep.dir={place}", *words]
    with initialize_config_dir(config_dir=str(assets.CONF), version_base="1.3", job_name="evalkit"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        batches = hydra.multirun("multirun", SweepTask(folder, os.getpid()), overrides)
    return [job.return_value for batch in batches for job in batch]


def _note_lost(folder: Path, returned: Sequence[Any]) -> None:
    """Writes into the files of jobs that did not say how they ended what the launcher says."""
    from evalkit.sweep.task import job_path

    for number, (job, value) in enumerate(zip(_read(folder, len(returned)), returned, strict=True)):
        if job.code is None and isinstance(value, str):
            replace(job, code=1, why=value).write(job_path(folder, number))


def _stop_jobs(folder: Path, count: int) -> None:
    """Asks the jobs that run on this machine to stop, and waits until they have saved their work."""
    for job in _read(folder, count):
        job.stop()
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(job.runs_here for job in _read(folder, count)):
        time.sleep(0.1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
