"""The run that the campaign disturbs, and what must be true of it after every fault."""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.core.durable import from_line, read_log
from tests.children import LONGEST, Child, Ended, Fault, fork, start

TASKS = ("jamp", "mawps", "jsts", "jemhopqa")
SAMPLES = 6 * len(TASKS)
WORDS = (
    "model=random",
    "suite=sample",
    f"suite.tasks=[{','.join(TASKS)}]",
    "num_few_shots=1",
    "engine.threads=1",
    "metrics.resamples=100",
)
# kill -9 by the phase it came in, over the whole session.
kills: Counter[str] = Counter()


@dataclass
class Story:
    """One run in `folder`, its command repeated through faults until it ends.

    `more` are further options; `seen` are the records that were whole on disk after a fault.
    """

    folder: Path
    more: Sequence[str] = ()
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        return [*WORDS, f"out={self.folder / 'results'}", *self.more]

    @property
    def run(self) -> Path | None:
        """The run directory, once there is one."""
        return next(iter(self.folder.glob("results/random/sample/*")), None)

    def begin(self, *faults: Fault, env: dict[str, str] | None = None) -> Child:
        """Starts the command with faults in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return fork(self.words, self.folder, faults, env)

    def copy(self, finished: "Story") -> None:
        """Takes over the files of a finished run."""
        shutil.copytree(finished.folder / "results", self.folder / "results")

    def begin_as_people_do(self) -> Child:
        self.folder.mkdir(parents=True, exist_ok=True)
        return start(self.words, self.folder)

    def phase(self) -> str:
        """How far the run has come, by what is on disk."""
        run = self.run
        if run is None or not (run / "run.log").exists():
            return "start"
        made = sum(map(len, self.records().values()))
        if made == 0:
            return "model load" if (run / "environment.json").exists() else "start"
        if made < SAMPLES:
            return "generation"
        if (run / "results.json").exists():
            return "after the end"
        scored = len(list((run / "scores").glob("*.jsonl")))
        return "scoring" if scored < len(TASKS) else "results.json"

    def records(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The whole records by task and id; an id twice fails."""
        rows: dict[str, dict[str, dict[str, Any]]] = {}
        for path in self.run.glob("samples/*.jsonl") if self.run else ():
            if path.is_dir():
                continue
            whole = [row for line in path.read_bytes().splitlines(keepends=True) if (row := from_line(line))]
            rows[path.stem] = {row["id"]: row for row in whole}
            assert len(rows[path.stem]) == len(whole), f"{path.stem}: a sample was asked twice"
        return rows

    def check(self) -> None:
        """Nothing that was whole on disk before is gone or changed."""
        now = {key: row for rows in self.records().values() for key, row in rows.items()}
        lost = self.seen.keys() - now.keys()
        assert not lost, f"lost: {sorted(lost)}"
        assert all(now[key] == row for key, row in self.seen.items())
        self.seen = now

    def killed(self, ended: Ended) -> bool:
        """Takes note of a kill (False: the command was faster) and checks what is left."""
        if ended.code != -9:
            assert ended.code == 0, ended.err
            return False
        kills[self.phase()] += 1
        self.check()
        return True

    def failed(self, ended: Ended, code: int, message: str) -> None:
        """The command ended with one clear message, and nothing is lost."""
        assert ended.code == code, ended
        assert message in ended.err, ended.err
        assert "Traceback" not in ended.err, ended.err
        assert "Exception ignored" not in ended.err, ended.err
        self.check()

    def end(self, undisturbed: "Story") -> Ended:
        """Runs the command to its end; everything is as in an undisturbed run."""
        kept = len({key: row for rows in self.records().values() for key, row in rows.items()})
        ended = self.begin().wait()
        assert ended.code == 0, ended.err
        assert "Traceback" not in ended.err, ended.err
        if kept < SAMPLES:
            # Finished records were not asked again.
            assert self.asked()[-1] == (kept, SAMPLES - kept)
        self.check()
        assert self.outcome() == undisturbed.outcome()
        assert not list(self.folder.glob("results/**/.*.tmp")), "something half-written is left"
        return ended

    def asked(self) -> list[tuple[int, int]]:
        """Of every command that got so far: completions kept, and requests to make."""
        assert self.run is not None
        text = (self.run / "run.log").read_text(errors="replace")
        found = re.findall(r"(\d+) completions are kept, (\d+) are to be made", text)
        return [(int(kept), int(made)) for kept, made in found]

    def outcome(self) -> dict[str, Any]:
        """Records, scores and results of a finished run, sorted; no line is damaged."""
        assert self.run is not None
        logs: dict[str, Any] = {}
        for path in sorted(self.run.glob("s*/*.jsonl")):
            rows, damaged = read_log(path)
            assert (damaged, path.read_bytes().count(b"\n")) == (0, len(rows)), f"torn or twice: {path}"
            logs[f"{path.parent.name}/{path.name}"] = dict(sorted(rows.items()))
        names = {path.name for path in self.run.iterdir()}
        names -= {".lock", "timings.json"}
        return {"logs": logs, "results": json.loads((self.run / "results.json").read_bytes()), "files": names}


def wait_for_records(story: Story, number: int) -> None:
    """Waits until so many records are on disk."""
    deadline = time.monotonic() + LONGEST
    while sum(map(len, story.records().values())) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
