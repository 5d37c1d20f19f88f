"""The shared client against a server that fails in every way, over real sockets."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
from fault_server import PAUSE, FaultServer, rating_of

from evalkit.core.secrets import redact
from evalkit.core.types import Message
from evalkit.services.client import AdaptiveLimit, ApiClient, Service, ServiceError, _refusal_in
from evalkit.services.replies import Reply, chat_body

KEY = "sk-test-0123456789abcdef"


def ask(server: FaultServer, texts: Sequence[str], **options: Any) -> list[Reply]:
    """Sends one message for each text at once."""
    timeout = options.pop("timeout", 5.0)

    async def send_all() -> list[Reply]:
        service = Service(server.url, KEY, timeout=timeout)
        async with ApiClient(service, first_wait=0.01, max_wait=0.02, **options) as client:
            requests = [
                client.request(
                    "/chat/completions", chat_body("judge", [Message("user", text)], {"temperature": 0})
                )
                for text in texts
            ]
            return list(await asyncio.gather(*requests))

    return asyncio.run(send_all())


def fail_first(fault: str, times: int = 1) -> Any:
    return lambda text, attempt: fault if attempt < times else "ok"


def test_an_answer() -> None:
    with FaultServer() as server:
        (reply,) = ask(server, ["問い"])
    assert reply == Reply(
        status="ok",
        text=f"説明です。\n\nRating: [[{rating_of('問い')}]]",
        finish_reason="stop",
        model="judge",
        input_tokens=1000,
        output_tokens=100,
    )
    assert server.bodies == [
        {"model": "judge", "messages": [{"role": "user", "content": "問い"}], "temperature": 0}
    ]
    assert server.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "fault", ["429", "500", "cut", "cut_in_the_middle", "empty", "malformed", "html", "timeout"]
)
def test_what_passes_is_tried_again(fault: str) -> None:
    with FaultServer(fail_first(fault, 2)) as server:
        (reply,) = ask(server, ["a"], timeout=0.3)
    assert (reply.status, reply.attempts) == ("ok", 3)
    assert len(server.calls) == 3


@pytest.mark.parametrize(
    ("fault", "status"), [("filter", "filtered"), ("filter_finish", "filtered"), ("overflow", "overflow")]
)
def test_what_concerns_one_request_is_its_status(fault: str, status: str) -> None:
    with FaultServer(fail_first(fault, 99)) as server:
        (reply,) = ask(server, ["a"])
    assert (reply.status, reply.text, reply.attempts) == (status, None, 1)
    assert reply.error
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("bad_key", "key"),
        ("no_model", "model"),
        ("quota", "quota"),
        ("bad_request", "request"),
    ],
)
def test_what_concerns_every_request_stops(fault: str, reason: str) -> None:
    with FaultServer(fail_first(fault, 99)) as server, pytest.raises(ServiceError) as caught:
        ask(server, ["a"])
    assert caught.value.reason == reason
    assert len(server.calls) == 1


def test_the_key_is_in_no_message() -> None:
    """The server repeats the header it got; what is shown does not."""
    with FaultServer(fail_first("bad_key", 99)) as server, pytest.raises(ServiceError) as caught:
        ask(server, ["a"])
    assert "0123456789" not in str(caught.value)
    assert KEY not in repr(Service(server.url, KEY))


def test_a_service_that_never_recovers_is_an_error_of_the_request() -> None:
    with FaultServer(fail_first("500", 99)) as server:
        (reply,) = ask(server, ["a"], retries=3)
    assert (reply.status, reply.attempts) == ("api_error", 4)
    assert "HTTP 500" in (reply.error or "")
    assert len(server.calls) == 4


def test_a_word_while_a_service_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Which, since when and why; at steps, not at every attempt; and when it answers again."""
    monkeypatch.setattr("evalkit.services.client._REPORTS", (0.0, 1000.0))
    with FaultServer(fail_first("500", 3)) as server:
        ask(server, ["a", "b"])
        (first, *_), (last,) = [
            [record.getMessage() for record in caplog.records if word in record.getMessage()]
            for word in ("fails since", "answers again")
        ]
        assert first.startswith(server.url) and "(HTTP 500: it broke)" in first
        assert re.search(r"was away since \d\d:\d\d:\d\d$", last) and len(caplog.records) <= 4
    caplog.clear()
    monkeypatch.setattr("evalkit.services.client._REPORTS", (1000.0,))
    with FaultServer(fail_first("500")) as server:
        ask(server, ["a"])
    assert not caplog.records


def test_retry_after_is_kept() -> None:
    with FaultServer(fail_first("429")) as server:
        started = time.monotonic()
        ask(server, ["a"])
        assert time.monotonic() - started >= PAUSE
    gap = server.times[1] - server.times[0]
    assert gap >= PAUSE


def test_a_pause_of_zero_is_no_storm() -> None:
    with FaultServer(fail_first("429", 4)) as server:
        server.pause = 0
        (reply,) = ask(server, ["a"])
    assert (reply.status, reply.attempts) == ("ok", 5)
    assert server.times[-1] - server.times[0] >= 0.02


def test_concurrency_adapts_to_a_limit() -> None:
    """A server that serves 3 at once: all are answered, and the client stops flooding it."""
    with FaultServer(latency=0.01, limit=3) as server:
        replies = ask(server, [str(number) for number in range(120)], concurrency=24)
    assert all(reply.status == "ok" for reply in replies)
    assert sum(server.answered.values()) == 120
    refused = len(server.calls) - 120
    assert refused < 120, "a client that does not slow down is refused far more often"


def test_a_pause_of_a_day_is_an_end() -> None:
    async def meet() -> None:
        client = ApiClient(Service("http://127.0.0.1:9/v1", KEY))
        import httpx2
        import openai

        response = httpx2.Response(
            429, headers={"Retry-After": "86400"}, request=httpx2.Request("POST", "http://127.0.0.1:9/v1")
        )
        with pytest.raises(ServiceError) as caught:
            client._refused(_refusal_in(openai.RateLimitError("later", response=response, body=None)))
        assert caught.value.reason == "pause"
        await client.api.close()

    asyncio.run(meet())


def test_nobody_there() -> None:
    async def call() -> Reply:
        service = Service("http://127.0.0.1:9/v1", KEY)
        async with ApiClient(service, retries=1, first_wait=0.01) as client:
            return await client.request("/chat/completions", chat_body("judge", [Message("user", "a")], {}))

    reply = asyncio.run(call())
    assert reply.status == "api_error"
    assert "connection failed" in (reply.error or "")


def test_azure_addresses_the_deployment() -> None:
    async def call(port: int) -> Reply:
        service = Service(f"http://127.0.0.1:{port}", KEY, deployment="my-gpt", api_version="2024-10-21")
        async with ApiClient(service) as client:
            return await client.request("/chat/completions", chat_body("my-gpt", [Message("user", "a")], {}))

    with FaultServer() as server:
        assert asyncio.run(call(server.port)).status == "ok"
    assert server.paths == ["/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"]
    assert server.headers["api-key"] == KEY


def test_limit_halves_once_for_a_burst_and_grows_back() -> None:
    async def use() -> None:
        limit = AdaptiveLimit(8)
        async with limit as first, limit as second:
            limit.slow_down(first, 0.02)
            limit.slow_down(second, 0.02)
            assert limit.current == 4
        started = time.monotonic()
        async with limit:
            assert time.monotonic() - started >= 0.015
        for _ in range(100):
            limit.succeeded()
        assert limit.current == 8

    asyncio.run(use())


def test_a_pause_that_ends_while_a_call_arrives_keeps_nobody_waiting() -> None:
    """The clock passes the end of the pause between two looks at it."""

    async def use() -> None:
        limit, loop = AdaptiveLimit(1), asyncio.get_running_loop()
        async with limit as started:
            limit.slow_down(started, 0.0)
        real, looks = loop.time, iter([loop.time() - 1.0])
        async with asyncio.timeout(5):
            loop.time = lambda: next(looks, None) or real()  # type: ignore[method-assign]
            async with limit:
                assert limit.running == 1

    asyncio.run(use())


def test_limit_survives_cancelled_waiters() -> None:
    async def use() -> None:
        limit = AdaptiveLimit(1)

        async def hold(seconds: float) -> None:
            async with limit:
                await asyncio.sleep(seconds)

        first = asyncio.create_task(hold(0.05))
        await asyncio.sleep(0)
        waiter = asyncio.create_task(hold(9))
        await asyncio.sleep(0.01)
        waiter.cancel()
        await first
        await asyncio.wait_for(hold(0), 1)
        assert limit.running == 0

    asyncio.run(use())


def test_the_key_that_an_error_repeats_is_hidden() -> None:
    assert redact(f"bad {KEY} and sk-abc***xyz\nBearer abcdefgh", KEY) == "bad [key] and [key] [key]"
    assert redact("no API key was provided", "none") == "no API key was provided"


def test_the_wait_after_very_many_rate_limits() -> None:
    client = ApiClient(Service(None, KEY), max_wait=60.0)
    assert 30.0 <= client._wait(5000, None) <= 60.0
