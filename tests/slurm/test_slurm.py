"""Multiruns and job scripts on a real SLURM (`make test-slurm`): requeued, preempted, stopped, killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from saved import save
from sweeps import COMMON, Sweep, answer, records

from tests.children import ROOT, settings, start
from tests.mtbench.fault_server import FaultServer
from tests.slurm.cluster import HERE, LONGEST, SLOW, Cluster, Slow, until

pytest.importorskip("submitit")
pytestmark = pytest.mark.slurm
PAGE = ROOT / "docs" / "clusters.md"
ACCOUNTING = pytest.mark.parametrize("cluster", [True], ids=["accounting"], indirect=True)


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    accounting = getattr(request, "param", False)
    needed = ["slurmctld", "slurmd", "munged", *(("slurmdbd", "mariadbd") if accounting else ())]
    if missing := [name for name in needed if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: make test-slurm installs Debian's packages")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root")
    command = ["bash", str(HERE / "start.sh"), "--cred-expire", "5", "--killwait", "3"]
    command += ["--accounting"] if accounting else []
    log = tmp_path / "start.log"
    with log.open("w") as file:
        # The daemons keep the error stream open.
        started = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True, timeout=LONGEST)
    if started.returncode == 3:
        pytest.skip(log.read_text())
    assert started.returncode == 0, log.read_text()
    conf, folder = re.findall(r"='(.*?)'", started.stdout)
    yield Cluster({"SLURM_CONF": conf}, accounting)
    subprocess.run(["bash", str(HERE / "stop.sh"), folder], check=True, timeout=LONGEST)


@pytest.fixture
def sweep(cluster: Cluster, tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, dict(cluster.environment))


@pytest.fixture
def slow(sweep: Sweep) -> Iterator[Slow]:
    with FaultServer(latency=1.0) as server:
        server.choose = answer
        slow = Slow(sweep, server, [*SLOW, f"engine.base_url={server.url}", "engine.concurrency=1"])
        yield slow
        for child in slow.started:
            child.kill()


def documented_options() -> list[str]:
    """The options of the launcher in the page's command line."""
    command = re.search(r"evalkit -m [^`]*?(hydra/launcher=slurm[^`]*?)\n```", PAGE.read_text())
    assert command
    words = re.findall(r"'([^']*)'|([^\s'\\]+)", command[1])
    return ["".join(word) for word in words]


# The longest test first: it ends last.
def test_watch_in_the_documented_job_script_is_requeued(sweep: Sweep, cluster: Cluster) -> None:
    (text,) = [
        block
        for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "scontrol" in block
    ]
    script = sweep.folder / "evaluate.sh"
    script.write_text(text)
    for step in (1, 2):
        save(sweep.folder / "ckpt" / f"step-{step}", seed=step)
    options = ["watch=ckpt", "suite=sample", "suite.tasks=[jamp,mawps,niilc]"]
    options += [
        "limit=3",
        "watch_timeout=0",
        "watch_settle=0",
        "engine.batch_size=1",
        "engine.threads=1",
        "offline=true",
    ]
    command = [sys.executable, "-m", "evalkit", *options]
    environment = {**os.environ, **settings(sweep.folder), **cluster.environment}
    shown = subprocess.run(
        ["sbatch", "--parsable", "--output=watch.log", str(script), *command, "out=results"],
        cwd=sweep.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    job = shown.strip()
    log = sweep.folder / "watch.log"
    until(lambda: any(map(os.path.getsize, sweep.folder.glob("results/*/*/*/samples/*.jsonl"))), "answers")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    until(
        lambda: cluster.states(job)[job][0] == "COMPLETED", lambda: str(cluster.states(job)) + log.read_text()
    )
    assert cluster.states(job)[job] == ("COMPLETED", "0:0")
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", job)
    said = log.read_text()
    assert "stopped by SIGUSR1" in said and "2 checkpoints: 2 ok, 0 failed" in said, said
    assert start([*options, "out=single"], sweep.folder).wait().code == 0
    assert records(sweep.folder / "results") == records(sweep.folder / "single")


@ACCOUNTING
def test_the_documented_line_and_what_accounting_says(slow: Slow, cluster: Cluster) -> None:
    sweep = slow.sweep
    options = [
        'hydra.launcher.setup=["echo set up"]' if word.startswith("hydra.launcher.setup=") else word
        for word in documented_options()
    ]
    assert len(options) > 4
    more = ["hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1"]
    child = slow.start("model.name=killed,stopped", *more)
    array = slow.job(child)
    documented = sweep.start("model=random", "model.random.vocab=10,512,600", *options)

    slow.begun(child, "killed", "stopped")
    (killed,) = [job for job in sweep.jobs() if job["words"][-1] == "model.name=killed"]
    os.kill(killed["pid"], signal.SIGKILL)
    cluster.run("scancel", "--signal=TERM", f"{array}_1")
    ended = child.wait()
    assert ended.code == 130 and "sacct" not in ended.err, slow.explained(ended)
    assert f"SLURM job {array}_0: FAILED (" in ended.out and f"SLURM job {array}_1: FAILED (" in ended.out
    says(cluster, array, [("FAILED", "137:0"), ("FAILED", "130:0")], [("FAILED", "9:0"), ("FAILED", "2:0")])

    done = documented.wait()
    assert done.code == 2 and "3 jobs: 2 ok, 1 not" in done.out, slow.explained(done)
    assert "a vocabulary of 10 cannot hold" in done.out and " SLURM: " in done.err
    array = re.findall(r"submitted: (\d+)_0", done.out)[0]
    says(cluster, array, [("FAILED", "2:0"), ("COMPLETED", "0:0"), ("COMPLETED", "0:0")])
    assert "set up" in sweep.logs()
    single = start(["-m", *COMMON, "model=random", "model.random.vocab=512,600", "out=single"], sweep.folder)
    assert single.wait().code == 0
    kept, expected = records(sweep.folder / "results"), records(sweep.folder / "single")
    assert expected and {key: kept[key] for key in expected} == expected

    refused = sweep.run("model=random", *options[:1], "hydra.launcher.partition=nosuch", code=1)
    assert "the launcher failed: invalid partition specified: nosuch; Batch job submission" in refused.err
    refused = sweep.run("model=random", *options, "hydra.launcher.account=nobody", code=1)
    assert "Invalid account" in refused.err and refused.err.count("Invalid account") == 1


def says(
    cluster: Cluster,
    array: str,
    states: list[tuple[str, str]],
    kept: list[tuple[str, str]] | None = None,
) -> None:
    """Fails unless SLURM and its accounting say so about the jobs of an array."""
    for ask, expected in ((cluster.states, states), (cluster.kept, kept or states)):
        named = {f"{array}_{at}": state for at, state in enumerate(expected)}
        until(lambda ask=ask, named=named: ask(array) == named, lambda ask=ask: str(ask(array)))


def test_whatever_happens_to_a_job_the_command_notices(slow: Slow, cluster: Cluster) -> None:
    names = ["time", "requeued", "killed", "cancelled", "waiting"]
    options = ["hydra.launcher.signal_delay_s=30", "hydra.launcher.array_parallelism=4"]
    options += ["hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1"]
    child = slow.start(f"model.name={','.join(names)}", *options)
    array = slow.job(child)
    slow.begun(child, *names[:4])
    assert "pending (JobArrayTaskLimit)" in slow.said(child)
    cluster.run("scontrol", "update", f"JobId={array}_0", "TimeLimit=1")
    cluster.run("scontrol", "requeue", f"{array}_1")
    (killed,) = [job for job in slow.sweep.jobs() if job["words"][-1] == "model.name=killed"]
    os.kill(killed["pid"], signal.SIGKILL)
    cluster.run("scancel", f"{array}_4")
    cluster.run("scancel", f"{array}_3")
    until(lambda: "goes back into the queue" in slow.sweep.logs(), slow.sweep.logs)
    slow.server.latency = 0.0
    ended = child.wait()
    assert ended.code == 130, slow.explained(ended)
    codes = {job["label"].split()[0]: job["code"] for job in slow.sweep.jobs()}
    assert codes == {"time": 0, "requeued": 0, "killed": 1, "cancelled": 130, "waiting": 130}, ended
    lines = {line.split()[1]: line for line in ended.out.splitlines() if re.match(r" +\d+  ", line)}
    assert f"SLURM job {array}_2: FAILED (" in lines["killed"] and "Killed" in lines["killed"]
    assert f"SLURM job {array}_3: CANCELLED" in lines["cancelled"]
    assert f"SLURM job {array}_4: CANCELLED, before evalkit started" in lines["waiting"]
    assert "log:" not in lines["waiting"] and "sacct" not in ended.err
    assert [job["timeouts"] > 0 for job in slow.sweep.jobs()] == [True, False, False, False, False]
    states = cluster.states(array)
    assert [states[f"{array}_{at}"][0] for at in range(5)] == [
        "COMPLETED",
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "CANCELLED",
    ]
    slow.same_as_undisturbed("time", "requeued")


@pytest.mark.parametrize("grace", [60, 0])
def test_a_preempted_job_goes_on(slow: Slow, cluster: Cluster, grace: int) -> None:
    cluster.run("scontrol", "update", "PartitionName=gpu", f"GraceTime={grace}")
    child = slow.start("model.name=a")
    job = slow.job(child)
    slow.begun(child, "a")
    cluster.run("sbatch", "--partition=urgent", "--cpus-per-task=8", "--wrap=sleep 1", "--output=/dev/null")
    until(lambda: "Restarts=1" in cluster.run("scontrol", "show", "job", job), slow.sweep.logs)
    slow.server.latency = 0.0
    ended = child.wait()
    assert ended.code == 0, slow.explained(ended)
    assert "pending (" in ended.err
    assert ("SLURM preempts this job" in slow.sweep.logs()) == bool(grace)
    slow.same_as_undisturbed("a")


def test_when_the_waiting_stops_the_jobs_go_on(slow: Slow, cluster: Cluster) -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    child = slow.start("model.name=a")
    job = slow.job(child)
    slow.begun(child, "a")
    child.send(signal.SIGINT)
    ended = child.wait()
    assert ended.code == 130, slow.explained(ended)
    assert f"it goes on as SLURM job {job}" in ended.out and f"scancel {job}" in ended.out
    assert "never started" not in ended.out
    kept = slow.answers("a")
    until(lambda: slow.answers("a") > kept, slow.sweep.logs)
    cluster.run("scancel", job)
    until(lambda: cluster.states(job)[job][0] == "CANCELLED", lambda: str(cluster.states(job)))
    assert "interrupted" in slow.sweep.logs() or slow.sweep.jobs()[0]["code"] == 130
