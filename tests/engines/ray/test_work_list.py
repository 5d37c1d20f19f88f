"""Handing out: order, sizes, what a dead worker leaves, and the request that is to blame."""

import random
import sys
from types import SimpleNamespace

import pytest

from evalkit.core.types import Message, Request
from evalkit.engines.ray import cluster
from evalkit.engines.ray.engine import RayEngine, RayWorker, WorkList


def requests(count: int, dataset: str, length: int) -> list[Request]:
    text = f"{dataset}: " + "the same few-shots " * 20
    return [Request(f"{dataset}-{index}", f"{text}{index}", length) for index in range(count)]


def taken(work: WorkList, workers: int) -> list[list[Request]]:
    chunks = []
    while work:
        chunks.append(work.take(workers))
    return chunks


def test_every_request_is_handed_out_once_in_ever_smaller_chunks() -> None:
    asked = [*requests(400, "b", 5), *requests(300, "a", 5), *requests(300, "c", 90)]
    random.Random(0).shuffle(asked)
    chunks = taken(WorkList(asked), workers=4)
    assert sorted(request.id for chunk in chunks for request in chunk) == sorted(one.id for one in asked)
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) <= 1000 / 8 and len(chunks) > 4 * 4
    assert sum(sizes[-4:]) < 0.1 * 1000
    assert all(request.max_new_tokens == 90 for request in chunks[0]), "the longest come first"


def test_chats_and_texts_may_be_mixed() -> None:
    chat = Request("chat", (Message("user", "hello"),), 5)
    work = WorkList([chat, *requests(3, "a", 5)])
    assert len(work.take(1)) == 4


def test_what_a_dead_worker_leaves_comes_last_and_in_smaller_parts() -> None:
    work = WorkList(requests(60, "a", 5))
    left = work.take(2)[3:]
    work.failed(left, "killed")
    rest = taken(work, 2)
    assert [request for chunk in rest for request in chunk][-len(left) :] == left
    assert max(len(chunk) for chunk in rest if chunk[0] in left) <= 2


def test_only_the_request_that_kills_is_given_up() -> None:
    asked = requests(200, "a", 5)
    guilty = asked[77].id
    work = WorkList(asked)
    deaths, answered = 0, set()
    while work:
        chunk = work.take(3)
        ids = [request.id for request in chunk]
        if guilty in ids:
            # What was answered before the death is not asked again.
            again = work.failed(chunk[(kept := ids.index(guilty)) :], "out of memory")
            assert again is not bool(work.given_up)
            deaths += 1
            ids = ids[:kept]
        assert not answered.intersection(ids)
        answered.update(ids)
    assert [(request.id, reason) for request, reason in work.given_up] == [(guilty, "out of memory")]
    assert len(answered) == 199 and deaths <= 5


def test_the_end_of_an_engine_whose_ray_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may have no actor, and an actor may be gone: the connection ends all the same."""
    asked, ended = [], []

    def kill(actor: object) -> None:
        asked.append(actor)
        raise RuntimeError("Ray is gone")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(kill=kill))
    monkeypatch.setattr(cluster, "close", lambda: ended.append(True))
    engine = RayEngine.__new__(RayEngine)
    engine._workers = [RayWorker(1), RayWorker(2, "b"), RayWorker(3, "c")]
    engine.close()
    assert (asked, ended, engine._workers) == (["b", "c"], [True], [])
