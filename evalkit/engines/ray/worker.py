"""One worker: the local engine in a process of its own, somewhere in the cluster.

Everything here runs in the worker; Ray is not needed to import it.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from logging.handlers import BufferingHandler
from typing import TYPE_CHECKING, Any, NamedTuple

from evalkit import __version__
from evalkit.core.errors import EvalkitError, foreign
from evalkit.core.types import Completion, Request
from evalkit.engines.models import ResolvedModel, check_unchanged, resolve

if TYPE_CHECKING:
    from evalkit.engines.local.engine import LocalEngine

# Completions are sent this often, or when the next one is done.
_SLICE_SECONDS = 0.25


class Ready(NamedTuple):
    """A worker has loaded the model: on which host, in which process, and what its engine describes."""

    host: str
    pid: int
    described: dict[str, Any]


class Report(NamedTuple):
    """The outcome of one call.

    An error that a person can act on is a value: raised, Ray would drop what came before it.

    Attributes:
        log: levels and texts of log records since the previous call.
        completions: finished since the previous call.
        ready: after `load`.
        error: why the worker cannot go on.
    """

    log: list[tuple[int, str]]
    completions: Sequence[Completion] = ()
    ready: Ready | None = None
    error: EvalkitError | None = None


class Worker:
    """Loads a model once and answers chunks of requests in time slices.

    Args:
        version: the driver's version of evalkit.
        workers_here: workers on this machine, this one included.
        resolved: the model as the driver knows it.
        settings: the other arguments of `LocalEngine`.
    """

    def __init__(
        self, *, version: str, workers_here: int, resolved: ResolvedModel, settings: Mapping[str, Any]
    ) -> None:
        self._version, self._workers_here = version, workers_here
        self._resolved, self._settings = resolved, settings
        self._log = BufferingHandler(sys.maxsize)
        logger = logging.getLogger("evalkit")
        logger.setLevel(logging.INFO)
        logger.addHandler(self._log)
        self._running: Iterator[Completion] = iter(())

    def load(self) -> Report:
        """Loads the model."""
        try:
            ready = Ready(socket.gethostname(), os.getpid(), self._engine.describe())
        except EvalkitError as error:
            return Report(self._records(), error=error)
        return Report(self._records(), ready=ready)

    def answer(self, chunk: Sequence[Request]) -> Report:
        """Works on a chunk (empty: on the previous one) until it is done or a slice of time is over.

        There is at least one completion.
        """
        done: list[Completion] = []
        end = time.monotonic() + _SLICE_SECONDS
        try:
            if chunk:
                self._running = self._engine.generate(chunk)
            for completion in self._running:
                done.append(completion)
                if time.monotonic() > end:
                    break
        except EvalkitError as error:
            return Report(self._records(), done, error=error)
        return Report(self._records(), done)

    @cached_property
    def _engine(self) -> "LocalEngine":
        from evalkit.engines.local.engine import LocalEngine
        from evalkit.engines.local.memory import share_main_memory

        if __version__ != self._version:
            raise EvalkitError(
                f"the machine {socket.gethostname()} has evalkit {__version__}, the first {self._version}",
                where="engine=ray",
                fix="install the same version on every machine",
            )
        with foreign("a worker cannot load the model", where=self._resolved.path or self._resolved.name):
            share_main_memory(self._workers_here)
            found = on_this_machine(self._resolved)
            engine = LocalEngine(found, **self._settings)
            check_unchanged(found)
        return engine

    def _records(self) -> list[tuple[int, str]]:
        """The log records since the last call, with the traceback where there is one."""
        lines = [(record.levelno, self._log.format(record)) for record in self._log.buffer]
        self._log.flush()
        return lines


def on_this_machine(resolved: ResolvedModel) -> ResolvedModel:
    """The model's files where they lie on this machine: the same paths, or its own hub cache.

    Raises:
        EvalkitError: they are not here, or they are other files.
    """
    try:
        if any(path is not None and not path.is_dir() for path in (resolved.path, resolved.tokenizer)):
            model = replace(resolved.config)
            if "commit" in resolved.identity:
                model.revision = resolved.identity["commit"]
            elif model.path is not None:
                model.path = str(resolved.path)
            if resolved.tokenizer is not None and resolved.tokenizer.is_dir():
                model.tokenizer = str(resolved.tokenizer)
            found = resolve(model, offline=True)
            resolved = replace(resolved, path=found.path, tokenizer=found.tokenizer)
        check_unchanged(resolved)
    except EvalkitError as error:
        raise EvalkitError(
            f"the machine {socket.gethostname()} does not have the model of this run: {error.what}",
            where=error.where,
            fix="keep models on a file system that all machines share, or fetch them on each: "
            + (error.fix or "evalkit prepare model=..."),
        ) from None
    return resolved
