"""Jobs of a queue without one: what SLURM's words mean, when a job has ended, which job goes back into it."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from evalkit.cli import child
from evalkit.cli.command import attempt
from evalkit.core.options import CommandLine
from evalkit.core.signals import stop_if_signalled
from evalkit.records.run_folder import RunDirectory
from evalkit.runs.jobs import Job
from evalkit.runs.sweep import submitted
from evalkit.runs.sweep.multirun import _write_jobs, lines
from evalkit.runs.sweep.submitted import Queue, QueueError, State, SubmittedJob

INVALID = "slurm_load_jobs error: Invalid job id specified"
JOB = Job(("run",), "a", "/")


class Commands:
    """SLURM's commands: what each prints, or the text it fails with."""

    def __init__(self, **answers: str | QueueError) -> None:
        self.answers = answers
        self.asked: list[list[str]] = []

    def __call__(self, command: list[str]) -> list[str]:
        self.asked.append(command)
        answer = self.answers.get(command[0], QueueError("Slurm accounting storage is disabled"))
        if isinstance(answer, QueueError):
            raise answer
        return answer.splitlines()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("7_0|RUNNING|None\n7_1|PENDING|Resources", ["RUNNING", "PENDING (Resources)"]),
        ("7_1|PENDING|a|b", ["no longer in the queue", "PENDING (a|b)"]),
        (QueueError(INVALID), ["no longer in the queue"] * 2),
    ],
)
def test_what_slurm_says(
    monkeypatch: pytest.MonkeyPatch, answer: str | QueueError, expected: list[str]
) -> None:
    monkeypatch.setattr(submitted, "_ask", Commands(squeue=answer))
    states = queue_of_jobs(2)._states()
    assert [str(state) for state in states.values()] == expected
    assert [state.ended for state in states.values()] == [text.startswith("no longer") for text in expected]


def test_a_silent_slurm_is_not_the_end_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitted, "_ask", Commands(squeue=QueueError("Unable to contact slurm controller")))
    with pytest.raises(QueueError, match="controller"):
        queue_of_jobs(1)._states()


def test_every_line_of_a_refusal_is_said_once() -> None:
    text = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: y\n"
    assert submitted.slurm_text(text) == "invalid partition specified: x; Batch job submission failed: y"


def queue_of_jobs(number: int, folder: Path = Path()) -> Queue:
    jobs = [
        SimpleNamespace(job_id=f"7_{at}", paths=SimpleNamespace(stdout=folder / f"{at}.log"))
        for at in range(number)
    ]
    return Queue(jobs, True, list(range(number)))


def queue_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[dict[int, str] | str], jobs: list[Job]
) -> tuple[Queue, list[Path]]:
    """A queue that gives one answer after another: words of jobs by position, or why it does not answer."""
    for name in ("APART_SECONDS", "FIRST_QUESTION", "POLL"):
        monkeypatch.setattr(submitted, name, 0.0)
    paths = []
    for at, job in enumerate(jobs):
        paths.append(tmp_path / f"{at}.json")
        job.write(paths[-1])
    left = list(answers)

    def states(array: str) -> dict[str, State]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, str):
            raise QueueError(answer)
        return {f"7_{at}": State(*answer.get(at, "RUNNING").split(" ")) for at in range(len(jobs))}

    monkeypatch.setattr(submitted, "_slurm_states", states)
    return queue_of_jobs(len(jobs), tmp_path), paths


def test_jobs_end_when_they_or_slurm_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        replace(JOB, pid=1, code=0),
        replace(JOB, pid=1),
        JOB,
        replace(JOB, pid=1, code=130, why="stopped by SIGTERM"),
    ]
    ended = {1: "FAILED NonZeroExitCode", 2: "CANCELLED Priority", 3: "CANCELLED"}
    queue, paths = queue_of(tmp_path, monkeypatch, [{2: "PENDING Priority"}, "no route", {}, ended], jobs)
    (tmp_path / "1.log").write_text("starting\nsrun: error: node: task 0: Killed\nsrun: Force Terminated\n\n")
    queue.wait(paths)
    codes = {job.code: job.why for job in map(Job.read, paths[1:3])}
    assert codes == {
        1: "SLURM job 7_1: FAILED (NonZeroExitCode), without a result; "
        "the log ends: srun: error: node: task 0: Killed",
        130: "SLURM job 7_2: CANCELLED, before evalkit started",
    }
    assert Job.read(paths[3]).why == "stopped by SIGTERM (SLURM job 7_3: CANCELLED)"
    assert Job.read(paths[1]).log == str(tmp_path / "1.log") and Job.read(paths[2]).log is None
    said = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said[:3] == [
        "SLURM: 1 pending (Priority), 3 running",
        "SLURM does not answer (no route)",
        "SLURM: 3 running, 1 of 4 done",
    ]


def test_a_requeued_job_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = replace(JOB, pid=1, code=130, why="stopped by SIGTERM")
    answers: list[dict[int, str] | str] = [{0: "COMPLETING"}, {0: "PENDING BeginTime"}, {0: "REQUEUED"}]
    queue, paths = queue_of(tmp_path, monkeypatch, answers, [interrupted])
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            replace(interrupted, code=0, why="").write(paths[0])

    monkeypatch.setattr(submitted.time, "sleep", sleep)
    queue.wait(paths)
    assert Job.read(paths[0]).code == 0 and looks == 5


@pytest.mark.parametrize(("answers", "looks"), [([{}, {}, {0: "COMPLETED"}], 3), (["no route"], 6)])
def test_a_job_that_is_done_leaves_the_queue_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[dict[int, str] | str], looks: int
) -> None:
    queue, paths = queue_of(tmp_path, monkeypatch, answers, [replace(JOB, pid=1, code=2, why="no")])
    monkeypatch.setattr(submitted, "APART_SECONDS", 5.0)
    clock = iter(range(10))
    monkeypatch.setattr(submitted.time, "monotonic", lambda: float(next(clock)))
    queue.wait(paths)
    assert next(clock) == looks and Job.read(paths[0]) == replace(JOB, pid=1, code=2, why="no")


@pytest.mark.parametrize("own", [signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM])
def test_the_signal_before_the_time_is_up_is_that_of_submitit(
    own: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SUBMITIT_PREEMPT_SIGNAL names it; it may be one that stops every run."""
    submitit = pytest.importorskip("submitit")
    requeued: list[int] = []
    environment = SimpleNamespace(
        cluster="local",
        global_rank=0,
        paths=SimpleNamespace(stdout=tmp_path / "log"),
        _usr_sig=lambda: own,
        _requeue=requeued.append,
    )
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: environment)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.json"
    replace(JOB, pid=1, directory=str(tmp_path)).write(path)

    def interrupted() -> int:
        os.kill(os.getpid(), own)
        stop_if_signalled()
        return 0

    before = {number: signal.getsignal(number) for number in (own, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            SubmittedJob(lambda path: attempt(interrupted).code, 2)(path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (ended.value.code, requeued, Job.read(path).timeouts) == (130, [1], 1)


def test_a_job_waits_for_a_locked_run_before_it_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, begun, tries = threading.Event(), threading.Event(), []

    def hold() -> None:
        with FileLock(tmp_path / "run" / ".lock"):
            held.set()
            begun.wait(10)
            time.sleep(0.05)

    def execute(verb: str, config: object, *, opened: object) -> int:
        tries.append(verb)
        begun.set()
        with RunDirectory(tmp_path / "run"):
            return 0

    monkeypatch.setattr(child, "execute", execute)
    monkeypatch.setattr(child, "LOCKED_SECONDS", 0.001)
    path = tmp_path / "job.json"
    replace(JOB, words=("run", "limit=1")).write(path)
    (tmp_path / "run").mkdir()
    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    assert child.run_job(path) == 0 and tries == ["run", "run"]
    other.join()


RUNNING = "JobId=7 JobName=a b JobState=RUNNING Reason=None Requeue=1 PreemptTime="
PREEMPTED = RUNNING + "2026-01-01T00:00:00"
SILENT = QueueError("Unable to contact slurm controller")


@pytest.mark.parametrize(
    ("time_is_up", "timeouts", "scontrol", "requeued", "why"),
    [
        (True, 0, RUNNING + "None", True, "stopped"),
        (True, 2, RUNNING + "None", False, "its time was up 3 times"),
        (True, 2, PREEMPTED, True, "stopped"),
        (False, 0, RUNNING + "None", False, "stopped"),
        (False, 0, PREEMPTED, True, "stopped"),
        (False, 0, PREEMPTED.replace("Requeue=1", "Requeue=0"), False, "stopped"),
        (True, 0, RUNNING.replace("Requeue=1", "Requeue=0"), False, "its time is up, and it may not be"),
        (False, 0, PREEMPTED.replace("RUNNING", "COMPLETING"), False, "stopped"),
        (True, 0, "JobId=7 JobState=COMPLETING Reason=None PreemptTime=None", False, "stopped"),
        (False, 0, "JobId=7 JobState=COMPLETING Reason=TimeLimit PreemptTime=None", True, "stopped"),
        (True, 0, SILENT, True, "stopped"),
        (False, 0, SILENT, False, "stopped"),
    ],
)
def test_who_goes_back_into_the_queue(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    time_is_up: bool,
    timeouts: int,
    scontrol: str | QueueError,
    requeued: bool,
    why: str,
) -> None:
    monkeypatch.setattr(submitted, "_ask", Commands(scontrol=scontrol))
    monkeypatch.setattr(submitted, "ANSWER_SECONDS", 0.0)
    path = tmp_path / "job.json"
    replace(JOB, pid=1, code=130, why="stopped", timeouts=timeouts).write(path)
    asked: list[int] = []
    environment = SimpleNamespace(cluster="slurm", job_id="7", _requeue=asked.append)
    SubmittedJob(lambda path: 0, 2)._requeue(path, environment, time_is_up=time_is_up)
    assert bool(asked) == requeued
    assert Job.read(path).why.startswith(why)


def test_a_job_asks_a_busy_slurm_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([SILENT, PREEMPTED])
    monkeypatch.setattr(submitted, "_ask", lambda words: Commands(scontrol=next(answers))(words))
    monkeypatch.setattr(submitted, "FIRST_QUESTION", 0.0)
    left = [subprocess.CalledProcessError(1, ["scontrol", "requeue", "7"])]

    def requeue(countdown: int) -> None:
        if left:
            raise left.pop()

    path = tmp_path / "job.json"
    replace(JOB, code=130, why="stopped").write(path)
    environment = SimpleNamespace(cluster="slurm", job_id="7", _requeue=requeue)
    SubmittedJob(lambda path: 0, 2)._requeue(path, environment, time_is_up=False)
    assert Job.read(path).why == "stopped"
    said = capsys.readouterr().out
    assert said.count("SLURM does not answer") == 2 and "SLURM preempts this job" in said


def test_a_refused_requeue_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(left: int) -> None:
        raise subprocess.CalledProcessError(1, ["scontrol", "requeue", "7"])

    monkeypatch.setattr(submitted, "ANSWER_SECONDS", 0.0)
    path = tmp_path / "job.json"
    replace(JOB, code=130, why="stopped").write(path)
    environment = SimpleNamespace(cluster="local", _requeue=refuse)
    SubmittedJob(lambda path: 0, 2)._requeue(path, environment, time_is_up=True)
    assert "SLURM does not requeue it" in Job.read(path).why


def test_without_slurms_commands_nothing_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "job.json"
    replace(JOB, code=130, why="stopped").write(path)

    def requeue(left: int) -> None:
        subprocess.check_call(["scontrol", "requeue", "7"])

    environment = SimpleNamespace(cluster="slurm", job_id="7", _requeue=requeue)
    SubmittedJob(lambda path: 0, 2)._requeue(path, environment, time_is_up=True)
    assert "SLURM does not requeue it" in Job.read(path).why
    assert "SLURM does not answer" not in capsys.readouterr().out


def test_a_command_that_fails_is_a_queue_error() -> None:
    with pytest.raises(QueueError, match=r"^no such thing$"):
        submitted._ask([sys.executable, "-c", "import sys; sys.exit('squeue: error: no such thing')"])
    with pytest.raises(QueueError, match="no-such-command"):
        submitted._ask(["no-such-command"])


def test_the_words_of_a_job_are_for_its_owner_alone(tmp_path: Path) -> None:
    """They may have a server's password, which what is shown has not."""
    words = ("engine.base_url=http://u:passw0rd@a/v1", "engine.base_url=http://u:passw0rd@b/v1")
    commands = [CommandLine("run", (word,)) for word in words]
    paths = _write_jobs(commands, ["m", "m"], tmp_path)
    assert [Job.read(path).label for path in paths] == [
        "m engine.base_url=http://a/v1",
        "m engine.base_url=http://b/v1",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_lines_name_only_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "b.log"
    log.touch()
    jobs = [
        JOB,
        replace(JOB, pid=1, log=str(log)),
        replace(JOB, code=1, why="no", log=str(tmp_path / "c.log")),
    ]
    first, never, going, failed, stop = lines(jobs, {1: "7_1"})
    assert first == "3 jobs: 0 ok, 3 not"
    assert never.endswith("it never started") and failed.endswith("no")
    assert "unfinished" in going and going.endswith(f"it goes on as SLURM job 7_1  log: {log}")
    assert stop.startswith("stop the jobs that go on: scancel 7 ")
