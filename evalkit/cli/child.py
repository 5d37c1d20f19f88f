"""python -m evalkit.cli.child JOBFILE PARENT: the process of a job; PARENT is that of the one that waits."""

import sys
from dataclasses import replace
from pathlib import Path

from evalkit.cli.command import VERBS, attempt, execute
from evalkit.core import terminal
from evalkit.core.errors import RunLockedError
from evalkit.core.logs import quiet_libraries
from evalkit.core.signals import stop_with_the_parent
from evalkit.records.run_folder import wait_for
from evalkit.runs.jobs import Job

# Another process works on the same run directory: how long until the next look.
LOCKED_SECONDS = 2.0


def run_job(path: Path) -> int:
    """Runs the job of a file in this process and writes into the file how it goes.

    A run directory that another job works on is waited for: `limit=10,20` are two jobs on one.
    """
    job = Job.read(path).here().write(path)

    def opened(folder: Path) -> None:
        nonlocal job
        job = replace(job, folder=str(folder)).write(path)

    def work() -> int:
        from evalkit.core.options import load_config, parse

        line = parse(job.words, VERBS)
        config = load_config(line)
        while True:
            try:
                return execute(line.verb, config, opened=opened)
            except RunLockedError as error:
                print(f"waiting: {error.what} ({error.where})", file=sys.stderr, flush=True)
                wait_for(Path(error.where or "."), LOCKED_SECONDS)

    ended = attempt(work)
    replace(job, code=ended.code, why=ended.why).write(path)
    return ended.code


if __name__ == "__main__":
    terminal.prepare()
    quiet_libraries()
    stop_with_the_parent(int(sys.argv[2]))
    code = run_job(Path(sys.argv[1]))
    terminal.finish()
    sys.exit(code)
