"""SLURM through submitit: Hydra's launcher, but a job that dies does not end the wait for the others."""

from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

try:
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
except ImportError:
    # Hydra imports every plugin it finds; without the extra this one is not there.
    BaseSubmititLauncher = object

# Options of the executor itself; the others describe the jobs.
_OWN = ("submitit_folder", "max_num_timeout")
_TIMEOUTS = 20


class PatientLauncher(BaseSubmititLauncher):  # type: ignore[misc]
    """Submits all jobs as one array and waits for every one of them.

    Submitting, the work on the node and going back into the queue (`checkpoint`) are Hydra's.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs; the value of one that died is the reason."""
        jobs = self._submit(job_overrides, initial_job_idx)
        print(f"submitted: {', '.join(job.job_id for job in jobs)}", flush=True)
        return [_result(job) for job in jobs]

    def _submit(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        import submitit

        cluster = self._EXECUTOR
        executor = submitit.AutoExecutor(
            cluster=cluster,
            folder=self.params["submitit_folder"],
            **{f"{cluster}_max_num_timeout": self.params.get("max_num_timeout", _TIMEOUTS)},
        )
        general = BaseQueueConf.__dataclass_fields__
        executor.update_parameters(
            **{
                key if key in general else f"{cluster}_{key}": value
                for key, value in self.params.items()
                if key not in _OWN
            }
        )
        numbered = enumerate(job_overrides, initial_job_idx)
        arguments = [
            (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for number, overrides in numbered
        ]
        return list(executor.map_array(self, *zip(*arguments, strict=True)))


class SlurmLauncher(PatientLauncher):
    """hydra/launcher=slurm."""

    _EXECUTOR = "slurm"


class LocalLauncher(PatientLauncher):
    """hydra/launcher=submitit_local: the same without SLURM."""

    _EXECUTOR = "local"


def _result(job: Any) -> JobReturn:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        result = job.results()[0]
        assert isinstance(result, JobReturn)
        return result
    except (FailedJobError, UncompletedJobError) as error:
        lines = str(error).strip().splitlines()
        why = f"SLURM job {job.job_id} did not end by itself: {lines[-1] if lines else type(error).__name__}"
        return JobReturn(status=JobStatus.COMPLETED, _return_value=why)
