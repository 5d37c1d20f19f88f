"""Handing out: order, sizes, what a dead worker leaves, and the request that is to blame."""

import random

from evalkit.core.types import Completion, Message, Request
from evalkit.engines.ray.engine import WorkList


def completion(request: Request) -> Completion:
    return Completion(request.id, "x", "x", "length", 1, 1)


def requests(count: int, dataset: str, length: int) -> list[Request]:
    text = f"{dataset}: " + "the same few-shots " * 20
    return [Request(f"{dataset}-{index}", f"{text}{index}", length) for index in range(count)]


def taken(work: WorkList, workers: int) -> list[list[Request]]:
    chunks = []
    while chunk := work.take(workers):
        chunks.append(chunk)
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


def test_a_completion_counts_once() -> None:
    asked = requests(2, "a", 5)
    work = WorkList(asked)
    work.take(1)
    assert work.done(completion(asked[0])) and not work.done(completion(asked[0]))
    assert len(work) == 1
    assert not work.done(completion(Request("foreign", "x", 1)))


def test_what_a_dead_worker_leaves_comes_last_and_in_parts() -> None:
    asked = requests(60, "a", 5)
    work = WorkList(asked)
    first = work.take(2)
    for request in first[:3]:
        work.done(completion(request))
    work.failed(first, "killed")
    rest = taken(work, 2)
    left = first[3:]
    again = [chunk for chunk in rest if chunk[0] in left]
    assert rest[-len(again) :] == again and 1 < len(again) <= 4
    assert [request for chunk in again for request in chunk] == left


def test_what_was_answered_in_the_meantime_is_not_handed_out_again() -> None:
    asked = requests(8, "a", 5)
    work = WorkList(asked)
    chunk = work.take(1)
    work.failed(chunk, "killed")
    # A dead worker's last answer may still arrive.
    for request in chunk[:3]:
        assert work.done(completion(request))
    assert sorted(one.id for part in taken(work, 1) for one in part) == sorted(one.id for one in chunk[3:])


def test_only_the_request_that_kills_is_given_up() -> None:
    asked = requests(200, "a", 5)
    guilty = asked[77].id
    work = WorkList(asked)
    deaths, answered = 0, set()
    while len(work):
        chunk = work.take(3)
        assert chunk, "open requests must be handed out again"
        for request in chunk:
            if request.id == guilty:
                work.failed(chunk, "out of memory")
                deaths += 1
                break
            answered.add(request.id)
            work.done(completion(request))
    assert [(request.id, reason) for request, reason in work.given_up] == [(guilty, "out of memory")]
    assert len(answered) == 199 and deaths <= 5
