"""The jobs of a multirun as one SLURM job array, or as its stand-in on this machine, through submitit."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.runs.jobs.record import Job

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


def launch(
    folder: Path, paths: Sequence[Path], options: LocalOptions, run_job: Callable[[Path], int]
) -> list[str | None]:
    """Submits the jobs and waits for all of them; why one did not end by itself, None for the others.

    Args:
        folder: where submitit keeps its files.
        paths: the files of the jobs.
        options: of SLURM, or of the stand-in.
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

        # A task of submitit has a process of its own already, and only there do its signals work:
        # before the time is up it leaves this call in the middle and puts the job back into the queue.
        job = Job.read(path)
        os.chdir(job.directory)
        replace(job, log=str(submitit.JobEnvironment().paths.stdout)).write(path)
        return self.run_job(path)

    def checkpoint(self, path: Path) -> "DelayedSubmission":
        """The same job once more: it continues."""
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
