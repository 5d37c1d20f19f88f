"""kill -9 of workers: their unfinished requests go to others, and the run ends as if nothing had been."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from runs import Story, kills, wait_for_records

from evalkit.cli.options import group_members

# Engines whose requests are answered in processes of their own, and what those call themselves.
ENGINES = [pytest.param(("engine=ray", "engine.num_workers=2"), b"ray::", id="ray")]


def workers(pid: int, title: bytes) -> list[int]:
    """The processes below `pid` whose command line begins with `title`."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in parentheses may hold spaces: the fields start after it.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, found = {pid}, []
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    for one in below:
        try:
            line = Path(f"/proc/{one}/cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(title) and not line.startswith(title + b"IDLE"):
            found.append(one)
    return sorted(found)


@pytest.mark.campaign
@pytest.mark.parametrize(("words", "title"), ENGINES)
@pytest.mark.parametrize("number", range(2))
def test_killed_workers(
    number: int,
    words: tuple[str, ...],
    title: bytes,
    undisturbed: Story,
    story: Story,
    chance: random.Random,
) -> None:
    """First the process that writes, in the middle of the work; then a worker, and the run ends by itself."""
    name = words[0].removeprefix("engine=")
    if name not in group_members("engine"):
        pytest.skip(f"this version has no engine {name}")
    pytest.importorskip(name)
    story.more = (*words, "engine.batch_size=1")
    writer = story.begin_as_people_do()
    wait_for_records(story, chance.randrange(1, 6))
    story.killed(writer.kill())
    child = story.begin_as_people_do()
    wait_for_records(story, len(story.seen) + chance.randrange(1, 6))
    victims = workers(child.pid, title)
    if child.running and victims:
        os.kill(chance.choice(victims), signal.SIGKILL)
        kills["worker"] += 1
    ended = child.wait()
    assert ended.code == 0, ended.err
    story.check()
    assert story.outcome() == undisturbed.outcome()
    deadline = time.monotonic() + 60
    while workers(child.pid, title):
        assert time.monotonic() < deadline, "a worker outlives its command"
        time.sleep(0.1)
