import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.core.durable import from_line, read_log, to_line, write_json_atomic, write_lines_atomic
from evalkit.core.errors import EvalkitError, InputError
from evalkit.records.run_folder import RunDirectory, SampleRecord, one_run, run_id


def record(index: int, completion: str = "1") -> SampleRecord:
    return SampleRecord(
        id=f"jamp/dev/{index}",
        input="前提",
        prompt_sha256="0" * 64,
        gold="neutral",
        completion=completion,
        raw_text=completion,
        finish_reason="stop_string",
        prompt_tokens=10,
        new_tokens=2,
    )


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans()))
def test_a_line_gives_back_its_row(row: dict[str, object]) -> None:
    row.pop("check", None)
    line = to_line(row)
    assert line.count(b"\n") == 1 and from_line(line) == row


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_flipped_byte_is_noticed(position: int, change: int) -> None:
    line = bytearray(to_line({"id": "jamp/dev/0", "completion": "こんにちは", "new_tokens": 3}))
    line[position % (len(line) - 1)] ^= change
    row = from_line(bytes(line))
    assert row is None or row == {"id": "jamp/dev/0", "completion": "こんにちは", "new_tokens": 3}


def test_kept_records_come_back(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as run:
        run.append("jamp", record(0))
        run.append("jamp", record(1, "改行\nと\u2028区切り"))
    assert list(RunDirectory(tmp_path / "run").records("jamp").values()) == [
        record(0),
        record(1, "改行\nと\u2028区切り"),
    ]


SAMPLE_KEYS = "id input prompt_sha256 gold completion raw_text finish_reason prompt_tokens new_tokens"
TURN_KEYS = (
    "id model question_id category turn answer completion raw_text finish_reason truncated prompt_sha256 "
    "prompt_tokens new_tokens max_new_tokens generator_state over_context error"
)
GIVEN_TURN = {
    "id": "1/2/0/m",
    "model": "m",
    "question_id": 1,
    "category": "math",
    "turn": 2,
    "answer": 0,
    "completion": "はい",
}


def test_a_sample_and_a_turn_have_lines_of_their_own(tmp_path: Path) -> None:
    turn = SampleRecord.from_line(GIVEN_TURN, tmp_path)
    for one, keys in ((record(0), f"{SAMPLE_KEYS} over_context error"), (turn, TURN_KEYS)):
        assert list(one.line()) == keys.split()
        assert SampleRecord.from_line({**one.line(), "of another version": 1}, tmp_path) == one
    assert turn.line() | GIVEN_TURN == turn.line()


@pytest.mark.parametrize(("row", "key"), [(record(0).line(), "gold"), (GIVEN_TURN, "category")])
def test_a_line_without_a_key_is_one_clear_error(tmp_path: Path, row: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=f"it has no {key}"):
        SampleRecord.from_line({name: value for name, value in row.items() if name != key}, tmp_path)


@pytest.mark.parametrize(
    "torn", [b'{"id": "jamp/dev/2", "inp', b'{"id": "jamp/dev/2"}', b"\x00" * 40, "前".encode()[:2]]
)
def test_a_torn_last_line_is_dropped_and_appending_goes_on(tmp_path: Path, torn: bytes) -> None:
    with RunDirectory(tmp_path) as run:
        run.append("jamp", record(0))
    with run.samples_path("jamp").open("ab") as log:
        log.write(torn)
    with RunDirectory(tmp_path) as run:
        assert run.recover("jamp") == 1
        assert list(run.records("jamp")) == ["jamp/dev/0"]
        run.append("jamp", record(1))
    assert list(RunDirectory(tmp_path).records("jamp")) == ["jamp/dev/0", "jamp/dev/1"]
    assert run.recover("jamp") == 0


def test_a_repeated_id_counts_once(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as run:
        run.append("jamp", record(0, "first"))
        run.append("jamp", record(0, "second"))
    assert [kept.completion for kept in run.records("jamp").values()] == ["first"]


def test_two_processes_on_one_run_are_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path), pytest.raises(EvalkitError, match="another process") as caught:
        RunDirectory(tmp_path).__enter__()
    assert caught.value.exit_code == 1
    with RunDirectory(tmp_path):
        pass


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    with RunDirectory(tmp_path) as run:
        run.append("jamp", record(0))

        def short_of_space(descriptor: int, data: bytes) -> int:
            if len(data) > 20:
                return real_write(descriptor, data[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(
            os, "write", lambda d, data: short_of_space(d, data if len(data) > 60 else data[:10])
        )
        with pytest.raises(EvalkitError, match="no space left"):
            run.append("jamp", record(1))
        monkeypatch.undo()
    rows, damaged = read_log(run.samples_path("jamp"))
    assert (list(rows), damaged) == (["jamp/dev/0"], 0)


def test_atomic_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "results.json"
    write_json_atomic(path, {"average": "平均"})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"average": object()})
    with pytest.raises(TypeError):
        write_lines_atomic(path, [{"a": object()}])
    assert json.loads(path.read_text(encoding="utf-8")) == {"average": "平均"}
    assert [child.name for child in path.parent.iterdir()] == ["results.json"]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalkitError, match="out=DIR"):
        RunDirectory(tmp_path / "file" / "run").__enter__()


def test_run_ids_depend_on_every_value_and_on_no_order() -> None:
    assert run_id({"a": 1, "b": [2, 3]}) == run_id({"b": [2, 3], "a": 1})
    assert run_id({"a": 1, "b": [2, 3]}) != run_id({"a": 1, "b": [3, 2]})


def test_run_names_any_folder_with_one_run_in_it(tmp_path: Path) -> None:
    for place in ("m/jaster/1", "m/mt-bench-ja/2", "n/jaster/3", "empty"):
        (tmp_path / place / "samples").mkdir(parents=True)
    (tmp_path / "empty" / "samples").rmdir()
    (tmp_path / "m/mt-bench-ja/2/mt_bench.json").touch()
    (tmp_path / "n" / "again").symlink_to(tmp_path / "n")
    for place in ("n", "n/jaster", "n/jaster/3"):
        assert one_run(str(tmp_path / place)) == tmp_path / "n/jaster/3"
    assert one_run(str(tmp_path / "m"), mt_bench=True) == tmp_path / "m/mt-bench-ja/2"
    assert one_run(str(tmp_path / "m"), mt_bench=False) == tmp_path / "m/jaster/1"
    for place in ("empty", "nowhere"):
        assert one_run(str(tmp_path / place)) == tmp_path / place
    with pytest.raises(InputError, match="several runs are there") as caught:
        one_run(str(tmp_path / "m"))
    assert "run=" + str(tmp_path / "m/jaster/1") in str(caught.value)
    with pytest.raises(InputError, match="several runs"):
        one_run(str(tmp_path))
