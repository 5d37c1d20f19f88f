"""The Ray engine: a pool of local engines over the GPUs or CPUs of a machine or a cluster."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from evalkit import __version__
from evalkit.core.config import BosRule, Dtype, EngineConfig
from evalkit.core.errors import EvalkitError, is_out_of_memory, reason
from evalkit.core.types import Completion, Request
from evalkit.engines.base import Engine, distinct
from evalkit.engines.local.loading import check_files
from evalkit.engines.models import ResolvedModel
from evalkit.engines.models.folder_files import chat_template
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
# A worker is given up after this many deaths without a completion in between, or this many failed loads.
_DEATHS_OF_A_WORKER, _FAILED_LOADS = 10, 4
_TICK_SECONDS = 1.0
# So long nobody may be ready before there is a warning.
_PATIENCE_SECONDS = 60.0
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

    def failed(self, left: Sequence[Request], why: str) -> bool:
        """Hands out what a dead worker had not answered again, after all others; False: it is given up."""
        self._deaths.update(request.id for request in left)
        if len(left) == 1 and self._deaths[left[0].id] >= _DEATHS_OF_A_REQUEST:
            self.given_up.append((left[0], why))
            return False
        self._queue.extend(left)
        return True


@dataclass(eq=False)
class RayWorker:
    """One worker as the driver sees it; when its actor dies it gets a new one."""

    number: int
    actor: Any = None
    # None until the model is loaded.
    ready: Ready | None = None
    # In a row: without a completion, without a load that succeeded.
    deaths: int = 0
    failed_loads: int = 0
    # By id, what it has to answer.
    left: dict[str, Request] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.ready.host}" if self.ready else "")


class RayEngine(Engine):
    """Hands requests to workers in chunks and yields their completions as they come.

    A worker that dies starts again; its unanswered requests go to another one. Machines may join or
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
        self._ready_seen = time.monotonic()
        try:
            cluster.connect(options)
            nodes = cluster.nodes()
            self._plan = cluster.plan(options, device, nodes, _need(resolved))
            import ray

            actor = ray.remote(Worker).options(
                num_cpus=self._plan.cpus,
                num_gpus=self._plan.gpus,
                scheduling_strategy="SPREAD",
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
            request, why = work.given_up[0]
            others = len(work.given_up) - 1
            raise EvalkitError(
                f"every worker that tries to answer this sample{f' (and {others} others)' * bool(others)} "
                f"dies: {why}",
                where=request.id,
                fix="engine.batch_size=1, dtype=bfloat16 or a larger machine; all other samples are kept",
            )

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        return self._described

    def close(self) -> None:
        """See `Engine.close`."""
        workers, self._workers, self._calls = self._workers, [], {}
        try:
            for worker in workers:
                _kill(worker)
        finally:
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
        # One may wait for a machine.
        self._machines, self._wanted = len(nodes), max(1, self._plan.wanted(nodes))
        while len(self._workers) < self._wanted:
            self._workers.append(RayWorker(len(self._workers) + 1))
            self._load(self._workers[-1])

    def _load(self, worker: RayWorker) -> None:
        # Not a restart by Ray, which a call may overtake: the process it kills would answer it.
        worker.actor = self._new_actor(workers_here=-(-self._wanted // self._machines))
        self._call(worker, worker.actor.load.remote())

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
        if any(worker.ready for worker in self._workers):
            self._ready_seen = time.monotonic()
        elif time.monotonic() - self._ready_seen > _PATIENCE_SECONDS:
            log.warning(
                "no worker is ready after a minute: the model still loads, or the cluster has no free %s for "
                "a worker (ray status tells who has them)",
                "GPUs" if self._plan.gpus else "CPUs",
            )
            self._ready_seen = float("inf")
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
            worker.deaths = 0 if new else worker.deaths
            if worker.left and report.error is None:
                self._call(worker, worker.actor.answer.remote([]))
            yield from new
            if report.error is not None:
                self._refused(worker, report.error)

    def _loaded(self, worker: RayWorker, ready: Ready) -> None:
        worker.ready, worker.failed_loads = ready, 0
        self._first = self._first or ready
        log.info("%s is ready (process %d)", worker, ready.pid)
        names = ("torch", "transformers", "device_name", "way")
        other, usual = ([one.described.get(name) for name in names] for one in (ready, self._first))
        if other != usual:
            log.warning("%s has %s, the first %s: outputs may differ in the last bits", worker, other, usual)

    def _refused(self, worker: RayWorker, error: EvalkitError) -> None:
        """A worker that cannot load the model does not end the work of others, if it was ever loaded."""
        others = any(other.ready or other in self._calls.values() for other in self._workers)
        if worker.ready or self._first is None or not others:
            raise error
        # The worker keeps its place: no other one is started for it.
        log.warning("%s is left out: %s", worker, error)

    def _died(self, worker: RayWorker, error: BaseException, work: WorkList) -> None:
        import ray

        name, why = str(worker), _cause(error)
        if worker.ready:
            # A request that is given up was the cause.
            worker.deaths = worker.deaths + 1 if work.failed(list(worker.left.values()), why) else 1
            problem, again = f"died {worker.deaths} times in a row", worker.deaths < _DEATHS_OF_A_WORKER
        else:
            worker.failed_loads += 1
            # What the first load raised would come again.
            raised = isinstance(error, ray.exceptions.RayTaskError)
            most = 1 if raised and not worker.deaths else _FAILED_LOADS
            problem, again = "cannot start", worker.failed_loads < most
        worker.left, worker.ready = {}, None
        if not isinstance(error, ray.exceptions.ActorDiedError):
            # After an exception the process, or its GPU, may be in any state.
            _kill(worker)
        if again:
            log.warning("%s died: %s", name, why)
            self._load(worker)
            return
        fix = (
            "every machine needs evalkit[ray] in the same version, memory for the model (fewer workers: "
            "engine.num_workers) and the RAY_AUTH_MODE of the cluster"
        )
        self._refused(worker, EvalkitError(f"a worker {problem}: {why}", where="engine=ray", fix=fix))


def _kill(worker: RayWorker) -> None:
    import ray

    # A worker whose actor could not be made has none. What went wrong before is reported, not that Ray
    # is gone too.
    if worker.actor is not None:
        with suppress(Exception):
            ray.kill(worker.actor)


def _cause(error: BaseException) -> str:
    """Why a worker died, on one line."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        return reason(error.cause)
    # Of exhausted memory a table of processes follows; else the reason is last, or a traceback's last line.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0 if is_out_of_memory(error) else -1]


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
