"""Running a job in a process of its own: it gives all memory back, and its crash is only its own."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from evalkit.jobs.record import Job
from evalkit.signals import STOPPING

PACKAGES = Path(__file__).resolve().parents[2]
# A job that is asked to stop may have a long pass of the model to finish first.
STOP_SECONDS = 60.0
# A log is UTF-8 whatever the terminal is in.
_LOG_ENCODING = {"PYTHONIOENCODING": "utf-8"}
_STOPPING = (signal.SIGINT, *STOPPING)


def run_in_child(path: Path) -> int:
    """Runs the job of a file in a child process and returns its exit code.

    When this process is interrupted, the child is asked to stop and waited for.
    """
    job = Job.read(path)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(Path(job.log).open("ab")) if job.log else None
        child = subprocess.Popen(
            [sys.executable, "-m", "evalkit.jobs.child", str(path)],
            cwd=job.directory,
            env={**os.environ, "PYTHONPATH": _python_path(), **(_LOG_ENCODING if log else {})},
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


def _python_path() -> str:
    # The parent may have found evalkit through its working directory.
    return os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))


def _stop(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _note_end(path: Path, code: int) -> int:
    """The job's exit code; a process that was killed could not write why itself."""
    job = Job.read(path)
    if job.code is None:
        # A signal before the first or after the last line of evalkit's own finds no handler.
        own, why = 1, f"its process ended with {code}"
        if code < 0:
            own, why = 130 if -code in _STOPPING else 1, f"stopped by {signal.Signals(-code).name}"
        job = replace(job, code=own, why=why).write(path)
    assert job.code is not None
    return job.code
