"""The judgment store: append-only, whole lines, claims that die with their process."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from evalkit.core.types import Message
from evalkit.mtbench.judge.store import CachedReply, JudgmentStore, judgment_key

JUDGE = {"service": "openai", "model": "gpt-4-0613"}


def stored(key: str, text: str = "[[5]]") -> CachedReply:
    return CachedReply(key, "ok", text, "stop", "gpt-4-0613", 10, 5)


def test_what_is_added_is_there_again(tmp_path: Path) -> None:
    with JudgmentStore(tmp_path, JUDGE) as store:
        store.add(stored("a" * 64, "改行\nと\u2028 区切り"))
        assert "a" * 64 in store
    with JudgmentStore(tmp_path, JUDGE) as store:
        assert store.get("a" * 64) == stored("a" * 64, "改行\nと\u2028 区切り")
    with JudgmentStore(tmp_path, JUDGE | {"model": "another"}) as other:
        assert len(other) == 0


def test_damaged_lines_are_skipped_and_written_over(tmp_path: Path) -> None:
    with JudgmentStore(tmp_path, JUDGE) as store:
        store.add(stored("a" * 64))
        store.add(stored("b" * 64))
        path = store.path
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(bytes(data[:-20]))
    with JudgmentStore(tmp_path, JUDGE) as store:
        assert len(store) == 0
        store.add(stored("c" * 64))
    with JudgmentStore(tmp_path, JUDGE) as store:
        assert len(store) == 1 and "c" * 64 in store


def test_one_store_sees_what_another_adds(tmp_path: Path) -> None:
    with JudgmentStore(tmp_path, JUDGE) as first, JudgmentStore(tmp_path, JUDGE) as second:
        first.add(stored("a" * 64))
        assert "a" * 64 not in second
        second.refresh()
        assert "a" * 64 in second


def _claim_and_wait(folder: Path, pipe: Connection) -> None:
    with JudgmentStore(folder, JUDGE) as store:
        pipe.send(store.claim("a" * 64))
        pipe.recv()


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=_claim_and_wait, args=(tmp_path, theirs))
    other.start()
    assert ours.recv() is True
    with JudgmentStore(tmp_path, JUDGE) as store:
        assert not store.claim("a" * 64)
        assert store.claim("b" * 64)
        other.kill()
        other.join()
        assert store.claim("a" * 64)
        store.release("a" * 64)


def _add_many(folder: Path, letter: str) -> None:
    with JudgmentStore(folder, JUDGE) as store:
        for number in range(200):
            store.add(stored(f"{letter}{number:03}" * 16, "text " * 500))


def test_two_writers_tear_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_many, args=(tmp_path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    with JudgmentStore(tmp_path, JUDGE) as store:
        assert len(store) == 400


def test_keys_are_content() -> None:
    messages = [Message("system", "s"), Message("user", "u")]
    base = judgment_key(JUDGE, {"temperature": 0}, messages, 0)
    assert base == judgment_key(dict(reversed(JUDGE.items())), {"temperature": 0}, list(messages), 0)
    others = [
        judgment_key(JUDGE | {"model": "x"}, {"temperature": 0}, messages, 0),
        judgment_key(JUDGE, {"temperature": 1}, messages, 0),
        judgment_key(JUDGE, {"temperature": 0}, messages[::-1], 0),
        judgment_key(JUDGE, {"temperature": 0}, messages, 1),
        judgment_key(JUDGE, {"temperature": 0}, messages, 0, reask=1),
    ]
    assert len({base, *others}) == 6
    assert base == judgment_key(JUDGE, {"temperature": 0}, messages, 0, reask=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    from evalkit.core.errors import EvalkitError

    tmp_path.chmod(0o500)
    with pytest.raises(EvalkitError, match="cannot write"), JudgmentStore(tmp_path / "x", JUDGE):
        pass
