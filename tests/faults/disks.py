"""Small disks of the tests' own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """A tmpfs of a few blocks (of a memory page each) at `path`."""

    path: Path

    def mount_again(self, options: str) -> None:
        """Changes the disk under what is on it: `nr_blocks=9`, `ro`, `rw`."""
        _run("mount", "-o", f"remount,{options}", str(self.path))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextmanager
def small_disk(path: Path, blocks: int) -> Iterator[Disk]:
    """A disk at `path` while the block runs; the test is skipped where nothing may be mounted."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", f"nr_blocks={blocks}", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk: mounting a tmpfs takes root and is not allowed here ({error})")
    try:
        yield Disk(path)
    finally:
        _run("umount", "--lazy", str(path))
