"""`prepare`: files that are written, kept and refused. Made-up datasets, no network."""

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from evalkit.core.errors import EvalkitError, InputError
from evalkit.sources import convert
from evalkit.sources.fetch import Fetcher
from evalkit.sources.prepare import PreparedReport, prepare
from evalkit.sources.prepared import RECORD, Status
from evalkit.tasks.spec import TaskSpec, load_spec
from tests.sources.helpers import Catalogue, Site, whole
from tests.sources.test_archives import tar

TASK = """
instruction: 問い
output_length: 3
metrics: [exact_match, char_f1]
upstream:
  1.3.1: {{source: {source}, converter: {converter}, split: {split}}}
"""
HEADER = "num\tpremise\thypothesis\tgold_label\n"
POOL = HEADER + "".join(f"{number}\t前{number}\t仮{number}\tneutral\n" for number in range(10))
TEST = HEADER + "1\tt\tu\tentailment\n"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class World:
    """A made-up dataset `toy` on a local server, with its prepared folder."""

    def __init__(self, site: Site, catalogue: Catalogue, folder: Path) -> None:
        self.site, self.catalogue, self.folder = site, catalogue, folder
        self.data_dir = folder / "data"
        self.fetcher = Fetcher(cache=folder / "cache")
        pool, test = (
            site.serve("/pool.tsv", whole(POOL.encode())),
            site.serve("/test.tsv", whole(TEST.encode())),
        )
        catalogue.source("toy", "pool", pool, sha256=sha(POOL.encode()))
        catalogue.source("toy", "test", test, sha256=sha(TEST.encode()))
        catalogue.task("toy", TASK.format(source="toy", converter="jamp", split="pool_90_10"))

    def spec(self, name: str = "toy", **published: str) -> TaskSpec:
        return replace(load_spec(name), published={"1.3.1": published} if published else {})

    def prepare(self, *specs: TaskSpec, **options: object) -> list[PreparedReport]:
        options = {"fetcher": self.fetcher} | options
        return prepare(list(specs), self.data_dir, **options)  # type: ignore[arg-type]

    def path(self, split: str, name: str = "toy") -> Path:
        return self.data_dir / "1.3.1" / "evaluation" / split / f"{name}.json"

    def files(self) -> dict[str, int]:
        """Every file in the prepared folder but the record, with its time of writing."""
        found = (path for path in self.data_dir.rglob("*") if path.is_file() and path.name != "prepared.json")
        return {str(path.relative_to(self.data_dir)): path.stat().st_mtime_ns for path in found}


@pytest.fixture
def world(site: Site, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(convert, "_cores", lambda: 1)
    return World(site, catalogue, tmp_path)


def statuses(report: PreparedReport) -> list[Status]:
    return [report.splits[split].status for split in ("train", "dev", "test")]


def test_the_file_is_as_the_protocol_says(world: World) -> None:
    (report,) = world.prepare(world.spec())
    assert statuses(report) == [Status.derived] * 3
    assert world.path("test").read_bytes().decode() == (
        '{\n    "instruction": "問い",\n    "output_length": 3,\n    "metrics": [\n        "exact_match",\n'
        '        "char_f1"\n    ],\n    "few_shots": [],\n    "samples": [\n        {\n'
        '            "input": "前提：t\\n仮説：u",\n            "output": "entailment"\n        }\n    ]\n}'
    )
    train, dev = (json.loads(world.path(split).read_bytes())["samples"] for split in ("train", "dev"))
    assert [len(train), len(dev)] == [9, 1]
    assert report.splits["dev"].sha256 == sha(world.path("dev").read_bytes())


def test_a_published_hash_is_verified(world: World) -> None:
    world.prepare(world.spec())
    published = sha(world.path("dev").read_bytes())
    (report,) = world.prepare(world.spec(dev=published))
    assert statuses(report) == [Status.derived, Status.verified, Status.derived]
    assert report.complete


def test_another_hash_keeps_nothing(world: World) -> None:
    (report,) = world.prepare(world.spec(dev="0" * 64))
    assert statuses(report) == [Status.differs] * 3
    assert not report.complete
    assert "0" * 64 in report.splits["dev"].reason
    assert world.files() == {}


def test_a_wrong_split_does_not_replace_a_right_file(world: World) -> None:
    url = world.site.serve("/loose.tsv", whole(POOL.encode()))
    world.catalogue.source("loose", "pool", url)
    world.catalogue.task("loose", TASK.format(source="loose", converter="jamp", split="pool_90_10"))
    world.prepare(world.spec("loose"))
    right = world.path("dev", "loose").read_bytes()
    world.site.serve("/loose.tsv", whole(POOL.replace("neutral", "entailment").encode()))
    later = Fetcher(cache=world.folder / "later")
    (report,) = world.prepare(world.spec("loose", dev=sha(right)), fetcher=later)
    assert statuses(report) == [Status.differs] * 3
    assert world.path("dev", "loose").read_bytes() == right


def test_the_second_time_nothing_is_done(world: World) -> None:
    world.prepare(world.spec())
    before, asked = world.files(), len(world.site.requests)
    (report,) = world.prepare(world.spec())
    assert statuses(report) == [Status.derived] * 3
    assert world.files() == before
    assert len(world.site.requests) == asked


def test_a_damaged_file_is_made_again(world: World) -> None:
    world.prepare(world.spec())
    right = {split: world.path(split).read_bytes() for split in ("train", "dev", "test")}
    world.path("train").write_bytes(right["train"][:-1])
    world.path("dev").unlink()
    untouched = world.path("test").stat().st_mtime_ns
    world.prepare(world.spec())
    assert {split: world.path(split).read_bytes() for split in right} == right
    assert world.path("test").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("record", [b"", b"[1]", b'{"toy": {"made_by": 1}}', b"\xff"])
def test_a_torn_record_only_costs_time(world: World, record: bytes) -> None:
    world.prepare(world.spec())
    before = world.files()
    (world.data_dir / "1.3.1" / "prepared.json").write_bytes(record)
    assert world.prepare(world.spec())[0].complete
    assert world.files() == before


def test_a_changed_task_file_is_prepared_again(world: World) -> None:
    world.prepare(world.spec())
    world.prepare(replace(world.spec(), instruction="別の問い"))
    assert json.loads(world.path("dev").read_bytes())["instruction"] == "別の問い"


def test_missing_splits_are_reported_and_the_others_are_kept(world: World) -> None:
    del world.site.answers["/pool.tsv"]
    (report,) = world.prepare(world.spec())
    assert statuses(report) == [Status.not_available, Status.not_available, Status.derived]
    assert "404" in report.splits["dev"].reason and "/pool.tsv" in report.splits["dev"].reason
    assert list(world.files()) == ["1.3.1/evaluation/test/toy.json"]
    (again,) = world.prepare(world.spec())
    assert statuses(again) == statuses(report)
    world.site.serve("/pool.tsv", whole(POOL.encode()))
    assert world.prepare(world.spec())[0].complete


def test_a_complete_folder_is_not_replaced_by_a_reduced_one(world: World) -> None:
    """A folder from llm-jp-eval: files that cannot be made here stay, if the published file is right."""
    world.prepare(world.spec())
    (world.data_dir / "1.3.1" / "prepared.json").unlink()
    del world.site.answers["/pool.tsv"]
    empty = Fetcher(cache=world.folder / "another")
    (report,) = world.prepare(world.spec(dev=sha(world.path("dev").read_bytes())), fetcher=empty)
    assert statuses(report) == [Status.derived, Status.verified, Status.derived]
    assert "kept" in report.splits["train"].reason


def test_malformed_unpinned_data_is_removed_from_the_cache(world: World) -> None:
    """An unpinned file that cannot be read is fetched again by the next command."""
    url = world.site.serve("/loose.tsv", whole(b"num\tpremise\n"))
    world.catalogue.source("loose", "pool", url)
    world.catalogue.task("loose", TASK.format(source="loose", converter="jamp", split="pool_90_10"))
    (report,) = world.prepare(world.spec("loose"))
    assert "loose.tsv" in report.splits["dev"].reason and url in report.splits["dev"].reason
    world.site.serve("/loose.tsv", whole(POOL.encode()))
    (report,) = world.prepare(world.spec("loose"))
    assert statuses(report) == [Status.derived, Status.derived, Status.not_available]


ARTICLE = '<art><par><sen><j>日{0}</j><e type="check">E{0}</e></sen></par></art>'


def corpus(world: World, *, stubs: bool) -> None:
    names = [f"w/{number:02}.xml" for number in range(20)]
    from evalkit.sources.splits import shuffled

    in_train = set(shuffled(names)[:16])
    contents = {
        name: (b"<art/>" if stubs and name in in_train else ARTICLE.format(index).encode())
        for index, name in enumerate(names)
    }
    world.site.serve("/w.tar.gz", whole(tar(contents)))


def test_a_reduced_source_is_marked_and_replaces_nothing(world: World) -> None:
    url = f"{world.site.url}/w.tar.gz"
    world.catalogue.source("w", "all", url, members="w/*.xml", member_count=20)
    world.catalogue.task(
        "w", TASK.format(source="w", converter="wiki_corpus_e_to_j", split="articles_80_10_10")
    )
    spec = world.spec("w")
    corpus(world, stubs=True)
    (reduced,) = world.prepare(spec)
    assert statuses(reduced) == [Status.reduced_source, Status.derived, Status.derived]
    assert "16 articles" in reduced.splits["train"].reason and reduced.splits["train"].samples == 0
    # The whole source replaces it ...
    corpus(world, stubs=False)
    whole_source = Fetcher(cache=world.folder / "whole")
    (full,) = world.prepare(spec, fetcher=whole_source)
    assert full.splits["train"].samples == 16 and full.splits["train"].status is Status.derived
    train = world.path("train", "w").read_bytes()
    # ... and is not replaced by the reduced one again.
    (world.data_dir / "1.3.1" / "prepared.json").unlink()
    published = replace(spec, published={"1.3.1": {"dev": sha(world.path("dev", "w").read_bytes())}})
    (again,) = world.prepare(published)
    assert statuses(again) == [Status.derived, Status.verified, Status.derived]
    assert world.path("train", "w").read_bytes() == train


def test_several_datasets_in_several_processes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_cores", lambda: 2)
    specs = [world.spec()]
    for number in range(3):
        name = f"toy{number}"
        world.catalogue.source(name, "test", f"{world.site.url}/test.tsv")
        world.catalogue.task(name, TASK.format(source=name, converter="jamp", split="pool_90_10"))
        specs.append(world.spec(name))
    reports = world.prepare(*specs)
    assert [report.dataset for report in reports] == ["toy", "toy0", "toy1", "toy2"]
    assert all(report.splits["test"].status is Status.derived for report in reports)
    assert not list(world.data_dir.glob(".prepare-*"))


def test_a_full_disk_is_one_message_and_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    world.fetcher.fetch([*_pins("toy")])
    monkeypatch.setattr("evalkit.sources.convert.os.fsync", full)
    with pytest.raises(EvalkitError, match="no space left"):
        world.prepare(world.spec())
    assert world.files() == {}
    assert not list(world.data_dir.glob(".prepare-*"))


def _pins(source: str) -> tuple[object, ...]:
    from evalkit.sources.pins import pins_of

    return pins_of(source)


def test_a_folder_that_cannot_be_written(world: World) -> None:
    world.data_dir.write_text("a file")
    with pytest.raises(EvalkitError, match="cannot write"):
        world.prepare(world.spec())


def test_a_killed_command_leaves_no_staging_behind(world: World) -> None:
    import socket

    dead = 2**22 + 1
    abandoned = world.data_dir / f".prepare-{socket.gethostname()}-{dead}-x"
    abandoned.mkdir(parents=True)
    ours = world.data_dir / f".prepare-{socket.gethostname()}-{os.getpid()}-x"
    ours.mkdir()
    world.prepare(world.spec())
    assert not abandoned.exists() and ours.exists()


def test_a_task_without_upstream_is_refused(world: World) -> None:
    world.catalogue.task("bare", "instruction: x\noutput_length: 1\nmetrics: [exact_match]\n")
    with pytest.raises(InputError, match="bare"):
        world.prepare(world.spec("bare"))


def test_another_protocol_version_is_refused(world: World) -> None:
    text = TASK.format(source="toy", converter="jamp", split="pool_90_10")
    world.catalogue.task("later", text.replace("1.3.1", "1.4.1"))
    with pytest.raises(InputError, match=r"(?s)'1.4.1' is not 1.3.1.*later.yaml, field upstream"):
        world.spec("later")


def test_the_record_is_small_and_readable(world: World) -> None:
    world.prepare(world.spec())
    record = json.loads((world.data_dir / "1.3.1" / RECORD).read_text())
    assert record["toy"]["splits"]["dev"]["sha256"] == sha(world.path("dev").read_bytes())
    assert set(record["toy"]["sources"].values()) == {sha(POOL.encode()), sha(TEST.encode())}
