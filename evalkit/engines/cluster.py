"""The Ray engine: a pool of local engines over the GPUs or CPUs of a machine or a cluster."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from evalkit.config import Config
from evalkit.engines import ray_session
from evalkit.engines.base import Engine, distinct
from evalkit.engines.chunks import WorkList
from evalkit.engines.crew import Crew, Lost
from evalkit.engines.loading import check_files
from evalkit.engines.worker_plan import WorkerPlan
from evalkit.errors import EvalkitError
from evalkit.models import ResolvedModel
from evalkit.models.files import chat_template
from evalkit.types import Completion, Request

# A process with torch, before any weight.
_PROCESS_BYTES = 1 << 30
_TICK_SECONDS = 1.0


class RayEngine(Engine):
    """Hands requests to workers in chunks and yields their completions as they come.

    A worker that dies is replaced, what it had not answered goes to another, and machines may join
    or leave while it works. Samples have seeds of their own and no worker knows another's requests:
    which of them answers changes nothing.
    """

    family = "local"

    def __init__(self, config: Config, resolved: ResolvedModel) -> None:
        device = ray_session.workers_device(config)
        # Before a Ray is started for it.
        check_files(resolved)
        plan = ray_session.start(config.engine, device, _need(resolved))
        self._crew: Crew | None = None
        try:
            self._crew = Crew(plan, _for_workers(config, plan), _portable(resolved))
            self._first = self._crew.start()
            self._described = self._describe(self._crew)
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Engine.generate`."""
        assert self._crew is not None, "the engine is closed"
        crew, work = self._crew, WorkList(distinct(requests))
        try:
            while len(work):
                crew.tend()
                for member in crew.idle():
                    if chunk := work.take(crew.wanted):
                        crew.give(member, chunk)
                for report in crew.reports(_TICK_SECONDS):
                    if isinstance(report, Lost):
                        work.failed(report.chunk, report.reason)
                    else:
                        yield from filter(work.done, report.completions)
        finally:
            crew.release(work)
        if work.condemned:
            request, reason = work.condemned[0]
            others = len(work.condemned) - 1
            raise EvalkitError(
                f"every worker that tries to answer this sample{f' (and {others} others)' * bool(others)} "
                f"dies: {reason}",
                where=request.id,
                fix="engine.batch_size=1, dtype=bfloat16 or a larger machine; all other samples are kept",
            )

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        return self._described

    def _describe(self, crew: Crew) -> dict[str, Any]:
        import ray

        first = self._first.described
        return {
            **first,
            "engine": "ray",
            "ray": ray.__version__,
            "workers": crew.wanted,
            "nodes": crew.machines,
        }

    def close(self) -> None:
        """See `Engine.close`."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None
        ray_session.close()


def _for_workers(config: Config, plan: WorkerPlan) -> Config:
    """The options of a worker's own, local engine."""
    dtype = ray_session.workers_dtype(config)
    engine = replace(config.engine, name="local", device=plan.device, threads=plan.threads)
    return replace(config, engine=engine, dtype=dtype)


def _need(resolved: ResolvedModel) -> int:
    """Bytes of main memory a worker on a CPU needs at least: 16-bit weights become 32-bit ones."""
    if resolved.path is None:
        return _PROCESS_BYTES
    return _PROCESS_BYTES + 2 * sum(path.stat().st_size for path in resolved.path.glob("*.safetensors"))


def _portable(resolved: ResolvedModel) -> ResolvedModel:
    """The model without files only this machine may have."""
    template = resolved.config.chat_template
    if template is None:
        return resolved
    text = chat_template(template, resolved.tokenizer or resolved.path)
    return replace(resolved, config=replace(resolved.config, chat_template=text))
