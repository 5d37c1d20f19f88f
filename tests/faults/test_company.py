"""Other processes, other clocks, and the signals that ask to stop."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from injected import ClockGoesBack, DieAtByte, DieAtOperation, SlowDisk
from runs import SAMPLES, Story, wait_for_records

from tests.children import start

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def test_a_second_process_is_refused_and_the_first_is_not_harmed(undisturbed: Story, story: Story) -> None:
    first = story.begin(SlowDisk(0.3))
    wait_for_records(story, 1)
    second = story.begin().wait()
    assert first.running
    assert second.code == 1 and "another process is working on this run" in second.err
    assert "Traceback" not in second.err
    # Stopped dead, the first leaves no lock behind.
    assert story.killed(first.kill())
    story.end(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(2))
def test_processes_that_start_together(number: int, undisturbed: Story, story: Story) -> None:
    ended = [child.wait() for child in [story.begin(SlowDisk(0.05)) for _ in range(3)]]
    codes = [one.code for one in ended]
    assert 0 in codes and set(codes) <= {0, 1}
    assert all("another process" in one.err for one in ended if one.code == 1)
    assert story.asked()[0] == (0, SAMPLES)
    story.end(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_stops_the_generation(number: signal.Signals, undisturbed: Story, story: Story) -> None:
    child = story.begin(SlowDisk(0.1))
    wait_for_records(story, 2)
    child.send(number)
    story.failed(child.wait(), 130, "continue")
    assert 2 <= len(story.seen) < SAMPLES
    story.end(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(
    "part", ["tasks/samples/", "environment.json", "jamp.jsonl", "/scores/", ".results.json."]
)
def test_a_signal_stops_every_phase(
    part: str, number: signal.Signals, undisturbed: Story, story: Story, chance: random.Random
) -> None:
    story.failed(story.begin(DieAtOperation(part, chance.randrange(1, 3), number)).wait(), 130, "continue")
    story.end(undisturbed)


def test_a_clock_that_goes_backwards(undisturbed: Story, story: Story) -> None:
    """Within a command, and from one command to the next."""
    assert story.killed(story.begin(ClockGoesBack(), DieAtByte(3000, 100)).wait())
    tomorrow = time.time() + 86400
    for path in story.folder.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    assert story.killed(story.begin(ClockGoesBack(), DieAtOperation("/scores/", 2)).wait())
    story.end(undisturbed)


@pytest.mark.campaign
def test_a_clock_that_the_system_sets_back(undisturbed: Story, story: Story) -> None:
    """The same for everything in the process, libraries included, by libfaketime."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        pytest.skip("libfaketime is not installed (Debian: apt install faketime)")
    story.folder.mkdir(parents=True)
    now = story.folder / "now"
    now.write_text("+0")
    env = {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(now),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    child = start([*story.words, "engine.batch_size=1"], story.folder, env)
    wait_for_records(story, 2)
    now.write_text("-3d")
    ended = child.wait()
    assert ended.code == 0, ended.err
    assert story.outcome() == undisturbed.outcome()
