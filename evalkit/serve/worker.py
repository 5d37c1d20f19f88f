"""The thread that owns the engine: everything that waits goes into it together."""

import logging
import queue
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from evalkit.engines.base import Engine
from evalkit.errors import EvalkitError
from evalkit.types import Completion, Request

log = logging.getLogger(__name__)

# How long the first request of a batch waits for those that come with it.
_GATHER_SECONDS = 0.01


class StoppedError(Exception):
    """The endpoint is shutting down."""


@dataclass(eq=False)
class Job:
    """One request, and the future of its completion; one that is cancelled in time never runs."""

    request: Request
    done: "Future[Completion]" = field(default_factory=Future)


class Worker:
    """Runs an engine in a thread of its own.

    Args:
        engine: the engine; used by that thread only.
        most_waiting: requests that may wait at once.
    """

    def __init__(self, engine: Engine, *, most_waiting: int) -> None:
        self._engine = engine
        self._most_waiting = most_waiting
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="evalkit-engine", daemon=True)
        self._thread.start()

    def submit(self, requests: Iterable[Request]) -> list[Job] | None:
        """Takes requests; None when too many wait already."""
        jobs = [Job(request) for request in requests]
        if self._waiting.qsize() + len(jobs) > self._most_waiting:
            return None
        for job in jobs:
            self._waiting.put(job)
        if self._stopping.is_set():
            self._empty()
        return jobs

    def stop(self) -> None:
        """Takes no more; what waits or runs ends with `StoppedError`."""
        self._stopping.set()
        self._waiting.put(None)

    def join(self, seconds: float) -> bool:
        """Waits for the thread to end; whether it did."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._stopping.is_set():
            batch = self._gather()
            running = {job.request.id: job for job in batch if job.done.set_running_or_notify_cancel()}
            if running:
                self._run(running)
        self._empty()

    def _gather(self) -> list[Job]:
        """All jobs that wait, at least one unless the worker stops."""
        batch: list[Job] = []
        job = self._waiting.get()
        while job is not None:
            batch.append(job)
            try:
                job = self._waiting.get(timeout=_GATHER_SECONDS)
            except queue.Empty:
                break
        return batch

    def _run(self, running: dict[str, Job]) -> None:
        error: Exception = EvalkitError("the engine gave no answer")
        try:
            for completion in self._engine.generate([job.request for job in running.values()]):
                running.pop(completion.id).done.set_result(completion)
                if self._stopping.is_set():
                    error = StoppedError()
                    break
        except EvalkitError as raised:
            log.error("the engine failed: %s", raised)
            error = raised
        except Exception as raised:  # the endpoint outlives a request that breaks the engine
            log.exception("the engine failed")
            error = EvalkitError(f"the engine failed: {type(raised).__name__}")
        for job in running.values():
            job.done.set_exception(error)

    def _empty(self) -> None:
        while True:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.done.set_running_or_notify_cancel():
                job.done.set_exception(StoppedError())
