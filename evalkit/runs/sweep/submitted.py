"""Jobs that a queue runs: how they are submitted, what they do on the node, and the wait for them.

SLURM is asked by `squeue`, which every cluster has, and a job's own file is believed first.
"""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from evalkit.core.errors import InterruptedRunError, reason
from evalkit.core.progress import say
from evalkit.core.signals import signals_stop_the_run
from evalkit.runs.jobs import INTERRUPTED, Job
from evalkit.runs.sweep.launchers import LocalOptions, SlurmOptions

# Seconds between two looks at the jobs' files, and from one question to SLURM to the next.
POLL = 1.0
FIRST_QUESTION, LAST_QUESTION = 2.0, 30.0
# What a job writes into its file and what SLURM says about it may be so far apart.
APART_SECONDS = 15.0
# How long a job asks a SLURM that is busy or starts again.
ANSWER_SECONDS = 60.0
# SLURM's words for a job that will not run again. It has more for those that will.
_STOPPED = {"CANCELLED", "DEADLINE", "PREEMPTED", "REVOKED", "TIMEOUT"}
_FORGOTTEN = "no longer in the queue"
_ENDED = {"BOOT_FAIL", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", _FORGOTTEN, *_STOPPED}

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class State:
    """What the queue says about a job: its word for the state, and the reason where there is one."""

    word: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job will not run again."""
        return self.word in _ENDED

    def __str__(self) -> str:
        # A cancelled job keeps the reason for which it was waiting.
        shown = self.reason not in ("", "None") and self.word != "CANCELLED"
        return f"{self.word} ({self.reason})" if shown else self.word


class QueueError(Exception):
    """The queue does not answer."""


@dataclass
class Queue:
    """The submitted jobs, in the order of their files; `open`: the positions of those that go on."""

    jobs: Sequence[Any]
    slurm: bool
    open: list[int]

    @classmethod
    def submit(
        cls, folder: Path, paths: Sequence[Path], options: LocalOptions, run_job: Callable[[Path], int]
    ) -> "Queue":
        """Submits the jobs.

        Args:
            folder: where submitit keeps its files.
            paths: the files of the jobs.
            options: of SLURM, or of submitit's local executor.
            run_job: runs the job of a file and returns its exit code, on the node.

        Raises:
            Exception: of any type, from submitit and SLURM's commands.
        """
        import submitit

        slurm = isinstance(options, SlurmOptions)
        cluster = "slurm" if slurm else "local"
        general = {one.name for one in fields(LocalOptions)}
        given = asdict(options)
        most = given.pop("max_num_timeout")
        if isinstance(options, SlurmOptions):
            # A job may put itself back into the queue only where it says so.
            more = options.additional_parameters
            given["additional_parameters"] = more if "no-requeue" in more else {"requeue": True, **more}
            # Since 22.05 srun no longer takes over the number of CPUs of the job.
            cpus = 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"'
            given["setup"] = [cpus, *(options.setup or ())]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(cluster=cluster, folder=folder)
        executor.update_parameters(
            **{key if key in general else f"{cluster}_{key}": value for key, value in given.items()}
        )
        # submitit prints the error that it raises.
        with contextlib.redirect_stderr(io.StringIO()):
            jobs = executor.map_array(SubmittedJob(run_job, most), paths)
        print(f"submitted: {', '.join(job.job_id for job in jobs)}", flush=True)
        return cls(jobs, slurm, list(range(len(jobs))))

    @property
    def ids(self) -> list[str]:
        """The queue's names of the jobs."""
        return [job.job_id for job in self.jobs]

    def wait(self, paths: Sequence[Path]) -> None:
        """Waits until every job has ended, and says meanwhile how far they are.

        What a job says itself, its exit code, holds; one that was interrupted or died has ended when
        the queue says so, and then its file says why.
        """
        ids, apart = self.ids, APART_SECONDS if self.slurm else 0.0
        states: Mapping[str, State] = {}
        # When the first of the two, the job's file and the queue, said that a job has ended.
        since: dict[int, float] = {}
        shown, pause, next_question = "", FIRST_QUESTION, 0.0
        while self.open:
            now = time.monotonic()
            if now >= next_question:
                try:
                    states = self._states()
                    text = _summary([states[ids[at]] for at in self.open], len(paths))
                except QueueError as error:
                    text = f"SLURM does not answer ({error})"
                if text != shown and self.slurm:
                    say(f"{time.strftime('%H:%M:%S')} {text}")
                pause = FIRST_QUESTION if text != shown or since else min(2 * pause, LAST_QUESTION)
                shown, next_question = text, now + (pause if self.slurm else 0.0)
            for at in tuple(self.open):
                said = Job.read(paths[at]).code not in (None, INTERRUPTED)
                gone = ids[at] in states and states[ids[at]].ended
                if not (said or gone):
                    since.pop(at, None)
                    continue
                if at not in since:
                    since[at], next_question = now, now
                if (said and gone) or now >= since[at] + apart:
                    del since[at]
                    self.open.remove(at)
                    if not said:
                        self._note_end(paths[at], self.jobs[at], states[ids[at]])
            if self.open:
                time.sleep(POLL)

    def _states(self) -> dict[str, State]:
        """The state of each job.

        Raises:
            QueueError: SLURM does not answer.
        """
        if self.slurm:
            found = _slurm_states(self.ids[0].partition("_")[0])
            return {name: found.get(name, State(_FORGOTTEN)) for name in self.ids}
        return {job.job_id: State("RUNNING" if job.state == "RUNNING" else "COMPLETED") for job in self.jobs}

    def _note_end(self, path: Path, queued: Any, state: State) -> None:
        """Writes how a job ended that was interrupted or could not say it itself."""
        job = Job.read(path)
        what = f"SLURM job {queued.job_id}: {state}" if self.slurm else f"job {queued.job_id}"
        if job.code is not None:
            replace(job, why=f"{job.why} ({what})" if self.slurm else job.why).write(path)
            return
        log = Path(queued.paths.stdout)
        last = _last_line(log)
        why = what + (", before evalkit started" if job.pid is None else ", without a result")
        why += f"; the log ends: {last}" if last else ""
        code = INTERRUPTED if state.word in _STOPPED else 1
        replace(job, code=code, why=why, log=str(log) if last else None).write(path)


def _summary(states: Sequence[State], number: int) -> str:
    """How many jobs are in which state; `states` are those of the jobs that have not ended."""
    said = Counter(
        str(replace(state, word=state.word.lower(), reason=state.reason if state.word == "PENDING" else ""))
        for state in states
    )
    parts = [f"{count} {what}" for what, count in sorted(said.items())]
    done = number - len(states)
    return f"SLURM: {', '.join(parts)}" + (f", {done} of {number} done" if done else "")


def _slurm_states(array: str) -> dict[str, State]:
    """What SLURM says about the jobs of an array, or about one job; nothing where it has forgotten them.

    Raises:
        QueueError: it does not answer.
    """
    asked = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "--format=%i|%T|%r"]
    try:
        lines = _ask(asked)
    except QueueError as error:
        if "Invalid job id" not in str(error):
            raise
        return {}
    return {name: State(word, why) for name, word, why in (line.split("|", 2) for line in lines)}


def _ask(command: Sequence[str]) -> list[str]:
    """The lines that one of SLURM's commands prints.

    Raises:
        QueueError: it failed; the text is the command's.
    """
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueueError(reason(error)) from error
    if ended.returncode:
        raise QueueError(slurm_text(ended.stderr) or f"{command[0]} ended with {ended.returncode}")
    return ended.stdout.split("\n")[:-1]


def slurm_text(text: str) -> str:
    """What one of SLURM's commands says, on one line and without its name."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in text.strip().splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))


def _last_line(log: Path) -> str:
    """The last line of a log, or the error shortly before it; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2000))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.split("\n") if line.strip()][-5:]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1]


@dataclass(frozen=True)
class SubmittedJob:
    """What submitit calls on the node.

    Attributes:
        run_job: runs the job of a file and returns its exit code.
        most: how often its time may be up.
    """

    run_job: Callable[[Path], int]
    most: int

    def __call__(self, path: Path) -> NoReturn:
        """Runs the job of a file; the process ends with its exit code, which the queue is told.

        When its time is up (submitit's signal, SIGUSR2 by default) or SLURM preempts it, the job saves its
        work and goes back into the queue.
        """
        import submitit

        environment = submitit.JobEnvironment()
        job = Job.read(path)
        os.chdir(job.directory)
        replace(job, log=str(environment.paths.stdout)).write(path)
        own, time_is_up = environment._usr_sig(), False
        try:
            with signals_stop_the_run():
                interrupt: Any = signal.getsignal(signal.SIGTERM)

                def stop(number: int, frame: object) -> None:
                    nonlocal time_is_up
                    time_is_up = True
                    interrupt(number, frame)

                signal.signal(own, stop)
                try:
                    code = self.run_job(path)
                finally:
                    # What SLURM sends while it ends the job changes nothing any more.
                    signal.signal(own, signal.SIG_IGN)
        except InterruptedRunError:
            code = INTERRUPTED
        for number in (own, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if code == INTERRUPTED and environment.global_rank == 0:
            self._requeue(path, environment, time_is_up=time_is_up)
        sys.exit(code)

    def _requeue(self, path: Path, environment: Any, *, time_is_up: bool) -> None:
        """Puts an interrupted job back into the queue, where nobody asked for its end."""
        job, said = Job.read(path), _said_about(environment)
        # SLURM's own signal at the end of the time.
        over = said.get("Reason") == "TimeLimit"
        # A job that is cancelled would come back, one that was preempted comes back anyway.
        if not (over or said.get("JobState", "RUNNING") == "RUNNING"):
            return
        if said.get("Requeue") == "0":
            if time_is_up or over:
                replace(job, why="its time is up, and it may not be requeued").write(path)
            return
        if said.get("PreemptTime", "")[:1].isdigit():
            why = "SLURM preempts this job"
        elif time_is_up or over:
            count = job.timeouts + 1
            if count > self.most:
                why = f"its time was up {count} times (hydra.launcher.max_num_timeout={self.most})"
                replace(job, why=why).write(path)
                return
            why = f"its time is up ({count} of {self.most} times)"
            job = replace(job, timeouts=count).write(path)
        else:
            return
        print(f"{why}: what is finished is kept, the job goes back into the queue", flush=True)

        def failed(error: Exception) -> None:
            # At once: the job may be ended while it asks again.
            replace(job, why=f"{why}, and SLURM does not requeue it: {reason(error)}").write(path)

        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _until_answered(lambda: environment._requeue(self.most - job.timeouts), failed)
            job.write(path)


def _said_about(environment: Any) -> dict[str, str]:
    """What SLURM says about this job (`scontrol show job`); nothing where it does not answer, or is none."""
    if environment.cluster != "slurm":
        return {}
    try:
        lines = _until_answered(lambda: _ask(["scontrol", "show", "job", "-o", environment.job_id]))
    except QueueError:
        return {}
    return dict(word.split("=", 1) for word in " ".join(lines).split() if "=" in word)


def _until_answered(
    ask: Callable[[], _Answer], failed: Callable[[Exception], object] | None = None
) -> _Answer:
    """Asks again while SLURM fails to answer; `failed` gets each error."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            return ask()
        except (QueueError, OSError, subprocess.SubprocessError) as error:
            if failed is not None:
                failed(error)
            # Without SLURM's commands, as in a container, nothing ever answers.
            if time.monotonic() >= deadline or isinstance(error.__cause__ or error, FileNotFoundError):
                raise
            print(f"SLURM does not answer: {reason(error)}", flush=True)
            time.sleep(FIRST_QUESTION)
