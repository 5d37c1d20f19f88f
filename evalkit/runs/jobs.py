"""A job: one command in a process of its own, which frees its memory and contains its crashes.

Its file says what it runs, where, and how it ended. The job writes it; the process that waits reads it.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from evalkit.core.durable import is_running, write_json_atomic
from evalkit.core.errors import EvalkitError
from evalkit.core.signals import STOPPING

PACKAGES = Path(__file__).resolve().parents[2]
# The exit code of a process that a signal stopped.
INTERRUPTED = 130
# A job that is asked to stop may have a long pass of the model to finish first.
STOP_SECONDS = 60.0
# A log is UTF-8 whatever the terminal is in.
_LOG_ENCODING = {"PYTHONIOENCODING": "utf-8"}
_STOPPING = (signal.SIGINT, *STOPPING)


@dataclass(frozen=True)
class Job:
    """A command and its state.

    Attributes:
        words: the command line, without `python -m evalkit`.
        label: distinguishes the job from the others in messages.
        directory: the folder that relative paths in `words` start from.
        log: where its output goes; None: to the terminal.
        host, pid: the process that runs it or ran it last; None before.
        folder: its run directory, once known.
        code: the exit code; None while it waits or runs.
        why: what went wrong, in one sentence.
        timeouts: how often its time was up and it went back into the queue.
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
    timeouts: int = 0

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
        """Writes the file, whole or not at all; returns the job. The words may have a server's password."""
        write_json_atomic(path, asdict(self), mode=0o600)
        return self

    def here(self) -> Self:
        """The job as run by this process."""
        mine = {"host": socket.gethostname(), "pid": os.getpid()}
        return replace(self, **mine, folder=None, code=None, why="")  # type: ignore[arg-type]

    @property
    def runs_here(self) -> bool:
        """Whether a process of this machine runs it."""
        mine = self.code is None and self.host == socket.gethostname()
        return mine and self.pid is not None and is_running(self.pid)

    def stop(self) -> None:
        """Sends SIGTERM to the process; it keeps what is finished and exits with 130."""
        if self.runs_here:
            assert self.pid is not None
            # It may end meanwhile, and its number may go to somebody else's process.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGTERM)


def run_in_child(path: Path) -> int:
    """Runs the job of a file in a child process and returns its exit code.

    When this process is interrupted, the child is asked to stop and waited for.
    """
    job = Job.read(path)
    # The parent may have found evalkit through its working directory.
    packages = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(Path(job.log).open("ab")) if job.log else None
        child = subprocess.Popen(
            [sys.executable, "-m", "evalkit.cli.child", str(path), str(os.getpid())],
            cwd=job.directory,
            env={**os.environ, "PYTHONPATH": packages, **(_LOG_ENCODING if log else {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT if log else None,
        )
        try:
            child.wait()
        except BaseException:
            _stop(child)
            _note_end(path, child.returncode)
            raise
    return _note_end(path, child.returncode)


def _stop(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _note_end(path: Path, code: int) -> int:
    """The job's exit code; records the reason for a process that was killed before it could."""
    job = Job.read(path)
    if job.code is None:
        # A signal before evalkit starts or after it ends finds no handler.
        own, why = 1, f"its process ended with {code}"
        if code < 0:
            own, why = INTERRUPTED if -code in _STOPPING else 1, f"stopped by {signal.Signals(-code).name}"
        job = replace(job, code=own, why=why).write(path)
    assert job.code is not None
    return job.code
