"""The job script of docs/clusters.md, run as a queue would: signalled, requeued, finished."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeps import answer

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from tests.mtbench.fault_server import FaultServer

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ["model=served", "suite=sample", "suite.tasks=[jamp,mawps]", "engine=api", "offline=true"]


def rows(out: Path) -> dict[str, object]:
    found = {}
    for path in out.glob("served/sample/*/samples/*.jsonl"):
        kept, damaged = read_log(path)
        assert (damaged, path.read_bytes().count(b"\n")) == (0, len(kept))
        found[path.stem] = kept
    return found


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """evaluate.sh as the page shows it, and a `scontrol` that notes what it is told."""
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    (text,) = [block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "scontrol" in block]
    path = tmp_path / "evaluate.sh"
    path.write_text(text, encoding="utf-8")
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n', encoding="utf-8")
    scontrol.chmod(0o755)
    return path


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A model that is slow enough to be interrupted."""
    with FaultServer(latency=0.2) as server:
        server.choose = answer
        yield server


def start(script: Path, command: list[str], out: Path) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "PATH": f"{script.parent / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "77",
    }
    words = ["bash", str(script), sys.executable, "-m", "evalkit", *command, f"out={out}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=out.parent, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(("number", "requeues"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_job_script(
    script: Path, server: FaultServer, tmp_path: Path, number: int, requeues: bool
) -> None:
    out = tmp_path / "out"
    words = [*COMMAND, f"engine.base_url={server.url}", "engine.concurrency=1"]
    process = start(script, words, out)
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not any(
            map(os.path.getsize, out.glob("served/sample/*/samples/*.jsonl"))
        ):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        # As --signal=B: does: to the script alone.
        process.send_signal(number)
        _, shown = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, shown
    noted = tmp_path / "requeued"
    assert (noted.read_text(encoding="utf-8") == "requeue 77\n") if requeues else not noted.exists()
    server.latency = 0.0
    assert main([*words, f"out={out}"]) == 0
    assert main([*words, f"out={tmp_path / 'undisturbed'}"]) == 0
    assert rows(out) == rows(tmp_path / "undisturbed")
