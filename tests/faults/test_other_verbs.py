"""score, leaderboard and prepare killed on the way: the same command again does it whole."""

import hashlib
import random
from pathlib import Path

import pytest
from injected import DieAtOperation
from runs import Story, kills

from tests.children import fork


def again_and_again(words: list[str], folder: Path, moments: list[tuple[str, int]]) -> None:
    """Runs a command that is killed at each moment in turn, then once undisturbed."""
    for part, number in moments:
        ended = fork(words, folder, [DieAtOperation(part, number)]).wait()
        assert ended.code in (0, -9), ended.err
        kills[words[0]] += ended.code == -9
    ended = fork(words, folder).wait()
    assert ended.code == 0, ended.err
    assert not list(folder.glob("*/**/.*.tmp")), "something half-written is left"


def test_score_killed(undisturbed: Story, tmp_path: Path) -> None:
    """Between the scores of two datasets, and before results.json: the run is never half this, half that."""
    story, whole = Story(tmp_path / "story"), Story(tmp_path / "whole")
    for one in (story, whole):
        one.copy(undisturbed)
        assert one.run is not None
    options = ["protocol.strip=true", "protocol.answer_regex=(?s)(.)"]
    again_and_again(["score", f"run={whole.run}", *options], tmp_path, [])
    moments = [("/scores/.mawps", 2), (".results.json.", 2)]
    again_and_again(["score", f"run={story.run}", *options], tmp_path, moments)
    assert story.outcome() == whole.outcome()
    assert story.outcome() != undisturbed.outcome()
    # Killed in the middle, then the run's own command: all scores are its own again.
    words = ["score", f"run={story.run}", "protocol.strip=true"]
    assert fork(words, tmp_path, [DieAtOperation("/scores/.jsts", 2)]).wait().code == -9
    story.end(undisturbed)


def test_leaderboard_killed(undisturbed: Story, tmp_path: Path) -> None:
    story = Story(tmp_path / "story")
    story.copy(undisturbed)
    out = story.folder / "board"
    words = ["leaderboard", str(story.folder / "results"), "--partial", "--format=csv,markdown", f"out={out}"]
    again_and_again(words, story.folder, [("leaderboard.csv", 3), ("leaderboard.md", 2)])
    assert sorted(path.name for path in out.iterdir()) == ["leaderboard.csv", "leaderboard.md"]
    assert story.outcome() == undisturbed.outcome()


def digests(data: Path) -> dict[str, str]:
    paths = data.glob("*/evaluation/*/*.json")
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.sources
def test_prepare_killed(mirror: Path, tmp_path: Path, chance: random.Random) -> None:
    """No prepared file is ever half-written, and the next command makes the rest."""
    words = ["prepare", "suite=task", "suite.tasks=[jamp,janli,jcommonsenseqa]", f"mirror={mirror}"]
    whole, story = tmp_path / "whole", tmp_path / "story"
    again_and_again([*words, f"data_dir={whole}"], tmp_path, [])
    right = digests(whole)
    assert len(right) >= 8
    for _ in range(3):
        fault = DieAtOperation(str(story), chance.randrange(1, 20))
        ended = fork([*words, f"data_dir={story}"], tmp_path, [fault]).wait()
        assert ended.code in (0, -9), ended.err
        kills["prepare"] += ended.code == -9
        assert digests(story).items() <= right.items()
    again_and_again([*words, f"data_dir={story}"], tmp_path, [])
    assert digests(story) == right
    assert not list(story.glob(".prepare-*")), "the staging folder of a killed command is left"
