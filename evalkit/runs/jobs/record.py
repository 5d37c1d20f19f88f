"""The file of a job: what it runs, where, and how it ended. Written by the job, read by who waits."""

import json
import os
import signal
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from evalkit.core.durable import write_json_atomic
from evalkit.core.errors import EvalkitError


@dataclass(frozen=True)
class Job:
    """A command and its state.

    Attributes:
        words: the command line, without `python -m evalkit`.
        label: what tells the job from the others, for people.
        directory: the folder that relative paths in `words` start from.
        log: where its output goes; None: to the terminal.
        host, pid: the process that runs it or ran it last; None before.
        folder: its run directory, once known.
        code: the exit code; None while it waits or runs.
        why: what went wrong, in one sentence.
    """

    words: tuple[str, ...]
    label: str
    directory: str
    log: str | None = None
    host: str | None = None
    pid: int | None = None
    folder: str | None = None
    code: int | None = None
    why: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The job in a file.

        Raises:
            EvalkitError: the file is gone or not a job.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "words": tuple(content["words"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EvalkitError(f"the job's file cannot be read: {error}", where=path) from None

    def write(self, path: Path) -> Self:
        """Writes the file, whole or not at all; returns the job."""
        write_json_atomic(path, asdict(self))
        return self

    def here(self) -> Self:
        """The job as run by this process."""
        mine = {"host": socket.gethostname(), "pid": os.getpid()}
        return replace(self, **mine, folder=None, code=None, why="")  # type: ignore[arg-type]

    @property
    def runs_here(self) -> bool:
        """Whether a process of this machine is at it."""
        if self.code is not None or self.pid is None or self.host != socket.gethostname():
            return False
        return _is_alive(self.pid)

    def stop(self) -> None:
        """Asks the process to stop; it keeps what is finished and ends with 130."""
        if self.runs_here:
            assert self.pid is not None
            os.kill(self.pid, signal.SIGTERM)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
