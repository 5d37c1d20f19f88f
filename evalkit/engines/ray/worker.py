"""One worker: the local engine in a process of its own, somewhere in the cluster.

Everything here runs in the worker; Ray is not needed to import it. What a person can act on comes
back as a value, not as an exception: Ray would wrap it into a traceback.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evalkit import __version__
from evalkit.core.config import Config
from evalkit.core.errors import EvalkitError, InputError, foreign
from evalkit.core.types import Completion, Request
from evalkit.engines.models import ResolvedModel, check_unchanged, resolve

LogLine = tuple[int, str]


@dataclass(frozen=True)
class Hello:
    """A worker is ready: where (`node` is Ray's name of the machine), and what it says of itself."""

    host: str
    node: str
    pid: int
    evalkit: str
    described: dict[str, Any]
    log: list[LogLine]


@dataclass(frozen=True)
class Refusal:
    """A worker cannot load the model."""

    node: str
    error: EvalkitError
    log: list[LogLine]


@dataclass(frozen=True)
class Slice:
    """What a worker has finished since the last slice; `finished`: nothing of its chunk is left."""

    completions: list[Completion]
    finished: bool
    log: list[LogLine]


class Worker:
    """Loads a model once and answers chunks of requests, a slice of time after the other."""

    def __init__(self) -> None:
        self._log = _Kept()
        logger = logging.getLogger("evalkit")
        logger.setLevel(logging.INFO)
        logger.addHandler(self._log)
        self._running: Iterator[Completion] = iter(())
        self._problem: EvalkitError | None = None

    def load(self, config: Config, resolved: ResolvedModel, neighbours: int) -> Hello | Refusal:
        """Loads the model.

        Args:
            config: the options; its engine is the local one of this worker.
            resolved: the model as the driver knows it.
            neighbours: workers on this machine, this one included.
        """
        from evalkit.engines.local.engine import LocalEngine
        from evalkit.engines.local.memory import share_main_memory

        try:
            with foreign("a worker cannot load the model", where=resolved.path or resolved.name):
                share_main_memory(neighbours)
                found = on_this_machine(resolved)
                self._engine = LocalEngine(
                    found,
                    config.engine,
                    config.dtype,
                    bos=config.protocol.bos,
                    follow_generation_config=config.generation.from_model,
                )
                check_unchanged(found)
        except EvalkitError as error:
            return Refusal(_node(), error, self._log.take())
        described = self._engine.describe()
        return Hello(socket.gethostname(), _node(), os.getpid(), __version__, described, self._log.take())

    def answer(self, chunk: Sequence[Request] | None, seconds: float) -> Slice | EvalkitError:
        """Works on a chunk (None: on the one before) until it is done or `seconds` have passed.

        A slice that takes longer brings at least one completion.
        """
        if self._problem is not None:
            return self._problem
        done: list[Completion] = []
        end = time.monotonic() + seconds
        try:
            if chunk is not None:
                self._running = self._engine.generate(chunk)
            for completion in self._running:
                done.append(completion)
                if time.monotonic() > end:
                    return Slice(done, False, self._log.take())
        except EvalkitError as error:
            # What was finished goes first; the next call brings the error.
            self._problem = error
            return Slice(done, False, self._log.take())
        return Slice(done, True, self._log.take())


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
            + (error.fix or "python -m evalkit prepare model=..."),
        ) from None
    if found.identity != resolved.identity:
        raise other
    return replace(resolved, path=found.path, tokenizer=found.tokenizer)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


class _Kept(logging.Handler):
    """Keeps what evalkit says until the driver fetches it."""

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
