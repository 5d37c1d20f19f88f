"""Files that a bad disk or a loss of power damaged: noticed, made again, everything else kept."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import SAMPLES, Story

FILES = (
    "samples/jamp.jsonl",
    "scores/jsts.jsonl",
    "results.json",
    "environment.json",
    "config.yaml",
    "timings.json",
    "run.log",
    ".lock",
)


def flipped(content: bytes, chance: random.Random) -> bytes:
    """One bit of one byte."""
    if not content:
        return b"\x01"
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(content: bytes, chance: random.Random) -> bytes:
    """Torn anywhere, also inside a character."""
    return content[: chance.randrange(len(content))] if content else b""


def emptied(content: bytes, chance: random.Random) -> bytes:
    return b""


def zeros(content: bytes, chance: random.Random) -> bytes:
    """Its length was saved and its last blocks were not: what a loss of power leaves."""
    kept = cut(content, chance)
    return kept + b"\0" * (len(content) - len(kept))


def longer(content: bytes, chance: random.Random) -> bytes:
    """A tail of zeros."""
    return content + b"\0" * chance.randrange(1, 5000)


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, cut, emptied, zeros, longer)


@pytest.fixture
def finished(story: Story, undisturbed: Story) -> Path:
    story.copy(undisturbed)
    assert story.run is not None
    return story.run


def damage(path: Path, kind: Callable[[bytes, random.Random], bytes], chance: random.Random) -> None:
    path.write_bytes(kind(path.read_bytes(), chance))


@pytest.mark.parametrize("number", range(len(FILES)))
def test_one_damaged_file(
    number: int, finished: Path, story: Story, undisturbed: Story, chance: random.Random
) -> None:
    """Each file with another kind of damage: all kinds are met in every test run."""
    damage(finished / FILES[number], DAMAGES[number % len(DAMAGES)], chance)
    story.end(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", DAMAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", FILES)
def test_every_damage_of_every_file(
    name: str,
    kind: Callable[[bytes, random.Random], bytes],
    finished: Path,
    story: Story,
    undisturbed: Story,
    chance: random.Random,
) -> None:
    damage(finished / name, kind, chance)
    story.end(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(6))
def test_everything_damaged_at_once(
    number: int, finished: Path, story: Story, undisturbed: Story, chance: random.Random
) -> None:
    for path in sorted(finished.rglob("*")):
        if path.is_file():
            damage(path, chance.choice(DAMAGES), chance)
    story.end(undisturbed)


def test_a_number_of_the_results_changes(finished: Path, story: Story, undisturbed: Story) -> None:
    """Still JSON, still the schema, another score: the checksum tells."""
    path = finished / "results.json"
    content = json.loads(path.read_text())
    content["scores"]["jamp_exact_match"]["value"] = 1.0
    path.write_text(json.dumps(content))
    ended = story.end(undisturbed)
    assert "nothing was generated" in ended.out


@pytest.mark.campaign
@pytest.mark.parametrize("what", ["scores", "results.json", "environment.json", "config.yaml"])
def test_something_is_gone(what: str, finished: Path, story: Story, undisturbed: Story) -> None:
    path = finished / what
    if path.is_dir():
        (path / "jamp.jsonl").unlink()
    else:
        path.unlink()
    story.end(undisturbed)


@pytest.mark.campaign
def test_results_of_another_schema(finished: Path, story: Story, undisturbed: Story) -> None:
    path = finished / "results.json"
    content = json.loads(path.read_text()) | {"schema_version": 99}
    del content["check"]
    path.write_text(json.dumps(content))
    story.end(undisturbed)


def test_an_interrupted_run_with_every_other_file_damaged(
    finished: Path, story: Story, undisturbed: Story, chance: random.Random
) -> None:
    """Nothing but the samples is needed to go on, and of them what is whole."""
    log = finished / "samples" / "mawps.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    for name in ("results.json", "environment.json", "config.yaml", "timings.json"):
        damage(finished / name, chance.choice((cut, emptied, zeros)), chance)
    story.end(undisturbed)
    assert story.asked()[-1] == (SAMPLES - 3, 3)


def test_the_engine_stays_on_record_when_only_scoring_is_left(
    finished: Path, story: Story, undisturbed: Story
) -> None:
    before = (finished / "environment.json").read_bytes()
    assert json.loads(before)["engine"]
    (finished / "results.json").unlink()
    story.end(undisturbed)
    assert (finished / "environment.json").read_bytes() == before
