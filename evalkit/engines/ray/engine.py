"""The Ray engine: a pool of local engines over the GPUs or CPUs of a machine or a cluster."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from evalkit import __version__
from evalkit.core.config import BosRule, Dtype, EngineConfig
from evalkit.core.errors import EvalkitError
from evalkit.core.types import Completion, Request
from evalkit.engines.base import Engine, distinct
from evalkit.engines.local.loading import check_files
from evalkit.engines.models import ResolvedModel
from evalkit.engines.models.files import chat_template
from evalkit.engines.ray import cluster
from evalkit.engines.ray.worker import Ready, Report, Worker

log = logging.getLogger(__name__)

# A process with torch, before any weight.
_PROCESS_BYTES = 1 << 30
# Smaller chunks are not worth a call.
_SMALLEST_CHUNK = 8
# With each death chunks are so many times smaller, so that a fatal request is soon alone.
_PARTS = 4
# After this many deaths a request that was alone with its worker is the cause.
_DEATHS_OF_A_REQUEST = 3
# How often Ray restarts a worker, and how often it repeats a load whose process died.
_RESTARTS, _LOAD_RETRIES = 10, 3
_TICK_SECONDS = 1.0
# How often the cluster is asked for its machines.
_NODES_SECONDS = 3.0


class WorkList:
    """The requests of one `generate` that no worker has.

    The longest completions come first, which keeps the end short. Requests of one length are sorted
    by prompt, which puts those with a common prefix into one chunk. Chunks become smaller towards the
    end, which balances the workers.

    Attributes:
        given_up: requests that killed every worker that tried, with the reason of the last death.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._queue = deque(sorted(requests, key=lambda one: (-one.max_new_tokens, str(one.prompt))))
        self._deaths: Counter[str] = Counter()
        self.given_up: list[tuple[Request, str]] = []

    def __bool__(self) -> bool:
        """Whether requests are left to hand out."""
        return bool(self._queue)

    def take(self, workers: int) -> list[Request]:
        """The next chunk for one of `workers` workers."""
        deaths = self._deaths[self._queue[0].id]
        size = max(_SMALLEST_CHUNK, -(-len(self._queue) // (2 * workers))) // _PARTS**deaths
        return [self._queue.popleft() for _ in range(min(max(1, size), len(self._queue)))]

    def failed(self, left: Sequence[Request], reason: str) -> None:
        """Hands out what a dead worker had not answered again, after all others."""
        self._deaths.update(request.id for request in left)
        if len(left) == 1 and self._deaths[left[0].id] >= _DEATHS_OF_A_REQUEST:
            self.given_up.append((left[0], reason))
        else:
            self._queue.extend(left)


@dataclass(eq=False)
class RayWorker:
    """One worker as the driver sees it; Ray restarts its process when it dies."""

    number: int
    actor: Any
    # None until the model is loaded.
    ready: Ready | None = None
    # By id, what it has to answer.
    left: dict[str, Request] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.ready.host}" if self.ready else "")


class RayEngine(Engine):
    """Hands requests to workers in chunks and yields their completions as they come.

    Ray restarts a worker that dies; its unanswered requests go to another one. Machines may join or
    leave. Every request has its own seed, so completions do not depend on the worker that makes them.

    Its arguments are those of `build_engine`.

    Raises:
        InputError: options that contradict each other, or Ray is not installed.
        EvalkitError: no cluster, a worker cannot load the model, or the workers die.
    """

    family = "local"
    # The first worker that loaded the model.
    _first: Ready | None = None

    def __init__(
        self,
        resolved: ResolvedModel,
        options: EngineConfig,
        dtype: Dtype,
        *,
        bos: BosRule,
        follow_generation_config: bool,
    ) -> None:
        device = cluster.workers_device(options)
        # Before a Ray is started for it.
        check_files(resolved)
        self._workers: list[RayWorker] = []
        # Calls under way.
        self._calls: dict[Future[Report], RayWorker] = {}
        self._logged: set[str] = set()
        self._nodes_seen = float("-inf")
        try:
            cluster.connect(options)
            nodes = cluster.nodes()
            self._plan = cluster.plan(options, device, nodes, _need(resolved))
            import ray

            actor = ray.remote(Worker).options(
                num_cpus=self._plan.cpus,
                num_gpus=self._plan.gpus,
                scheduling_strategy="SPREAD",
                max_restarts=_RESTARTS,
            )
            settings = {
                "options": replace(options, name="local", device=device, threads=self._plan.threads),
                "dtype": cluster.workers_dtype(options, dtype),
                "bos": bos,
                "follow_generation_config": follow_generation_config,
            }
            self._new_actor = partial(
                actor.remote, version=__version__, resolved=_portable(resolved), settings=settings
            )
            log.info(
                "a worker takes %s CPUs, %d GPUs (ray status: who has them)", self._plan.cpus, self._plan.gpus
            )
            while self._first is None:
                self._add_workers()
                list(self._receive(WorkList(())))
        except BaseException:
            self.close()
            raise
        self._described: dict[str, Any] = {
            **self._first.described,
            "engine": "ray",
            "ray": ray.__version__,
            "workers": self._wanted,
            "nodes": self._machines,
        }

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Engine.generate`."""
        work = WorkList(distinct(requests))
        try:
            while work or any(worker.left for worker in self._workers):
                self._add_workers()
                for worker in self._workers:
                    if work and worker.ready and worker not in self._calls.values():
                        chunk = work.take(self._wanted)
                        worker.left = {request.id: request for request in chunk}
                        self._call(worker, worker.actor.answer.remote(chunk))
                yield from self._receive(work)
        finally:
            # A slice under way is dropped when it comes.
            for worker in self._workers:
                worker.left = {}
        if work.given_up:
            request, reason = work.given_up[0]
            others = len(work.given_up) - 1
            raise EvalkitError(
                f"every worker that tries to answer this sample{f' (and {others} others)' * bool(others)} "
                f"dies: {reason}",
                where=request.id,
                fix="engine.batch_size=1, dtype=bfloat16 or a larger machine; all other samples are kept",
            )

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        return self._described

    def close(self) -> None:
        """See `Engine.close`."""
        for worker in self._workers:
            import ray

            ray.kill(worker.actor)
        self._workers = []
        self._calls = {}
        cluster.close()

    def _add_workers(self) -> None:
        """Starts workers until there are as many as the plan wants for the present machines.

        Raises:
            EvalkitError: Ray itself is gone.
        """
        if time.monotonic() - self._nodes_seen < _NODES_SECONDS:
            return
        nodes = cluster.nodes()
        self._nodes_seen = time.monotonic()
        self._machines, self._wanted = len(nodes), self._plan.wanted(nodes)
        while len(self._workers) < self._wanted:
            actor = self._new_actor(workers_here=-(-self._wanted // self._machines))
            self._workers.append(RayWorker(len(self._workers) + 1, actor))
            self._load(self._workers[-1])

    def _load(self, worker: RayWorker) -> None:
        worker.ready = None
        self._call(worker, worker.actor.load.options(max_task_retries=_LOAD_RETRIES).remote())

    def _call(self, worker: RayWorker, reference: Any) -> None:
        self._calls[reference.future()] = worker

    def _receive(self, work: WorkList) -> Iterator[Completion]:
        """Waits for reports, but not long, and yields the completions in them.

        Raises:
            EvalkitError: a worker cannot go on, or too many have died.
        """
        # Not ray.wait, which swallows a signal's exception, and not Ray's ActorPool, which waits by
        # it and does not tell which actor an exception came from.
        arrived, _ = wait(self._calls, timeout=_TICK_SECONDS, return_when=FIRST_COMPLETED)
        for call in arrived:
            worker = self._calls.pop(call)
            if (error := call.exception()) is not None:
                self._died(worker, error, work)
                continue
            report = call.result()
            for level, text in report.log:
                if text not in self._logged:
                    log.log(level, "%s: %s", worker, text)
                self._logged.add(text)
            if report.ready is not None:
                self._loaded(worker, report.ready)
            elif worker.ready and not worker.left:
                # The `generate` of this slice was closed.
                continue
            new = [one for one in report.completions if worker.left.pop(one.id, None)]
            if worker.left and report.error is None:
                self._call(worker, worker.actor.answer.remote([]))
            yield from new
            if report.error is not None:
                self._refused(worker, report.error)

    def _loaded(self, worker: RayWorker, ready: Ready) -> None:
        worker.ready = ready
        self._first = self._first or ready
        log.info("%s is ready (process %d)", worker, ready.pid)
        names = ("torch", "transformers", "device_name", "way")
        other, usual = ([one.described.get(name) for name in names] for one in (ready, self._first))
        if other != usual:
            log.warning("%s has %s, the first %s: outputs may differ in the last bits", worker, other, usual)

    def _refused(self, worker: RayWorker, error: EvalkitError) -> None:
        """A worker that cannot load the model does not end the work of others that have loaded it."""
        if worker.ready or not any(other.ready for other in self._workers):
            raise error
        # The worker keeps its place: no other one is started for it.
        log.warning("%s is left out: %s", worker, error)

    def _died(self, worker: RayWorker, error: BaseException, work: WorkList) -> None:
        import ray

        # Ray's last line has the reason, or is the last line of a traceback.
        reason = str(error).strip().rpartition("\n")[2]
        if worker.ready is None:
            problem = EvalkitError(
                f"a worker cannot start: {reason}",
                where="engine=ray",
                fix="every machine needs evalkit[ray] in the same version, memory for the model (fewer "
                "workers: engine.num_workers) and the RAY_AUTH_MODE of the cluster",
            )
            self._refused(worker, problem)
            return
        log.warning("%s died: %s", worker, reason)
        work.failed(list(worker.left.values()), reason)
        worker.left = {}
        if isinstance(error, ray.exceptions.RayTaskError):
            # An unknown exception may leave the process, or its GPU, in any state.
            ray.kill(worker.actor, no_restart=False)
        self._load(worker)


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
