"""One worker: the local engine in a process of its own, somewhere in the cluster.

Everything here runs in the worker; Ray is not needed to import it. Errors a person can act on are
returned as values: Ray would wrap an exception into a traceback.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evalkit import __version__
from evalkit.core.errors import EvalkitError, InputError, foreign
from evalkit.core.types import Completion, Request
from evalkit.engines.models import ResolvedModel, check_unchanged, resolve

LogLine = tuple[int, str]


@dataclass(frozen=True)
class Ready:
    """A worker has loaded the model: on which host, in which process, and what its engine describes."""

    host: str
    pid: int
    evalkit: str
    described: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The outcome of one call.

    Attributes:
        log: log records since the previous call.
        ready: after `load`.
        completions: finished since the previous call.
        finished: whether nothing of the chunk is left.
        error: why the worker cannot go on.
    """

    log: list[LogLine]
    ready: Ready | None = None
    completions: list[Completion] = field(default_factory=list)
    finished: bool = True
    error: EvalkitError | None = None


class Worker:
    """Loads a model once and answers chunks of requests in time slices.

    Args:
        workers_here: workers on this machine, this one included.
        resolved: the model as the driver knows it.
        settings: the other arguments of `LocalEngine`.
    """

    def __init__(self, workers_here: int, resolved: ResolvedModel, settings: Mapping[str, Any]) -> None:
        self._workers_here, self._resolved, self._settings = workers_here, resolved, settings
        self._log = _LogBuffer()
        logger = logging.getLogger("evalkit")
        logger.setLevel(logging.INFO)
        logger.addHandler(self._log)
        self._engine: Any = None
        self._running: Iterator[Completion] = iter(())

    def load(self) -> Report:
        """Loads the model."""
        from evalkit.engines.local.engine import LocalEngine
        from evalkit.engines.local.memory import share_main_memory

        where = self._resolved.path or self._resolved.name
        try:
            with foreign("a worker cannot load the model", where=where):
                share_main_memory(self._workers_here)
                found = on_this_machine(self._resolved)
                self._engine = LocalEngine(found, **self._settings)
                check_unchanged(found)
        except EvalkitError as error:
            return Report(self._log.take(), error=error)
        ready = Ready(socket.gethostname(), os.getpid(), __version__, self._engine.describe())
        return Report(self._log.take(), ready)

    def answer(self, chunk: Sequence[Request] | None, seconds: float) -> Report:
        """Works on a chunk (None: on the previous one) until it is done or `seconds` have passed.

        A slice that takes longer has at least one completion.
        """
        if self._engine is None:
            # Ray restarted the process; the driver loads the model again, as after every death.
            raise RuntimeError("the worker's process was restarted")
        done: list[Completion] = []
        error: EvalkitError | None = None
        end = time.monotonic() + seconds
        try:
            if chunk is not None:
                self._running = self._engine.generate(chunk)
            for completion in self._running:
                done.append(completion)
                if time.monotonic() > end:
                    return Report(self._log.take(), completions=done, finished=False)
        except EvalkitError as raised:
            error = raised
        return Report(self._log.take(), completions=done, error=error)


def on_this_machine(resolved: ResolvedModel) -> ResolvedModel:
    """The model's files where they lie on this machine: the same paths, or its own hub cache.

    Raises:
        EvalkitError: they are not here, or they are other files.
    """
    here = socket.gethostname()
    other = EvalkitError(
        f"the machine {here} has other files of the model than the one the run was started on",
        where=resolved.path or resolved.tokenizer,
        fix="copy the model there again, or keep it on a file system that all machines share",
    )
    paths = [path for path in (resolved.path, resolved.tokenizer) if path is not None]
    if all(path.is_dir() for path in paths):
        try:
            check_unchanged(resolved)
        except InputError:
            raise
        except EvalkitError:
            raise other from None
        return resolved
    model = replace(resolved.config)
    if "commit" in resolved.identity:
        model.revision = resolved.identity["commit"]
    elif model.path is not None:
        model.path = str(resolved.path)
    if resolved.tokenizer is not None and resolved.tokenizer.is_dir():
        model.tokenizer = str(resolved.tokenizer)
    try:
        found = resolve(model, offline=True)
    except EvalkitError as error:
        raise EvalkitError(
            f"the model is not on the machine {here}: {error.what}",
            where=error.where,
            fix="keep models on a file system that all machines share, or fetch them on each: "
            + (error.fix or "evalkit prepare model=..."),
        ) from None
    if found.identity != resolved.identity:
        raise other
    return replace(resolved, path=found.path, tokenizer=found.tokenizer)


class _LogBuffer(logging.Handler):
    """Keeps evalkit's log records until the driver fetches them."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[LogLine] = []

    def emit(self, record: logging.LogRecord) -> None:
        # With the traceback, where there is one.
        self._lines.append((record.levelno, self.format(record)))

    def take(self) -> list[LogLine]:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return lines
