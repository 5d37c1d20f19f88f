"""The workers as the driver sees them: hired as the cluster allows, replaced when they die."""

import logging
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalkit import __version__
from evalkit.config import Config
from evalkit.engines import ray_session
from evalkit.engines.chunks import WorkList
from evalkit.engines.ray_worker import Hello, LogLine, Refusal, Slice, Worker
from evalkit.engines.worker_plan import WorkerPlan
from evalkit.errors import EvalkitError
from evalkit.models import ResolvedModel
from evalkit.types import Request

log = logging.getLogger(__name__)

# How often the cluster is asked which machines it has.
_LOOK_SECONDS = 3.0
# After this time without a worker the user hears what is being waited for.
_PATIENCE_SECONDS = 60.0
# Workers that may die one after the other without a single completion in between.
_MOST_DEATHS = 6
# Completions are fetched this often; less often when very many workers would keep the driver busy.
_SLICE_SECONDS = 0.25
_SLICES_PER_SECOND = 200
# Ray's words for an actor that could not even be made.
_CREATION = "raised in its creation task"


@dataclass(eq=False)
class Member:
    """One worker.

    Attributes:
        number: counts the workers that were hired.
        handle: Ray's handle of the actor.
        late: hired after the start.
        node: Ray's name of its machine; empty until it is known.
        hello: what it said when its model was loaded; None until then, and for one that cannot load it.
        chunk: what it works on.
    """

    number: int
    handle: Any
    late: bool
    node: str = ""
    hello: Hello | None = None
    chunk: list[Request] = field(default_factory=list)

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.hello.host}" if self.hello else "")


@dataclass(frozen=True)
class Lost:
    """A worker has died with its chunk unfinished."""

    chunk: Sequence[Request]
    reason: str


class Crew:
    """All workers of an engine.

    Answers come through a queue that Ray's own thread fills, never by waiting inside Ray: a signal
    that arrives there would be swallowed.
    """

    def __init__(self, plan: WorkerPlan, config: Config, resolved: ResolvedModel) -> None:
        import ray

        self._plan = plan
        self._model = (config, resolved)
        options: dict[str, Any] = {"num_cpus": plan.cpus, "num_gpus": plan.gpus}
        self._actor = ray.remote(Worker).options(**options, scheduling_strategy="SPREAD", max_restarts=0)
        self._members: dict[int, Member] = {}
        self._inbox: queue.SimpleQueue[tuple[Member, Any]] = queue.SimpleQueue()
        self._hired = 0
        self._deaths = 0
        self._looked = 0.0
        self._last_worked = time.monotonic()
        self._said: set[str] = set()
        self._alive: frozenset[str] = frozenset()
        # Machines among which there is one that has no evalkit: hiring goes on when they change.
        self._in_vain: frozenset[str] | None = None
        self.first: Hello | None = None
        self.wanted = 0
        self.machines = 0

    def start(self) -> Hello:
        """Hires the first workers and waits until one of them has loaded its model.

        Raises:
            EvalkitError: a worker cannot load it, or they die.
        """
        while self.first is None:
            self.tend()
            for _ in self.reports(0.5):
                pass
        return self.first

    def tend(self) -> None:
        """Hires workers for machines that joined and for workers that died.

        Raises:
            EvalkitError: Ray itself is gone.
        """
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        nodes = ray_session.nodes()
        if not nodes:
            raise EvalkitError(
                "Ray has died: no machine of it is left, not even this one",
                where="engine=ray",
                fix="run the same command again: it continues (a cluster must be started again first)",
            )
        self.machines = len(nodes)
        self.wanted = self._plan.wanted(nodes)
        self._complain()
        alive = frozenset(node.name for node in nodes)
        for member in list(self._members.values()):
            # A busy worker's call fails by itself; of an idle one nothing would be heard.
            if member.node and member.node not in alive and not member.chunk:
                self._dismiss(member)
        if self._members and alive == self._in_vain:
            return
        self._alive = alive
        while len(self._members) < self.wanted:
            self._hire(-(-self.wanted // max(1, self.machines)))

    def _complain(self) -> None:
        """Tells the user now and then what is being waited for while nobody works."""
        now = time.monotonic()
        if any(member.hello for member in self._members.values()):
            self._last_worked = now
        elif now - self._last_worked > _PATIENCE_SECONDS:
            self._last_worked = now
            what = f"{self._plan.gpus} GPUs" if self._plan.gpus else f"{self._plan.cpus} CPUs"
            log.warning("no worker is ready: each waits for %s of the cluster, then loads the model", what)

    def _hire(self, neighbours: int) -> None:
        self._hired += 1
        member = Member(self._hired, self._actor.remote(), late=self.first is not None)
        self._members[member.number] = member
        self._expect(member, member.handle.load.remote(*self._model, neighbours))

    def idle(self) -> list[Member]:
        """Workers that have nothing to do."""
        return [member for member in self._members.values() if member.hello and not member.chunk]

    def give(self, member: Member, chunk: list[Request]) -> None:
        """Has a worker begin a chunk."""
        member.chunk = chunk
        self._ask(member, chunk)

    def reports(self, seconds: float) -> Iterator[Slice | Lost]:
        """What workers have reported; waits so long at most when nothing is there.

        Raises:
            EvalkitError: what a worker could not do, in its own words, or too many have died.
        """
        try:
            waiting = [self._inbox.get(timeout=seconds)]
        except queue.Empty:
            return
        while not self._inbox.empty():
            waiting.append(self._inbox.get_nowait())
        for member, outcome in waiting:
            # What a worker said before it was let go counts no more.
            if self._members.get(member.number) is member:
                report = self._heard(member, outcome)
                if report is not None:
                    yield report

    def _heard(self, member: Member, outcome: Any) -> Slice | Lost | None:
        if isinstance(outcome, Hello):
            self._welcome(member, outcome)
            return None
        if isinstance(outcome, Slice):
            self._repeat(member, outcome.log)
            if outcome.completions:
                self._deaths = 0
            if outcome.finished:
                member.chunk = []
            else:
                self._ask(member, None)
            return outcome
        if isinstance(outcome, Refusal):
            self._repeat(member, outcome.log)
            if not member.late:
                raise outcome.error
            # A machine that joined and cannot serve must not end the work of the others. The worker
            # stays and keeps its place, so that no other is hired for it.
            log.warning("a machine that joined is left out: %s", outcome.error)
            member.node = outcome.node
            return None
        if isinstance(outcome, EvalkitError):
            raise outcome
        return self._bury(member, outcome)

    def _welcome(self, member: Member, hello: Hello) -> None:
        member.hello, member.node = hello, hello.node
        if hello.evalkit != __version__:
            raise EvalkitError(
                f"the machine {hello.host} has evalkit {hello.evalkit}, this one {__version__}",
                where="engine=ray",
                fix="install the same version on every machine",
            )
        if self.first is None:
            self.first = hello
        for name in ("torch", "transformers", "device_name", "way"):
            other, usual = hello.described.get(name), self.first.described.get(name)
            if other != usual:
                line = (
                    f"{member} has {name} {other}, the first has {usual}: outputs may differ in the last bits"
                )
                self._repeat(member, [(logging.WARNING, line)])
        log.info("%s is ready (process %d)", member, hello.pid)
        self._repeat(member, hello.log)

    def _bury(self, member: Member, error: BaseException) -> Lost | None:
        reason = _reason(error)
        self._dismiss(member)
        if _CREATION in str(error):
            problem = EvalkitError(
                f"evalkit cannot be started on a machine of the cluster: {reason}",
                where="engine=ray",
                fix="install evalkit[ray], the same version, on every machine, and start Ray from there",
            )
            if not member.late:
                raise problem
            log.warning("a machine that joined is left out: %s", problem)
            self._in_vain = self._alive
            return None
        log.warning("%s died: %s", member, reason)
        self._deaths += 1
        if self._deaths >= max(_MOST_DEATHS, 2 * self.wanted):
            raise EvalkitError(
                f"{self._deaths} workers died one after the other without an answer: {reason}",
                where="engine=ray",
                fix="fewer or larger workers (engine.num_workers, engine.batch_size); if they die at once, "
                "RAY_AUTH_MODE may differ between here and the cluster; finished samples are kept",
            )
        return Lost(member.chunk, reason) if member.chunk else None

    def release(self, work: WorkList) -> None:
        """Lets go of workers that have not finished; others are hired when there is new work."""
        for member in list(self._members.values()):
            if work.is_open(member.chunk):
                self._dismiss(member)

    def close(self) -> None:
        """Ends all workers; their memory is free when their processes are gone."""
        for member in list(self._members.values()):
            self._dismiss(member)

    def _dismiss(self, member: Member) -> None:
        import ray

        del self._members[member.number]
        # Look at the cluster at once: there is a place to fill, or a machine less.
        self._looked = 0.0
        ray.kill(member.handle)

    def _ask(self, member: Member, chunk: list[Request] | None) -> None:
        seconds = max(_SLICE_SECONDS, len(self._members) / _SLICES_PER_SECOND)
        self._expect(member, member.handle.answer.remote(chunk, seconds))

    def _expect(self, member: Member, reference: Any) -> None:
        def arrived(future: Any) -> None:
            error = future.exception()
            self._inbox.put((member, error if error is not None else future.result()))

        reference.future().add_done_callback(arrived)

    def _repeat(self, member: Member, lines: Sequence[LogLine]) -> None:
        """Puts a worker's log into ours: the first worker's whole, of the others new warnings."""
        for level, text in lines:
            if member.hello is self.first or (level >= logging.WARNING and text not in self._said):
                log.log(level, "%s: %s", member, text)
            self._said.add(text)


def _reason(error: BaseException) -> str:
    """Why a worker died, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if _CREATION in lines[0]:
        return lines[-1]
    return next((line for line in lines if "because" in line), lines[0])
