"""kill -9 at any moment: the same command ends as if nothing had been."""

import random
import time

import pytest
from injected import CountOperations, DieAtByte, DieAtOperation
from runs import Story

from evalkit.core.durable import process_tag

# Three kills in a row hit one run, then it is ended and compared.
IN_A_ROW = 3


@pytest.fixture(scope="session")
def operations(undisturbed: Story, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often an undisturbed run turns to its files."""
    story = Story(tmp_path_factory.mktemp("counted"))
    to = story.folder / "count"
    assert story.begin(CountOperations(str(story.folder / "results"), str(to))).wait().code == 0
    count = int(to.read_text())
    assert count > 40
    return count


@pytest.fixture(scope="session")
def seconds(undisturbed: Story, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long an undisturbed run takes."""
    story = Story(tmp_path_factory.mktemp("timed"))
    before = time.monotonic()
    assert story.begin().wait().code == 0
    return time.monotonic() - before


def log_bytes(undisturbed: Story) -> int:
    assert undisturbed.run is not None
    return sum(path.stat().st_size for path in undisturbed.run.glob("samples/*.jsonl"))


def test_five_kills(undisturbed: Story, story: Story) -> None:
    """The few that every test run holds: start, inside an append, between two, scoring, results.json."""
    size = log_bytes(undisturbed)
    for fault, phase in (
        (DieAtOperation("environment.json", 1), "start"),
        (DieAtByte(size // 3, 7), "generation"),
        (DieAtByte(size // 3, 1 << 20), "generation"),
        (DieAtOperation("/scores/", 8), "scoring"),
        (DieAtOperation(".results.json.", 2), "results.json"),
    ):
        assert story.killed(story.begin(fault).wait())
        assert story.phase() == phase
    story.end(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(6))
def test_kills_inside_appends(number: int, undisturbed: Story, story: Story, chance: random.Random) -> None:
    size = log_bytes(undisturbed)
    for _ in range(IN_A_ROW):
        piece = chance.choice((1, 16, 100, 1 << 20))
        story.killed(story.begin(DieAtByte(chance.randrange(1, size // IN_A_ROW), piece)).wait())
    story.end(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(8))
def test_kills_between_operations(
    number: int, undisturbed: Story, story: Story, operations: int, chance: random.Random
) -> None:
    for _ in range(IN_A_ROW):
        story.killed(
            story.begin(DieAtOperation(str(story.folder / "results"), chance.randrange(1, operations))).wait()
        )
    story.end(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(6))
def test_kills_by_the_clock(
    number: int, undisturbed: Story, story: Story, seconds: float, chance: random.Random
) -> None:
    for _ in range(IN_A_ROW):
        child = story.begin()
        time.sleep(chance.uniform(0, seconds))
        story.killed(child.kill())
    story.end(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(2))
def test_kills_of_commands_as_people_start_them(
    number: int, undisturbed: Story, story: Story, chance: random.Random
) -> None:
    before = time.monotonic()
    whole = Story(story.folder.with_name("whole"))
    assert whole.begin_as_people_do().wait().code == 0
    seconds = time.monotonic() - before
    for _ in range(IN_A_ROW):
        child = story.begin_as_people_do()
        time.sleep(chance.uniform(0, seconds))
        story.killed(child.kill())
    story.end(undisturbed)


def test_temporary_files_of_killed_commands_are_removed(story: Story, undisturbed: Story) -> None:
    """Also of files that the last command has no reason to write."""
    story.copy(undisturbed)
    assert story.run is not None
    (story.run / "results.json").unlink()
    host = process_tag().rpartition("-")[0]
    for name in ("results.json", "timings.json", "samples/jamp.jsonl"):
        path = story.run / name
        path.with_name(f".{path.name}.{host}-{2**22 + 1}.tmp").write_text("{")
    story.end(undisturbed)
