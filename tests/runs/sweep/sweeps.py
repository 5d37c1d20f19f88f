"""Sweeps of small random models, run for real."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.durable import read_log

ROOT = Path(__file__).resolve().parents[3]
TASKS = ("jamp", "mawps")
COMMON = ["suite=sample", f"suite.tasks=[{','.join(TASKS)}]", "limit=2", "engine.threads=1", "offline=true"]
Records = dict[str, dict[str, Any]]
SEEDS = ["model=random", "model.random.seed=0,1"]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Sweep:
    """Runs `-m` below a folder of its own, in a process of its own."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, code: int = 0) -> Ended:
        with self.started(*words) as process:
            out, err = process.communicate(timeout=600)
        ended = Ended(process.returncode, out, err)
        assert ended.code == code, out + err + self.logs()
        assert "Traceback" not in out + err
        return ended

    @contextmanager
    def started(self, *words: str) -> "Iterator[subprocess.Popen[str]]":
        command = [sys.executable, "-m", "evalkit", "-m", *COMMON, "out=results", *words]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def jobs(self) -> list[dict[str, Any]]:
        paths = sorted(self.folder.glob("results/.sweeps/*/*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def logs(self) -> str:
        paths = sorted(self.folder.glob("results/.sweeps/**/*.log")) + sorted(
            self.folder.glob("results/.sweeps/**/*.out")
        )
        return "\n".join(f"--- {path}\n{path.read_text(encoding='utf-8')}" for path in paths)


def records(results: Path) -> dict[str, dict[str, Any]]:
    """The records of every run below a folder by run id and task, and that no line is torn or twice."""
    found = {}
    for path in sorted(results.glob("*/*/*/samples/*.jsonl")):
        rows, damaged = read_log(path)
        assert (damaged, path.read_bytes().count(b"\n")) == (0, len(rows)), path
        found[f"{path.parent.parent.name}/{path.stem}"] = rows
    return found


def wait_for_records(sweep: Sweep, process: Any) -> None:
    """Until the first completion is on disk; fails when the command ends before."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if any(path.stat().st_size for path in sweep.folder.glob("results/*/*/*/samples/*.jsonl")):
            return
        time.sleep(0.01)
    raise AssertionError("nothing was generated")
