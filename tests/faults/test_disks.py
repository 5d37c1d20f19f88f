"""Full, failing and read-only disks: one message, exit code 1, and the same command goes on afterwards."""

import shutil
from pathlib import Path

import pytest
from disks import small_disk
from injected import FailingSync, NoUndo, SmallFiles
from runs import SAMPLES, Story

from tests.children import fork

FULL = "no space left on the disk"
# So many blocks hold a whole run for sure.
ENOUGH = 200


def fill_up(story: Story, undisturbed: Story, blocks: range) -> None:
    """The disk is full, grows a little, is full again: each time somewhere else, until it is enough."""
    phases = set()
    with small_disk(story.folder / "results", 1) as disk:
        for number in blocks:
            disk.mount_again(f"nr_blocks={number}")
            ended = story.begin().wait()
            if ended.code == 0:
                break
            story.failed(ended, 1, FULL)
            phases.add(story.phase())
        assert "generation" in phases
        disk.mount_again(f"nr_blocks={ENOUGH}")
        story.end(undisturbed)


def test_a_full_disk(undisturbed: Story, story: Story) -> None:
    fill_up(story, undisturbed, range(2, 20, 4))


@pytest.mark.campaign
def test_a_disk_full_at_every_size(undisturbed: Story, story: Story) -> None:
    fill_up(story, undisturbed, range(1, ENOUGH))


@pytest.mark.campaign
def test_a_quota_on_the_size_of_files(undisturbed: Story, story: Story) -> None:
    story.failed(story.begin(SmallFiles(1900)).wait(), 1, "cannot write")
    story.failed(story.begin(SmallFiles(2600)).wait(), 1, "cannot write")
    story.end(undisturbed)


@pytest.mark.campaign
def test_a_full_disk_that_keeps_half_a_line(undisturbed: Story, story: Story) -> None:
    for number in (700, 1000):
        story.failed(story.begin(NoUndo(number)).wait(), 1, FULL)
        assert story.phase() == "generation"
    story.end(undisturbed)


@pytest.mark.campaign
def test_a_disk_that_fails_while_it_syncs(undisturbed: Story, story: Story) -> None:
    story.failed(story.begin(FailingSync(8)).wait(), 1, "Input/output error")
    # The line was written before the sync failed: it counts.
    assert len(story.seen) == 5
    story.end(undisturbed)


@pytest.mark.campaign
def test_a_full_temporary_folder(undisturbed: Story, story: Story) -> None:
    with small_disk(story.folder / "temporary", 1) as disk:
        (disk.path / "filler").write_bytes(b"x" * 4096)
        ended = story.begin(env={"TMPDIR": str(disk.path)}).wait()
        assert ended.code == 0, ended.err
    assert story.outcome() == undisturbed.outcome()


def test_a_read_only_results_folder(undisturbed: Story, story: Story) -> None:
    with small_disk(story.folder / "results", ENOUGH) as disk:
        disk.mount_again("ro")
        story.failed(story.begin().wait(), 1, "Read-only file system")
        disk.mount_again("rw")
        story.failed(story.begin(NoUndo(700)).wait(), 1, FULL)
        disk.mount_again("ro")
        story.failed(story.begin().wait(), 1, "out=DIR")
        disk.mount_again("rw")
        story.end(undisturbed)
        # A finished run can be read all the same.
        disk.mount_again("ro")
        words = ["leaderboard", str(disk.path), "--partial"]
        refused = fork(words, story.folder).wait()
        assert (refused.code, "Traceback" in refused.err) == (1, False)
        assert "out=DIR" in refused.err
        shown = fork([*words, f"out={story.folder / 'board'}"], story.folder).wait()
        assert shown.code == 0, shown.err
        assert (story.folder / "board" / "leaderboard.csv").exists()


@pytest.mark.campaign
def test_a_file_where_the_folder_should_be(undisturbed: Story, story: Story) -> None:
    story.folder.mkdir(parents=True)
    place = story.folder / "results"
    place.write_text("")
    story.failed(story.begin().wait(), 1, "cannot write")
    place.unlink()
    story.end(undisturbed)


@pytest.mark.campaign
def test_a_folder_where_a_log_should_be(undisturbed: Story, story: Story) -> None:
    """What cannot be read is one message that names the file."""
    assert undisturbed.run is not None
    story.copy(undisturbed)
    assert story.run is not None
    log: Path = story.run / "samples" / "jsts.jsonl"
    log.unlink()
    log.mkdir()
    story.failed(story.begin().wait(), 2, str(log))
    shutil.rmtree(log)
    assert len({key for rows in story.records().values() for key in rows}) == SAMPLES - 6
    story.end(undisturbed)
