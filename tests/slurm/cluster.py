"""A SLURM of one node on loopback (start.sh, stop.sh), and jobs that go on for as long as a test wants."""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps import Sweep, records

from tests.children import Child, Ended, start
from tests.mtbench.fault_server import FaultServer

HERE = Path(__file__).parent
LONGEST = 400.0
TASKS = ("jamp", "janli", "jnli", "jsem", "jsick", "jcommonsenseqa", "jmmlu", "mmluen", "mawps", "niilc")
# The server is asked for one answer at a time: 60 in all.
SLOW = ["model=served", "suite=sample", f"suite.tasks=[{','.join(TASKS)}]", "engine=api", "offline=true"]


@dataclass(frozen=True)
class Cluster:
    """A running SLURM; `environment` leads its commands there."""

    environment: dict[str, str]
    accounting: bool

    def run(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (command, done)
        return done.stdout

    def states(self, job: str) -> dict[str, tuple[str, str]]:
        """State and exit code of each task of a job (scontrol's), by SLURM's name; sacct is asked too."""
        found = {}
        for line in self.run("scontrol", "show", "job", "--oneliner", job).splitlines():
            fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
            name = fields["JobId"]
            if "ArrayTaskId" in fields:
                name = f"{fields['ArrayJobId']}_{fields['ArrayTaskId']}"
            found[name] = (fields["JobState"], fields["ExitCode"])
        return found

    def kept(self, job: str) -> dict[str, tuple[str, str]]:
        """The same from the accounting."""
        lines = self.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "JobID,State,ExitCode").splitlines()
        return {name: (state, code) for name, state, code in (line.split("|") for line in lines)}


def until(what: Callable[[], Any], why: str | Callable[[], str]) -> Any:
    """Waits until `what` is true and returns it."""
    deadline = time.monotonic() + LONGEST
    while not (found := what()):
        assert time.monotonic() < deadline, why if isinstance(why, str) else why()
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Slow:
    """A multirun whose jobs ask a server that answers once in `server.latency` seconds."""

    sweep: Sweep
    server: FaultServer
    words: list[str]
    started: list[Child] = field(default_factory=list)

    def start(self, *words: str) -> Child:
        command = ["-m", *self.words, "out=results", "hydra/launcher=slurm", *words]
        self.started.append(start(command, self.sweep.folder, self.sweep.environment))
        return self.started[-1]

    def said(self, child: Child) -> str:
        return "\n".join(path.read_text() for path in self.sweep.folder.glob("command-*.*"))

    def job(self, child: Child) -> str:
        """SLURM's name of the job or array, once it is submitted."""

        def submitted() -> str:
            assert child.running, child.wait()
            return self.said(child).partition("submitted: ")[2].partition("\n")[0]

        return str(until(submitted, lambda: self.said(child))).partition(",")[0].partition("_")[0]

    def answers(self, name: str) -> int:
        """How many answers of a model are kept."""
        paths = self.sweep.folder.glob(f"results/{name}/*/*/samples/*.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in paths)

    def begun(self, child: Child, *names: str) -> None:
        """Waits until models have answers."""
        until(lambda: all(map(self.answers, names)), lambda: f"{self.said(child)}{self.sweep.logs()}")

    def same_as_undisturbed(self, *names: str) -> None:
        """Fails unless the records are those of a command that nothing disturbed, without SLURM."""
        self.server.latency = 0.0
        undisturbed = Sweep(self.sweep.folder / "undisturbed")
        undisturbed.folder.mkdir()
        ended = start(["-m", *self.words, f"model.name={','.join(names)}"], undisturbed.folder).wait()
        assert ended.code == 0, ended
        expected, found = records(undisturbed.folder / "results"), records(self.sweep.folder / "results")
        assert len(expected) == len(names) * len(TASKS)
        assert {key: found[key] for key in expected} == expected

    def explained(self, ended: Ended) -> str:
        return f"{ended.out}{ended.err}{self.sweep.logs()}"
