"""The loop that asks services: order, failures, and what ends it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from evalkit.core.errors import EvalkitError
from evalkit.services.ask_all import FAILURES_IN_A_ROW, NotYetError, ask_all
from evalkit.services.client import ServiceError
from evalkit.services.replies import Reply

FAILED = Reply("api_error", error="no answer")


def run(
    count: int, ask: Callable[[int], Awaitable[Reply | None]], concurrency: int = 4
) -> list[tuple[int, str | None]]:
    failed: list[tuple[int, str | None]] = []

    def on_failure(item: int, reply: Reply, down: bool) -> None:
        failed.append((item, reply.error))
        if down:
            raise EvalkitError("the service is down")

    asyncio.run(ask_all(range(count), ask, concurrency=concurrency, on_failure=on_failure))
    return failed


def test_the_first_item_is_asked_alone_and_the_others_at_once() -> None:
    running, most = 0, []

    async def ask(item: int) -> Reply:
        nonlocal running
        running += 1
        most.append((item, running))
        await asyncio.sleep(0.01)
        running -= 1
        return Reply("ok", text="x")

    assert run(9, ask) == []
    assert most[:2] == [(0, 1), (1, 1)] and max(many for _, many in most) == 4
    assert sorted(item for item, _ in most) == list(range(9))
    assert run(0, ask) == []


def test_an_item_that_is_not_finished_comes_again_after_the_others() -> None:
    asked: list[int] = []

    async def ask(item: int) -> Reply | None:
        asked.append(item)
        if item == 1 and asked.count(1) < 3:
            raise NotYetError
        return None

    run(4, ask, concurrency=1)
    assert asked == [0, 1, 2, 3, 1, 1]


def test_failures_in_a_row_end_the_loop_and_a_success_resets_them() -> None:
    asked: list[int] = []

    async def ask(item: int) -> Reply:
        asked.append(item)
        return Reply("ok", text="x") if item == 3 else FAILED

    with pytest.raises(EvalkitError, match="the service is down"):
        run(40, ask, concurrency=1)
    assert asked == list(range(4 + FAILURES_IN_A_ROW))


def test_a_permanent_error_in_the_first_call_is_the_only_call() -> None:
    asked: list[int] = []

    async def ask(item: int) -> Reply:
        asked.append(item)
        raise ServiceError("request", "unknown field")

    with pytest.raises(ServiceError, match="unknown field"):
        run(9, ask)
    assert asked == [0]


def test_a_request_that_is_refused_after_answers_is_a_failure_of_its_own() -> None:
    async def ask(item: int) -> Reply:
        if item == 2:
            raise ServiceError("request", "this one is refused")
        return Reply("ok", text="x")

    assert run(5, ask) == [(2, "this one is refused")]


def test_calls_under_way_are_finished_when_another_one_ends_the_loop() -> None:
    finished: list[int] = []

    async def ask(item: int) -> Reply:
        if item == 1:
            await asyncio.sleep(0)
            raise ServiceError("quota", "no credit")
        await asyncio.sleep(0.01)
        finished.append(item)
        return Reply("ok", text="x")

    with pytest.raises(ServiceError, match="no credit"):
        run(50, ask, concurrency=3)
    assert finished == [0, 2, 3]
