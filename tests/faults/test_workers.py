"""kill -9 of workers: their unfinished requests go to others, and the run ends as if nothing had been."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from runs import Story, kills, wait_for_records

from evalkit.core.options import group_members

# Engines whose requests are answered in processes of their own.
ENGINES = [pytest.param(("engine=ray", "engine.num_workers=2"), id="ray")]


def workers(story: Story) -> list[int]:
    """The workers of the command that writes now, by its log."""
    assert story.run is not None
    text = (story.run / "run.log").read_text(errors="replace").rpartition("completions are kept")[2]
    return [int(number) for number in re.findall(r"is ready \(process (\d+)\)", text)]


def alive(number: int) -> bool:
    return Path(f"/proc/{number}").exists()


@pytest.mark.campaign
@pytest.mark.parametrize("words", ENGINES)
@pytest.mark.parametrize("number", range(2))
def test_killed_workers(
    number: int,
    words: tuple[str, ...],
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
    hired = workers(story)
    if child.running:
        os.kill(chance.choice(hired), signal.SIGKILL)
        kills["worker"] += 1
    ended = child.wait()
    assert ended.code == 0, ended.err
    story.check()
    assert story.outcome() == undisturbed.outcome()
    deadline = time.monotonic() + 60
    while any(map(alive, workers(story))):
        assert time.monotonic() < deadline, "a worker outlives its command"
        time.sleep(0.1)
