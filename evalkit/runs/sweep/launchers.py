"""The launchers of a multirun: `hydra/launcher=NAME hydra.launcher.KEY=VALUE`.

slurm submits the jobs as one job array through submitit; submitit_local does the same on this
machine, for trying it.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.core.errors import InputError
from evalkit.core.text import did_you_mean
from evalkit.runs.jobs import Job

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission


@dataclass
class LocalOptions:
    """`hydra.launcher.KEY=` of submitit_local: what sbatch calls them, and submitit's `timeout_min`.

    A job whose time is up goes back into the queue `max_num_timeout` times at most.
    """

    name: str = "evalkit"
    timeout_min: int = 600
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int | None = 0
    mem_gb: int | None = None
    stderr_to_stdout: bool = True
    max_num_timeout: int = 20


@dataclass
class SlurmOptions(LocalOptions):
    """`hydra.launcher.KEY=` of slurm; `additional_parameters` takes every other option of sbatch.

    `signal_delay_s` before the time is up a job gets a signal, saves and goes back into the queue.
    `setup` are shell commands that run before a job; `array_parallelism` jobs run at once at most.
    """

    cpus_per_task: int | None = 4
    gpus_per_node: int | None = 1
    partition: str | None = None
    qos: str | None = None
    comment: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    cpus_per_gpu: int | None = None
    gpus_per_task: int | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    account: str | None = None
    signal_delay_s: int = 120
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    array_parallelism: int = 16
    setup: list[str] | None = None


# The launchers: a description, and the class of their options.
LAUNCHERS: dict[str, tuple[str, type[LocalOptions] | None]] = {
    "basic": ("one job after another", None),
    "slurm": ("a SLURM job array", SlurmOptions),
    "submitit_local": ("as slurm, on this machine, to try it", LocalOptions),
}


def check_launcher(words: Sequence[str]) -> tuple[str, LocalOptions | None]:
    """The launcher that a command line names, and its options (None: it has none).

    Raises:
        InputError: another option of Hydra, an unknown launcher, key or value, or a launcher whose
            extra is not installed.
    """
    name, given = "basic", []
    for word in words:
        key, _, value = word.partition("=")
        if key == "hydra/launcher":
            name = value
        elif key.startswith("hydra.launcher."):
            given.append(word)
        else:
            raise InputError(
                f"unknown option {key!r}",
                fix="of Hydra's own options there are hydra/launcher= and hydra.launcher.KEY=",
            )
    if name not in LAUNCHERS:
        raise InputError(
            f"unknown launcher {name!r}{did_you_mean(name, LAUNCHERS)}",
            fix="python -m evalkit list launchers",
        )
    if not is_installed(name):
        raise InputError(
            f"the launcher {name} is not installed",
            where=f"hydra/launcher={name}",
            fix="pip install 'evalkit[slurm]'",
        )
    _check_keys(name, given)
    kind = LAUNCHERS[name][1]
    return name, None if kind is None else _filled(kind, given)


def is_installed(name: str) -> bool:
    """Whether the packages a launcher needs are installed."""
    return LAUNCHERS[name][1] is None or importlib.util.find_spec("submitit") is not None


def launcher_options(name: str) -> dict[str, Any]:
    """The options of a launcher and their defaults."""
    kind = LAUNCHERS[name][1]
    return {} if kind is None else asdict(kind())


def _check_keys(name: str, words: Sequence[str]) -> None:
    known = launcher_options(name)
    for word in words:
        key = word.removeprefix("hydra.launcher.").partition("=")[0].partition(".")[0]
        if key not in known:
            raise InputError(
                f"unknown option hydra.launcher.{key}{did_you_mean(key, known)}",
                where=f"hydra/launcher={name}",
                fix="python -m evalkit list launchers --long",
            )


def _filled(kind: type[LocalOptions], words: Sequence[str]) -> LocalOptions:
    """The options with the values of the command line, in Hydra's syntax."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    options = OmegaConf.structured(kind)
    for word in words:
        key = word.removeprefix("hydra.launcher.").partition("=")[0]
        try:
            override = OverridesParser.create().parse_override(word)
            if override.is_sweep_override():
                raise InputError(
                    "a launcher's option has one value",
                    where=word,
                    fix=f"quote one with commas: hydra.launcher.{key}='A,B'",
                )
            OmegaConf.update(options, key, override.value())
            OmegaConf.resolve(options)
        except (HydraException, OmegaConfBaseException) as error:
            text = str(error).strip().splitlines()[0]
            raise InputError(f"the launcher's options are not valid: {text}", where=word) from None
    found = OmegaConf.to_object(options)
    assert isinstance(found, LocalOptions)
    return found


def submit(
    folder: Path, paths: Sequence[Path], options: LocalOptions, run_job: Callable[[Path], int]
) -> list[str | None]:
    """Submits the jobs and waits; for each job why it did not end by itself, or None.

    Args:
        folder: where submitit keeps its files.
        paths: the files of the jobs.
        options: of SLURM, or of submitit's local executor.
        run_job: runs the job of a file and returns its exit code, on the node.
    """
    import submitit

    cluster = "slurm" if isinstance(options, SlurmOptions) else "local"
    general = {one.name for one in fields(LocalOptions)}
    given = asdict(options)
    most = {f"{cluster}_max_num_timeout": given.pop("max_num_timeout")}
    executor = submitit.AutoExecutor(cluster=cluster, folder=folder, **most)
    executor.update_parameters(
        **{key if key in general else f"{cluster}_{key}": value for key, value in given.items()}
    )
    jobs = executor.map_array(SubmittedJob(run_job), paths)
    print(f"submitted: {', '.join(job.job_id for job in jobs)}", flush=True)
    return [_why_lost(job) for job in jobs]


@dataclass(frozen=True)
class SubmittedJob:
    """What submitit calls on the node; `run_job` runs the job of a file and returns its exit code."""

    run_job: Callable[[Path], int]

    def __call__(self, path: Path) -> int:
        """Runs the job of a file; returns its exit code."""
        import submitit

        # A submitit task already is a process of its own, and its signals work only there: before the
        # time limit it interrupts this call and requeues the job.
        job = Job.read(path)
        os.chdir(job.directory)
        replace(job, log=str(submitit.JobEnvironment().paths.stdout)).write(path)
        return self.run_job(path)

    def checkpoint(self, path: Path) -> "DelayedSubmission":
        """The same job again: it continues."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, path)


def _why_lost(job: Any) -> str | None:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        job.results()
        return None
    except (FailedJobError, UncompletedJobError) as error:
        lines = str(error).strip().splitlines()
        return f"SLURM job {job.job_id} did not end by itself: {lines[-1] if lines else type(error).__name__}"
