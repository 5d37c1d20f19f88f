"""What a launcher carries to wherever a job runs: the folder of the sweep, and Hydra gives the number."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from evalkit.errors import InterruptedRunError
from evalkit.jobs.record import Job

INTERRUPTED = 130


@dataclass(frozen=True)
class SweepTask:
    """Runs the job that Hydra's configuration names; returns its exit code.

    Attributes:
        folder: the sweep's folder, absolute.
        starter: pid of the process that started the sweep.
    """

    folder: Path
    starter: int

    def __call__(self, config: DictConfig) -> int:
        """Called by Hydra's launcher.

        Raises:
            InterruptedRunError: the job was interrupted, and jobs run one after another: so is the sweep.
        """
        path = job_path(self.folder, int(config.job))
        if "SUBMITIT_EXECUTOR" in os.environ:
            return _in_this_process(path)
        from evalkit.jobs.process import run_in_child

        code = run_in_child(path)
        if code == INTERRUPTED and os.getpid() == self.starter:
            raise InterruptedRunError("a job was interrupted", fix="run the same command again: it continues")
        return code


def job_path(folder: Path, number: int) -> Path:
    """The file of a sweep's job; numbers start at 0, people count from 1."""
    return folder / f"{number + 1:04}.json"


def _in_this_process(path: Path) -> int:
    # A task of submitit has a process of its own already, and only there do its signals work: before
    # the time is up it leaves this call in the middle and puts the job back into the queue.
    import submitit
    from hydra.core.global_hydra import GlobalHydra

    from evalkit.jobs.child import run_job

    job = Job.read(path)
    os.chdir(job.directory)
    # The command of the job is composed by itself, as in a process of its own.
    GlobalHydra.instance().clear()
    log = str(submitit.JobEnvironment().paths.stdout)
    replace(job, log=log).write(path)
    return run_job(path)
