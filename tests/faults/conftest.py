"""The undisturbed run that all others are compared with, the seed, and the count of kills at the end."""

import os
import random
from pathlib import Path

import pytest
from runs import Story, kills

# A campaign has a seed of its own each time; EVALKIT_FAULT_SEED repeats one.
SEED = int(os.environ.get("EVALKIT_FAULT_SEED") or random.SystemRandom().randrange(10**6))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Story:
    story = Story(tmp_path_factory.mktemp("undisturbed"))
    ended = story.begin().wait()
    assert ended.code == 0, ended.err
    return story


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path / "story")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The moments of one test: by the seed and the test's name."""
    return random.Random(f"{SEED} {request.node.name}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if kills:
        phases = ", ".join(f"{phase} {count}" for phase, count in kills.most_common())
        terminalreporter.write_line(
            f"faults: {kills.total()} kills with EVALKIT_FAULT_SEED={SEED} ({phases})"
        )
