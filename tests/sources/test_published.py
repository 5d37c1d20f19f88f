"""Everything the mirror can give, from an empty folder: the published hashes and counts.

Hashes: llm-jp/scripts, llm-jp-eval-v1.3.1/resources/sha256sums.csv. Counts: jaster.md, section 2.
"""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evalkit.sources.prepare import PreparedReport, prepare
from evalkit.sources.prepared import Status
from evalkit.tasks.spec import SPLITS, load_spec, task_names
from tests.conftest import ROOT

pytestmark = pytest.mark.sources

# train, dev, test; the mirror has the first 50 of wikicorpus' train articles only.
COUNTS = {
    "chabsa": (2572, 321, 322),
    "jamp": (8955, 995, 348),
    "janli": (12312, 1368, 720),
    "jcommonsenseqa": (8045, 894, 1119),
    "jemhopqa": (953, 106, 120),
    "jmmlu": (32, 3524, 3541),
    "jsem": (12667, 1583, 1584),
    "jsick": (4500, 500, 4927),
    "jsts": (11205, 1246, 1457),
    "mawps": (16, 500, 500),
    "mmluen": (285, 1531, 14042),
    "niilc": (715, 80, 198),
    "wiki_coreference": (1515, 100, 200),
    "wiki_dependency": (1517, 100, 200),
    "wiki_ner": (881, 64, 113),
    "wiki_pas": (1514, 100, 199),
    "wiki_reading": (1517, 100, 200),
    "wikicorpus-e-to-j": (100, 3787, 3588),
    "wikicorpus-j-to-e": (100, 3787, 3588),
}
NOT_MIRRORED = {"jnli": 2434, "jsquad": 4442, "alt-e-to-j": None, "alt-j-to-e": None}


def read(data_dir: Path, split: str, name: str) -> bytes:
    return (data_dir / "1.3.1" / "evaluation" / split / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", COUNTS)
def test_the_dev_file_is_the_published_one(
    reports: dict[str, PreparedReport], data_dir: Path, name: str
) -> None:
    published = load_spec(name).published["1.3.1"]["dev"]
    assert hashlib.sha256(read(data_dir, "dev", name)).hexdigest() == published
    assert reports[name].splits["dev"].status is Status.verified
    assert reports[name].notes == ()


def test_the_task_files_carry_the_published_hashes(mirror: Path) -> None:
    table = mirror.parent / "protocol" / "jaster_hashes.csv"
    with table.open() as stream:
        published = {row["dataset"]: row["sha256"] for row in csv.DictReader(stream)}
    assert published == {name: load_spec(name).published["1.3.1"]["dev"] for name in [*COUNTS, *NOT_MIRRORED]}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(reports: dict[str, PreparedReport], data_dir: Path, name: str) -> None:
    report = reports[name]
    assert tuple(report.splits[split].samples for split in SPLITS) == COUNTS[name]
    reduced = name.startswith("wikicorpus")
    assert report.splits["train"].status is (Status.reduced_source if reduced else Status.derived)
    assert report.splits["test"].status is Status.derived
    for split in SPLITS:
        content = json.loads(read(data_dir, split, name))
        assert list(content) == ["instruction", "output_length", "metrics", "few_shots", "samples"]
        values = [value for sample in content["samples"] for value in sample.values()]
        assert all(isinstance(value, str) for value in values)


@pytest.mark.parametrize("name", NOT_MIRRORED)
def test_what_the_mirror_has_not(reports: dict[str, PreparedReport], name: str) -> None:
    splits, tests = reports[name].splits, NOT_MIRRORED[name]
    assert splits["train"].status is splits["dev"].status is Status.not_available
    assert "not in the mirror" in splits["dev"].reason
    assert splits["test"].samples == tests
    assert splits["test"].status is (Status.derived if tests else Status.not_available)


def _files(data_dir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.json")}


def test_a_second_time_is_quick_and_writes_nothing(
    reports: dict[str, PreparedReport], mirror: Path, data_dir: Path
) -> None:
    before, start = _files(data_dir), time.monotonic()
    again = prepare([load_spec(name) for name in task_names()], data_dir, mirror=mirror)
    assert time.monotonic() - start < 20
    assert _files(data_dir) == before
    assert [report.splits for report in again] == [reports[name].splits for name in task_names()]


@pytest.mark.parametrize("tasks", ["wiki_ner", "wiki_ner,wiki_pas,wikicorpus-e-to-j"])
def test_ctrl_c_leaves_nothing_half_written(mirror: Path, tmp_path: Path, tasks: str) -> None:
    """One source is converted by the command itself, two sources by processes of their own."""
    data_dir = tmp_path / "data"
    words = ["prepare", "suite=task", f"suite.tasks=[{tasks}]", f"mirror={mirror}", f"data_dir={data_dir}"]
    command = [sys.executable, "-m", "evalkit", *words]
    environment = os.environ | {"EVALKIT_CACHE": str(tmp_path / "cache")}
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(data_dir.glob(".prepare-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    # As a terminal does it: to the command and to its workers.
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert not [path for path in data_dir.rglob("*") if path.is_file()]
    assert not list(data_dir.glob(".prepare-*"))
