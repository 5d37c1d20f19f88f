"""Jobs that a queue runs: how they are submitted, what they do on the node, and the wait for them.

SLURM is asked by `squeue`, which every cluster has; `sacct` only says more about jobs that are long gone.
A job's own file is believed first.
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
from typing import Any, NoReturn

from evalkit.core.errors import InterruptedRunError, reason
from evalkit.core.progress import say
from evalkit.core.signals import signals_stop_the_run
from evalkit.runs.jobs import INTERRUPTED, Job
from evalkit.runs.sweep.launchers import LocalOptions, SlurmOptions

# Seconds between two looks at the jobs' files, and from one question to SLURM to the next.
POLL = 1.0
FIRST_QUESTION, LAST_QUESTION = 2.0, 30.0
# How often a job that was stopped asks whether it is preempted.
PREEMPTION_LOOKS = 4
# A job that has said its exit code leaves the queue so soon, where SLURM answers: then SLURM has it too.
LEAVING_SECONDS = 10.0
# A file that a node wrote may be seen so much later on a file server.
VISIBLE_SECONDS = 15.0
# SLURM's words for a job that will not run again. It has more for those that will.
_STOPPED = {"CANCELLED", "DEADLINE", "PREEMPTED", "REVOKED", "TIMEOUT"}
_FORGOTTEN = "no longer in the queue"
_ENDED = {"BOOT_FAIL", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", _FORGOTTEN, *_STOPPED}


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
        ids = self.ids
        states: Mapping[str, State] = {}
        # When to stop waiting for the end in the queue, and for a word of a job that has ended there.
        leaving: dict[int, float] = {}
        gone: dict[int, float] = {}
        shown, pause, next_question = "", FIRST_QUESTION, 0.0
        while True:
            now = time.monotonic()
            for at, job in [(at, Job.read(paths[at])) for at in self.open]:
                ended = ids[at] in states and states[ids[at]].ended
                if job.code not in (None, INTERRUPTED):
                    if at not in leaving:
                        leaving[at] = now + (LEAVING_SECONDS if self.slurm else 0.0)
                        pause, next_question = FIRST_QUESTION, now
                    if ended or now >= leaving[at]:
                        self.open.remove(at)
                elif ended and now >= gone[at]:
                    self.open.remove(at)
                    self._note_end(paths[at], self.jobs[at], states[ids[at]])
            if not self.open:
                return
            if now >= next_question:
                problem = ""
                try:
                    states = self._states([ids[at] for at in self.open])
                except QueueError as error:
                    problem = f"SLURM does not answer ({error})"
                else:
                    visible = now + (VISIBLE_SECONDS if self.slurm else 0.0)
                    gone = {at: gone.get(at, visible) for at in self.open if states[ids[at]].ended}
                text = problem or _summary([states[ids[at]] for at in self.open], len(paths))
                if text != shown and self.slurm:
                    say(f"{time.strftime('%H:%M:%S')} {text}")
                pause = FIRST_QUESTION if text != shown else min(2 * pause, LAST_QUESTION)
                shown, next_question = text, now + (pause if self.slurm else 0.0)
            time.sleep(POLL)

    def _states(self, ids: Sequence[str]) -> dict[str, State]:
        """The state of each job.

        Raises:
            QueueError: SLURM does not answer.
        """
        if self.slurm:
            return _slurm_states(ids)
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


def _slurm_states(ids: Sequence[str]) -> dict[str, State]:
    """What SLURM says about jobs; one that it has forgotten has ended."""
    array = ids[0].partition("_")[0]
    asked = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "--format=%i|%T|%r"]
    try:
        lines = _ask(asked)
    except QueueError as error:
        if "Invalid job id" not in str(error):
            raise
        lines = []
    found = {name: State(word, why) for name, word, why in (line.split("|", 2) for line in lines)}
    forgotten = [name for name in ids if name not in found]
    if forgotten:
        listed = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(forgotten)}"]
        # Where there is no accounting it fails.
        with contextlib.suppress(QueueError):
            for line in _ask([*listed, "--format=JobID,State"]):
                name, _, word = line.partition("|")
                # `CANCELLED by 1000`.
                state = State(word.partition(" ")[0])
                if state.ended:
                    found[name] = state
    return {name: found.get(name, State(_FORGOTTEN)) for name in ids}


def _ask(command: Sequence[str]) -> list[str]:
    """The lines that one of SLURM's commands prints.

    Raises:
        QueueError: it failed; the text is the command's.
    """
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueueError(reason(error)) from None
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

        When its time is up (SIGUSR2) or SLURM preempts it, the job saves its work and goes back into
        the queue.
        """
        import submitit

        environment = submitit.JobEnvironment()
        job = Job.read(path)
        os.chdir(job.directory)
        replace(job, log=str(environment.paths.stdout)).write(path)
        time_is_up = False

        def stop(number: int, frame: object) -> None:
            nonlocal time_is_up
            time_is_up = True
            signal.raise_signal(signal.SIGUSR1)

        try:
            with signals_stop_the_run():
                signal.signal(signal.SIGUSR2, stop)
                try:
                    code = self.run_job(path)
                finally:
                    # What SLURM sends while it ends the job changes nothing any more.
                    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        except InterruptedRunError:
            code = INTERRUPTED
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if code == INTERRUPTED and environment.global_rank == 0:
            self._requeue(path, environment, time_is_up=time_is_up)
        sys.exit(code)

    def _requeue(self, path: Path, environment: Any, *, time_is_up: bool) -> None:
        """Puts an interrupted job back into the queue, where nobody asked for its end."""
        job, preempted = Job.read(path), _preempted()
        if preempted:
            why = "SLURM preempts this job"
        elif time_is_up:
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
        try:
            environment._requeue(self.most - job.timeouts)
        except (OSError, subprocess.SubprocessError) as error:
            replace(job, why=f"{why}, and SLURM does not requeue it: {reason(error)}").write(path)


def _preempted() -> bool:
    """Whether SLURM lets this job run on for its grace time only; if it ends then, it has ended for good."""
    job = os.environ.get("SLURM_JOB_ID")
    # The signal may come before SLURM says why, and a busy SLURM may not answer at once.
    for _ in range(PREEMPTION_LOOKS if job else 0):
        try:
            (line,) = _ask(["scontrol", "show", "job", "--oneliner", str(job)])[:1]
        except (QueueError, ValueError) as error:
            print(f"SLURM does not answer ({error})", flush=True)
        else:
            if not re.search(r"\bJobState=RUNNING\b", line):
                return False
            if re.search(r"\bPreemptTime=\d", line):
                return True
        time.sleep(POLL)
    return False
