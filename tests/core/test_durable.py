import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.core.durable import (
    Appender,
    atomic_file,
    is_abandoned,
    is_whole_text,
    process_tag,
    read_checked_json,
    read_log,
    write_checked_json,
    write_checked_text,
    write_json_atomic,
)
from evalkit.core.errors import EvalkitError, InputError

# A process id beyond what Linux gives out: nobody has it.
NOBODY = 2**22 + 1


def test_a_checked_file_gives_back_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"数": (1, 2.5), "none": None, "deep": {"nan": 1e-300}}
    write_checked_json(path, content)
    assert read_checked_json(path) == json.loads(json.dumps(content))
    # Without a checksum it is taken as it is.
    write_json_atomic(path, content)
    assert read_checked_json(path)["数"] == [1, 2.5]


@settings(deadline=None)
@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_the_content(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "a.json"
    content = {"average": 0.4596, "name": "平均"}
    write_checked_json(path, content)
    changed = bytearray(path.read_bytes())
    changed[position % len(changed)] ^= 1 << bit
    path.write_bytes(changed)
    try:
        found = read_checked_json(path)
    except ValueError:
        return
    assert {key: found[key] for key in content} == content


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0" * 20])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError):
        read_checked_json(tmp_path / "a.json")


def test_checked_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert not is_whole_text(path)
    write_checked_text(path, "limit: 20\nモデル: a\n")
    assert is_whole_text(path)
    path.write_bytes(path.read_bytes().replace(b"20", b"30"))
    assert not is_whole_text(path)


def test_only_ended_processes_of_this_host_are_gone() -> None:
    host = process_tag().rpartition("-")[0]
    assert is_abandoned(f"{host}-{NOBODY}")
    for tag in (process_tag(), f"{host}-1", f"other-{host}-{NOBODY}", f"{host}-x", "", f"{NOBODY}"):
        assert not is_abandoned(tag)


def test_temporary_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    host = process_tag().rpartition("-")[0]
    gone = tmp_path / f".a.json.{host}-{NOBODY}.tmp"
    elsewhere = tmp_path / f".a.json.elsewhere-{NOBODY}.tmp"
    other = tmp_path / f".b.json.{host}-{NOBODY}.tmp"
    for path in (gone, elsewhere, other):
        path.write_text("{")
    write_json_atomic(tmp_path / "a.json", {})
    assert [path.exists() for path in (gone, elsewhere, other)] == [False, True, True]


def test_half_a_line_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"id": "torn')
    log = Appender(path)
    log.append({"id": "a"})
    log.close()
    assert read_log(path) == ({"a": {"id": "a"}}, 1)


def test_a_half_line_that_stays_is_ended_by_the_next_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space in the middle of a line, and the file cannot be cut either."""
    log = Appender(tmp_path / "log.jsonl")
    log.append({"id": "a"})
    real, pieces = os.write, iter([5])

    def write(descriptor: int, data: bytes) -> int:
        if (piece := next(pieces, None)) is None:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data[:piece])

    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", write)
        broken.setattr(os, "ftruncate", refuse)
        with pytest.raises(EvalkitError, match="no space left"):
            log.append({"id": "b"})
    log.append({"id": "b"})
    log.close()
    rows, damaged = read_log(tmp_path / "log.jsonl")
    assert (list(rows), damaged) == (["a", "b"], 1)


def test_a_failed_sync_keeps_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("evalkit.core.durable.SYNC_SECONDS", -1.0)
    monkeypatch.setattr(os, "fsync", fail)
    log = Appender(tmp_path / "log.jsonl")
    for action in (lambda: log.append({"id": "a"}), log.close):
        with pytest.raises(EvalkitError, match="Input/output error"):
            action()
    assert list(read_log(tmp_path / "log.jsonl")[0]) == ["a"]


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "log.jsonl"
    folder.mkdir()
    with pytest.raises(InputError, match=r"log\.jsonl"):
        read_log(folder)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(EvalkitError, match="cannot write"), atomic_file(file / "a.json"):
        pass
