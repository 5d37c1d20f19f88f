"""evalkit commands as processes of their own that can be killed.

A process start costs seconds of imports and would be most of a test. So most commands are forked
from a process that has imported everything (tests/preloaded.py), one for all processes of a test
session: the command, its files, locks and signals are those of `python -m evalkit`. Some are started as
people start them, which also puts moments into the imports.
"""

import contextlib
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from types import SimpleNamespace
from typing import IO, NoReturn, Protocol
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 600.0
# Before a test changes anything in it.
_ENVIRONMENT = dict(os.environ)
# All processes of a test session have one place, and end with one process.
_NAME = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid4().hex
_PLACE = Path(tempfile.gettempdir(), f"evalkit-tests-{_NAME}")
_SESSION = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


class Fault(Protocol):
    """Something that is put into a command before it starts, in the command's own process."""

    def install(self) -> None: ...


@dataclass(frozen=True)
class Ended:
    """How a command ended: the exit code (negative: the signal) and what it said."""

    code: int
    out: str
    err: str


class Forked:
    """A function called in a process of its own, which has imported everything."""

    def __init__(self, target: Callable[..., object], *values: object) -> None:
        self._connection = _connected()
        self._connection.send((sys.path, pickle.dumps((target, values))))
        self.pid: int = self._connection.recv()
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code (negative: the signal); None while it runs."""
        if self._code is None and self._connection.poll():
            self._code = self._connection.recv()
        return self._code


class Child:
    """A command under way."""

    def __init__(self, process: Forked | subprocess.Popen[bytes], folder: Path, name: str) -> None:
        self._process = process
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        self.pid = process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: int) -> None:
        """Sends a signal, unless the command has ended."""
        if self.running:
            os.kill(self.pid, number)

    def kill(self) -> Ended:
        """kill -9."""
        self.send(signal.SIGKILL)
        return self.wait()

    def wait(self) -> Ended:
        """Waits until the command has ended."""
        deadline = time.monotonic() + LONGEST
        while (code := self._process.poll()) is None:
            assert time.monotonic() < deadline, f"still running after {LONGEST} s: {self._err.read_text()}"
            time.sleep(0.01)
        said = [path.read_text(errors="replace") if path.exists() else "" for path in (self._out, self._err)]
        return Ended(code, *said)


def settings(folder: Path) -> dict[str, str]:
    """The environment of a command whose cache lies in `folder`."""
    return {
        "PYTHONPATH": str(ROOT),
        "EVALKIT_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


_count = 0


def fork(
    words: Sequence[str], folder: Path, faults: Sequence[Fault] = (), env: dict[str, str] | None = None
) -> Child:
    """Starts a command in `folder` with faults put into it."""
    global _count
    _count += 1
    own = settings(folder) | (env or {})
    name = f"command-{_count}"
    process = Forked(_command, list(words), str(folder), name, list(faults), own)
    return Child(process, folder, name)


def start(words: Sequence[str], folder: Path, env: dict[str, str] | None = None) -> Child:
    """Starts a command in `folder` as people do."""
    global _count
    _count += 1
    name = f"command-{_count}"
    with (folder / f"{name}.out").open("wb") as out, (folder / f"{name}.err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "evalkit", *words],
            cwd=folder,
            env={**os.environ, **settings(folder), **(env or {})},
            stdout=out,
            stderr=err,
        )
    return Child(process, folder, name)


@dataclass(frozen=True)
class ForkedJobs:
    """Has a command fork its jobs, where it would start an interpreter that imports everything again."""

    def install(self) -> None:
        from evalkit.runs import jobs

        jobs.subprocess = SimpleNamespace(  # type: ignore[assignment]
            Popen=_ForkedJob,
            DEVNULL=subprocess.DEVNULL,
            STDOUT=subprocess.STDOUT,
            TimeoutExpired=subprocess.TimeoutExpired,
        )


class _ForkedJob:
    """`python -m evalkit.cli.child JOBFILE` in a fork of this process, with what Popen can do to it."""

    def __init__(
        self, command: list[str], *, cwd: str, env: dict[str, str], stdout: IO[bytes] | None, **_: object
    ) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(command, cwd, env, stdout)

    def _become(
        self, command: list[str], cwd: str, env: dict[str, str], stdout: IO[bytes] | None
    ) -> NoReturn:
        code: object = 1
        try:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(env)
            if stdout is not None:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
            sys.argv = command[2:]
            runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (LONGEST if timeout is None else timeout)
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked job", timeout or LONGEST)
            else:
                time.sleep(0.01)
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _connected() -> Connection:
    """A connection to the process that forks; the first of the session to need it starts it."""
    # Where the place cannot be bound, another process has done so.
    with socket.socket(socket.AF_UNIX) as listener, contextlib.suppress(OSError):
        listener.bind(str(_PLACE))
        listener.listen()
        number = listener.fileno()
        code = f"from tests.preloaded import serve; serve({number}, {_SESSION})"
        environment = _ENVIRONMENT | settings(ROOT)
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, pass_fds=[number])
    deadline = time.monotonic() + 10
    while True:
        try:
            return Client(str(_PLACE))
        except ConnectionRefusedError:
            # It is bound, but nobody listens yet.
            assert time.monotonic() < deadline, "the process that forks has ended"
            time.sleep(0.01)


def _command(words: list[str], folder: str, name: str, faults: list[Fault], env: dict[str, str]) -> None:
    os.environ.update(env)
    os.chdir(folder)
    for stream, ending in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{name}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    for fault in faults:
        fault.install()
    from evalkit.__main__ import main

    sys.exit(main(words))
