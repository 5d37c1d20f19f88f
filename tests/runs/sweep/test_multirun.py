"""Many jobs from one command: it says how each ended, and they give the records of single commands."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from sweeps import COMMON, SEEDS, Records, Sweep, records, wait_for_records

from evalkit.__main__ import main
from tests.mtbench.fault_server import FaultServer


def test_basic_runs_one_after_another_and_leaves_nothing_of_hydra(
    sweep: Sweep, served: list[str], tmp_path: Path
) -> None:
    served = [word.replace("http://", "http://user:passw0rd@") for word in served]
    done = sweep.run(*served, "num_few_shots=1,2")
    last = done.out.strip().splitlines()[-3:]
    assert last[0] == "2 jobs: 2 ok"
    for number, line in enumerate(last[1:], 1):
        assert f"served num_few_shots={number}" in line and " ok " in line
        assert (sweep.folder / line.split()[-1] / "results.json").is_file()
        assert main([*COMMON, *served, f"num_few_shots={number}", f"out={tmp_path / 'single'}"]) == 0
    assert records(sweep.folder / "results") == records(tmp_path / "single")
    names = {path.name for path in sweep.folder.iterdir()}
    assert {name for name in names if not name.startswith("command-")} <= {"results", "cache", "single"}
    assert {path.name for path in (sweep.folder / "results").iterdir()} == {"served", ".sweeps"}
    files = [path for path in (sweep.folder / "results").rglob("*") if path.is_file()]
    assert "passw0rd" not in done.out + done.err + "".join(path.read_text("utf-8") for path in files)


def test_a_failed_job_does_not_stop_the_others(sweep: Sweep, undisturbed: Records) -> None:
    done = replace(sweep, forked=True).run("model=random", "model.random.vocab=10,512", code=2)
    kept = records(sweep.folder / "results")
    assert kept and kept.items() <= undisturbed.items()
    failed, fine = done.out[done.out.index("2 jobs: 1 ok, 1 not") :].strip().splitlines()[1:]
    assert " ok " in fine and "model.random.vocab=512" in fine
    assert " failed " in failed and "a vocabulary of 10 cannot hold" in failed
    assert "model.random.vocab=259" in done.err


def test_jobs_of_one_run_directory_wait_for_each_other(
    sweep: Sweep, server: FaultServer, served: list[str]
) -> None:
    pytest.importorskip("submitit")
    server.latency = 0.5
    done = replace(sweep, forked=True).run(*served, "limit=1,2", "hydra/launcher=submitit_local")
    assert "2 jobs: 2 ok" in done.out
    (run,) = {key.split("/")[0] for key in records(sweep.folder / "results")}
    assert all(len(rows) == 2 for rows in records(sweep.folder / "results").values()), run


def test_a_signal_stops_the_jobs_and_the_same_command_goes_on(sweep: Sweep, undisturbed: Records) -> None:
    words = [*SEEDS, "engine.batch_size=1"]
    sweep = replace(sweep, forked=True)
    process = sweep.start(*words)
    wait_for_records(sweep, process)
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert ended.code == 130, ended
    assert "Traceback" not in ended.out + ended.err
    assert " interrupted " in ended.out
    assert "it never started" in ended.out
    codes = [job["code"] for job in sweep.jobs()]
    assert 130 in codes and set(codes) <= {0, 130, None}
    sweep.run(*words)
    assert records(sweep.folder / "results") == undisturbed
