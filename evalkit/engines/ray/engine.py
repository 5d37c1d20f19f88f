"""The Ray engine: a pool of local engines over the GPUs or CPUs of a machine or a cluster."""

import logging
import queue
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from evalkit.engines.ray.worker import LogLine, Ready, Report, Worker

log = logging.getLogger(__name__)

# A process with torch, before any weight.
_PROCESS_BYTES = 1 << 30
# Smaller chunks are not worth a call.
_SMALLEST_CHUNK = 8
# A dead worker's requests are split into this many chunks, so that a fatal request is soon alone.
_PARTS = 4
# After this many deaths a request that was alone with its worker is the cause.
_DEATHS_OF_A_REQUEST = 3
# Deaths in a row, without a completion in between, after which the run ends.
_DEATHS_IN_A_ROW = 6
# How often Ray repeats a load whose process died.
_LOAD_RETRIES = 3
_TICK_SECONDS = 1.0
# How often the cluster is asked for its machines.
_NODES_SECONDS = 3.0
# After this time without a ready worker a warning says what is missing.
_PATIENCE_SECONDS = 60.0
# Completions are fetched this often; less often with so many workers that the driver would be busy.
_SLICE_SECONDS = 0.25
_SLICES_PER_SECOND = 200
# Ray's message for an actor whose class could not be imported.
_CREATION = "raised in its creation task"


class WorkList:
    """The requests of one `generate` that have no completion yet.

    The longest completions come first, which keeps the end short. Requests of one length are sorted
    by prompt, which puts those with a common prefix into one chunk. Chunks become smaller towards the
    end, which balances the workers.

    Attributes:
        given_up: requests that killed every worker that tried, with the reason of the last death.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._fresh = sorted(requests, key=lambda one: (-one.max_new_tokens, _text(one)), reverse=True)
        self._again: deque[list[Request]] = deque()
        self._open = {request.id for request in self._fresh}
        self._deaths: Counter[str] = Counter()
        self.given_up: list[tuple[Request, str]] = []

    def __len__(self) -> int:
        """Requests without a completion, including those a worker has."""
        return len(self._open)

    def take(self, workers: int) -> list[Request]:
        """The next chunk for one of `workers` workers; empty when all requests are handed out."""
        if self._fresh:
            size = max(_SMALLEST_CHUNK, -(-len(self._fresh) // (2 * workers)))
            return [self._fresh.pop() for _ in range(min(size, len(self._fresh)))]
        while self._again:
            # A dead worker's last completions may have arrived since.
            if chunk := self._unanswered(self._again.popleft()):
                return chunk
        return []

    def done(self, completion: Completion) -> bool:
        """Records a completion; False when its request has had one before."""
        new = completion.id in self._open
        self._open.discard(completion.id)
        return new

    def failed(self, chunk: Sequence[Request], reason: str) -> None:
        """Hands out the unanswered requests of a dead worker's chunk again, after all others."""
        left = self._unanswered(chunk)
        self._deaths.update(request.id for request in left)
        if len(left) == 1 and self._deaths[left[0].id] >= _DEATHS_OF_A_REQUEST:
            self._open.remove(left[0].id)
            self.given_up.append((left[0], reason))
            return
        size = max(1, -(-len(left) // _PARTS))
        self._again.extend(left[begin : begin + size] for begin in range(0, len(left), size))

    def _unanswered(self, chunk: Sequence[Request]) -> list[Request]:
        return [request for request in chunk if request.id in self._open]


@dataclass(eq=False)
class RayWorker:
    """One worker as the driver sees it; Ray restarts its process when it dies.

    Attributes:
        number: counts the workers.
        actor: Ray's handle.
        ready: None until the model is loaded.
        calling: whether a call is under way.
        chunk: what it works on.
    """

    number: int
    actor: Any
    ready: Ready | None = None
    calling: bool = False
    chunk: list[Request] | None = None

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.ready.host}" if self.ready else "")


class RayEngine(Engine):
    """Hands requests to workers in chunks and yields their completions as they come.

    Ray restarts a worker that dies; its unanswered requests go to another one. Machines may join or
    leave. Every request has its own seed, so completions do not depend on the worker that makes them.

    Reports come through a queue that Ray's own thread fills. The main thread never waits inside Ray,
    which would swallow a signal that arrives there.

    Args:
        resolved: the model.
        options: of the engine and its workers.
        dtype: the precision; `auto` depends on the workers' device.
        bos: the rule for text prompts.
        follow_generation_config: sample as the model's generation_config says, not the requests.

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
        self._reports: queue.SimpleQueue[tuple[RayWorker, list[Request] | None, Any]] = queue.SimpleQueue()
        self._logged: set[str] = set()
        self._machines = self._wanted = self._deaths = 0
        self._nodes_seen = 0.0
        self._last_ready = time.monotonic()
        self._plan = cluster.start(options, device, _need(resolved))
        # Not earlier: Ray reads settings that `start` makes when it is imported.
        import ray

        try:
            actor = ray.remote(Worker).options(
                num_cpus=self._plan.cpus,
                num_gpus=self._plan.gpus,
                scheduling_strategy="SPREAD",
                max_restarts=-1,
            )
            settings = {
                "options": replace(options, name="local", device=device, threads=self._plan.threads),
                "dtype": cluster.workers_dtype(options, dtype),
                "bos": bos,
                "follow_generation_config": follow_generation_config,
            }
            self._new_actor = partial(actor.remote, resolved=_portable(resolved), settings=settings)
            while self._first is None:
                self._add_workers()
                list(self._receive(WorkList(()), _TICK_SECONDS))
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
            while len(work):
                self._add_workers()
                for worker in self._workers:
                    idle = worker.ready is not None and not worker.calling
                    if idle and (chunk := work.take(self._wanted)):
                        worker.chunk = chunk
                        self._answer(worker, chunk)
                yield from self._receive(work, _TICK_SECONDS)
        finally:
            # A slice under way is dropped when it comes.
            for worker in self._workers:
                worker.chunk = None
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
        import ray

        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers = []
        cluster.close()

    def _add_workers(self) -> None:
        """Starts workers until there are as many as the plan wants for the present machines.

        Raises:
            EvalkitError: Ray itself is gone.
        """
        now = time.monotonic()
        if now - self._nodes_seen < _NODES_SECONDS:
            return
        self._nodes_seen = now
        nodes = cluster.nodes()
        if not nodes:
            raise EvalkitError(
                "Ray has died: no machine of it is left, not even this one",
                where="engine=ray",
                fix="run the same command again: it continues (a cluster must be started again first)",
            )
        self._machines, self._wanted = len(nodes), self._plan.wanted(nodes)
        if any(worker.ready for worker in self._workers):
            self._last_ready = now
        elif now - self._last_ready > _PATIENCE_SECONDS:
            self._last_ready = now
            what = f"{self._plan.gpus} GPUs" if self._plan.gpus else f"{self._plan.cpus} CPUs"
            log.warning("no worker is ready: each waits for %s of the cluster, then loads the model", what)
        while len(self._workers) < self._wanted:
            actor = self._new_actor(-(-self._wanted // self._machines))
            self._workers.append(RayWorker(len(self._workers) + 1, actor))
            self._load(self._workers[-1])

    def _load(self, worker: RayWorker) -> None:
        worker.ready = None
        self._call(worker, worker.actor.load.options(max_task_retries=_LOAD_RETRIES).remote())

    def _answer(self, worker: RayWorker, chunk: list[Request] | None) -> None:
        seconds = max(_SLICE_SECONDS, len(self._workers) / _SLICES_PER_SECOND)
        self._call(worker, worker.actor.answer.remote(chunk, seconds))

    def _call(self, worker: RayWorker, reference: Any) -> None:
        chunk, worker.calling = worker.chunk, True

        def arrived(future: Any) -> None:
            self._reports.put((worker, chunk, future.exception() or future.result()))

        reference.future().add_done_callback(arrived)

    def _receive(self, work: WorkList, seconds: float) -> Iterator[Completion]:
        """Waits for a report, `seconds` at most, and yields the completions in it.

        Raises:
            EvalkitError: a worker cannot go on, or too many have died.
        """
        try:
            worker, chunk, report = self._reports.get(timeout=seconds)
        except queue.Empty:
            return
        worker.calling = False
        if not isinstance(report, Report):
            self._died(worker, report, work)
            return
        if report.ready is not None:
            self._loaded(worker, report.ready)
        self._log(worker, report.log)
        if chunk is not worker.chunk:
            # The `generate` that this chunk belongs to was closed.
            return
        if report.completions:
            self._deaths = 0
            yield from filter(work.done, report.completions)
        if report.error is not None:
            self._refused(worker, report.error)
        elif chunk is not None and not report.finished:
            self._answer(worker, None)
        else:
            worker.chunk = None

    def _loaded(self, worker: RayWorker, ready: Ready) -> None:
        worker.ready = ready
        if ready.evalkit != __version__:
            raise EvalkitError(
                f"the machine {ready.host} has evalkit {ready.evalkit}, this one {__version__}",
                where="engine=ray",
                fix="install the same version on every machine",
            )
        self._first = self._first or ready
        for name in ("torch", "transformers", "device_name", "way"):
            other, usual = ready.described.get(name), self._first.described.get(name)
            if other != usual:
                text = (
                    f"{worker} has {name} {other}, the first has {usual}: outputs may differ in the last bits"
                )
                self._log(worker, [(logging.WARNING, text)])
        log.info("%s is ready (process %d)", worker, ready.pid)

    def _refused(self, worker: RayWorker, error: EvalkitError) -> None:
        """A worker that cannot load the model does not end the work of others that have loaded it."""
        if not any(other.ready for other in self._workers if other is not worker) or worker.ready:
            raise error
        # The worker keeps its place: no other one is started for it.
        log.warning("%s is left out: %s", worker, error)

    def _died(self, worker: RayWorker, error: BaseException, work: WorkList) -> None:
        import ray

        reason = _reason(error)
        if _CREATION in str(error):
            problem = EvalkitError(
                f"evalkit cannot be started on a machine of the cluster: {reason}",
                where="engine=ray",
                fix="install evalkit[ray], the same version, on every machine, and start Ray from there",
            )
            self._refused(worker, problem)
            return
        log.warning("%s died: %s", worker, reason)
        self._deaths += 1
        if self._deaths >= max(_DEATHS_IN_A_ROW, 2 * self._wanted):
            raise EvalkitError(
                f"{self._deaths} workers died one after the other without an answer: {reason}",
                where="engine=ray",
                fix="fewer or larger workers (engine.num_workers, engine.batch_size); if they die at once, "
                "RAY_AUTH_MODE may differ between here and the cluster; finished samples are kept",
            )
        if worker.chunk:
            work.failed(worker.chunk, reason)
        worker.chunk = None
        if not isinstance(error, ray.exceptions.RayActorError):
            # An unknown exception may leave the process, or its GPU, in any state.
            ray.kill(worker.actor, no_restart=False)
        self._load(worker)

    def _log(self, worker: RayWorker, lines: Sequence[LogLine]) -> None:
        """Repeats a worker's log: all of the first worker's, of the others new warnings."""
        for level, text in lines:
            if worker.ready is self._first or (level >= logging.WARNING and text not in self._logged):
                log.log(level, "%s: %s", worker, text)
            self._logged.add(text)


def _reason(error: BaseException) -> str:
    """Why a worker died, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if _CREATION in lines[0]:
        return lines[-1]
    return next((line for line in lines if "because" in line), lines[0])


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


def _text(request: Request) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return "\n".join(message.content for message in request.prompt)
