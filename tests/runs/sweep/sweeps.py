"""Sweeps of small models, run for real."""

import json
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.core.durable import read_log
from tests.children import Child, Ended, ForkedJobs, fork, start

TASKS = ("jamp", "mawps")
COMMON = ["suite=sample", f"suite.tasks=[{','.join(TASKS)}]", "limit=2", "engine.threads=1", "offline=true"]
Records = dict[str, dict[str, Any]]
SEEDS = ["model=random", "model.random.seed=0,1"]


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """What a server answers to a prompt: always the same number."""
    return {"text": f" {zlib.crc32(str(body['prompt']).encode()) % 100}", "finish_reason": "stop"}


@dataclass(frozen=True)
class Sweep:
    """Runs `-m` below a folder of its own, in a process of its own.

    Attributes:
        environment: what its processes have beside the usual.
        forked: the jobs of the basic launcher are forked too, which is quicker than `python -m evalkit`.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    forked: bool = False

    def run(self, *words: str, code: int = 0) -> Ended:
        ended = self.start(*words).wait()
        assert ended.code == code, ended.out + ended.err + self.logs()
        assert "Traceback" not in ended.out + ended.err
        return ended

    def start(self, *words: str) -> Child:
        command = ["-m", *COMMON, "out=results", *words]
        if self.forked:
            return fork(command, self.folder, [ForkedJobs()], self.environment)
        return start(command, self.folder, self.environment)

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


def wait_for_records(sweep: Sweep, process: Child) -> None:
    """Until the first completion is on disk; fails when the command ends before."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.running, process.wait()
        if any(path.stat().st_size for path in sweep.folder.glob("results/*/*/*/samples/*.jsonl")):
            return
        time.sleep(0.01)
    raise AssertionError("nothing was generated")
