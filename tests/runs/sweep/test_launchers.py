"""SLURM through submitit: its local stand-in, and the script that goes to sbatch."""

import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sweeps import COMMON, SEEDS, Sweep, records, wait_for_records

from evalkit.__main__ import main
from tests.mtbench.fault_server import FaultServer

pytest.importorskip("submitit")


def test_the_local_stand_in_goes_on_after_the_signal_before_the_time_is_up(
    sweep: Sweep, server: FaultServer, served: list[str], tmp_path: Path
) -> None:
    words = [*served, "limit=6"]
    server.latency = 0.2
    sweep = replace(sweep, forked=True)
    process = sweep.start(*words, "hydra/launcher=submitit_local")
    wait_for_records(sweep, process)
    (job,) = sweep.jobs()
    os.kill(job["pid"], signal.SIGUSR2)
    while "Requeued job" not in sweep.logs():
        assert process.running, process.wait()
        time.sleep(0.02)
    server.latency = 0.0
    ended = process.wait()
    assert ended.code == 0, ended.out + ended.err + sweep.logs()
    assert "1 job: 1 ok" in ended.out
    assert "continuing:" in sweep.logs()
    (again,) = sweep.jobs()
    assert again["pid"] != job["pid"] and again["folder"] == job["folder"]
    assert main([*COMMON, *words, f"out={tmp_path / 'single'}"]) == 0
    assert records(sweep.folder / "results") == records(tmp_path / "single")


SBATCH = """#!{python}
# Keeps the script and runs its srun command for every task of the array, as slurmd would.
import os, re, shlex, subprocess, sys
from pathlib import Path
script = Path(sys.argv[1]).read_text()
Path({kept!r}).write_text(script)
last = int(re.search(r"--array=0-(\\d+)", script)[1])
own = dict(os.environ, SLURM_ARRAY_JOB_ID="4242", SLURM_JOB_NUM_NODES="1", SLURM_NODEID="0",
           SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_NODELIST="here")
for task in range(last + 1):
    numbers = dict(SLURM_ARRAY_TASK_ID=str(task), SLURM_JOB_ID=str(4243 + task))
    subprocess.Popen(["bash", sys.argv[1]], env=own | numbers, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL, start_new_session=True)
print("Submitted batch job 4242")
"""
# srun [options] command: the options submitit writes all start with a dash.
SRUN = """#!{python}
import os, re, sys
words = sys.argv[1:]
out = next(words[at + 1] for at, word in enumerate(words) if word == "--output")
for mark, key in (("%A", "SLURM_ARRAY_JOB_ID"), ("%a", "SLURM_ARRAY_TASK_ID"), ("%t", "SLURM_PROCID")):
    out = out.replace(mark, os.environ[key])
command = words[next(at for at, word in enumerate(words) if word.endswith("python") or "/python" in word):]
log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
os.dup2(log, 1); os.dup2(log, 2)
os.execv(command[0], command)
"""
SQUEUE = """#!/bin/sh
for task in 0 1; do
    state=RUNNING
    grep -q '"code": 0' results/.sweeps/*/000$((task + 1)).json && state=COMPLETED
    echo "4242_$task|$state|None"
done
"""


@pytest.fixture
def slurm(sweep: Sweep) -> Path:
    """A cluster of one machine: programs with the names of SLURM's, and the script they were given."""
    programs = sweep.folder / "bin"
    programs.mkdir()
    kept = sweep.folder / "submitted.sh"
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("squeue", SQUEUE)):
        path = programs / name
        text = text.replace("{python}", sys.executable).replace("{kept!r}", repr(str(kept)))
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    sweep.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    return kept


def test_slurm_gets_one_array_with_what_was_asked_for(
    sweep: Sweep, slurm: Path, served: list[str], tmp_path: Path
) -> None:
    done = replace(sweep, forked=True).run(
        *served,
        "num_few_shots=1,2",
        "hydra/launcher=slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.account=nlp",
        "hydra.launcher.gpus_per_node=2",
        "hydra.launcher.timeout_min=90",
        "hydra.launcher.array_parallelism=1",
        "hydra.launcher.setup=['export SET_UP=yes','echo set up > setup-ran']",
        "hydra.launcher.additional_parameters={mail-type: END}",
    )
    script = slurm.read_text(encoding="utf-8")
    for line in (
        "--partition=gpu",
        "--account=nlp",
        "--gpus-per-node=2",
        "--time=90",
        "--array=0-1%1",
        "--cpus-per-task=4",
        "--signal=USR2@120",
        "--open-mode=append",
        "--mail-type=END",
        "--job-name=evalkit",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in script, script
    assert script.index("export SET_UP=yes") < script.index("srun")
    assert (sweep.folder / "setup-ran").is_file()
    assert 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"' in script
    assert "submitted: 4242_0, 4242_1" in done.out and "2 jobs: 2 ok" in done.out
    for number in (1, 2):
        assert main([*COMMON, *served, f"num_few_shots={number}", f"out={tmp_path / 'single'}"]) == 0
    assert records(sweep.folder / "results") == records(tmp_path / "single")
    assert all(re.search(r"/slurm/", job["log"]) for job in sweep.jobs())


def test_without_slurm_it_says_so(sweep: Sweep) -> None:
    # This machine may have SLURM's commands.
    sweep.environment["PATH"] = str(sweep.folder)
    done = replace(sweep, forked=True).run(*SEEDS, "hydra/launcher=slurm", code=1)
    assert "the launcher failed" in done.err and "srun" in done.err
