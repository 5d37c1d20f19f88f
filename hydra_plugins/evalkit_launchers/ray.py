"""The jobs of a multirun as tasks of Ray.

Hydra's own Ray launcher also sets up machines in a cloud and for that asks for libraries that do not
install beside current ones; tasks on this machine or on a running cluster need none of them.
"""

import os
import signal
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

# An interrupted job keeps what it has finished first.
_STOP_SECONDS = 60.0
# What the processes on other nodes take over from this one.
_SETTINGS = ("EVALKIT_", "HF_", "OMP_NUM_THREADS")


class RayLauncher(Launcher):
    """hydra/launcher=ray; conf/hydra/launcher/ray.yaml says what the parameters mean."""

    def __init__(self, address: str | None, num_cpus: float, num_gpus: float, max_retries: int) -> None:
        self._address = address
        self._resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": max_retries}
        self._context: HydraContext | None = None
        self._task: TaskFunction | None = None
        self._config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs, as many at once as fit; the value of one that died is the reason."""
        import ray

        settings = {key: value for key, value in os.environ.items() if key.startswith(_SETTINGS)}
        # Only a cluster that is started here can do without the dashboard.
        own = {} if self._address else {"include_dashboard": False}
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(
            address=self._address or "local",
            log_to_driver=False,
            runtime_env={"env_vars": settings},
            **own,
        )
        # Ray's own handler ends the process at once, before the jobs have saved their work.
        signal.signal(signal.SIGTERM, handler)
        task = ray.remote(**self._resources)(_run)
        state = Singleton.get_state()
        waiting = [
            task.remote(number, list(overrides), self._context, self._config, self._task, state)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        try:
            return [_result(reference) for reference in waiting]
        except BaseException:
            for reference in waiting:
                ray.cancel(reference)
            ray.wait(waiting, num_returns=len(waiting), timeout=_STOP_SECONDS)
            raise
        finally:
            ray.shutdown()


def _run(
    number: int,
    overrides: list[str],
    context: HydraContext,
    config: DictConfig,
    task: TaskFunction,
    state: dict[Any, Any],
) -> JobReturn:
    setup_globals()
    Singleton.set_state(state)
    own = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(own):
        own.hydra.job.id = f"{own.hydra.job.name}_{number}"
        own.hydra.job.num = number
    HydraConfig.instance().set_config(own)
    return run_job(
        hydra_context=context,
        config=own,
        task_function=task,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _result(reference: Any) -> JobReturn:
    import ray

    try:
        result = ray.get(reference)
        assert isinstance(result, JobReturn)
        return result
    except ray.exceptions.RayError as error:
        why = f"Ray lost the job: {(str(error).strip().splitlines() or [''])[0]}"
        return JobReturn(status=JobStatus.COMPLETED, _return_value=why)
