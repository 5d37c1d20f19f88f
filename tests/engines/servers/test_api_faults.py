"""engine=api and servers that fail: retries, failover, refusals; answers are kept, keys stay secret."""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from evalkit.engines.servers.balance import LoadBalancer, Server
from evalkit.services.client import ApiClient
from evalkit.services.replies import Reply
from tests.mtbench.fault_server import FaultServer

KEY = "sk-test-0123456789abcdef"
SUITE = ["suite=sample", "suite.tasks=[jamp,mawps]", "offline=true", "model=served"]
QUICK = ["engine=api", "engine.retries=2", "engine.max_wait=0.02", "metrics.resamples=50"]


def api(*servers: FaultServer) -> list[str]:
    return [*SUITE, *QUICK, f"engine.base_url=[{','.join(server.url for server in servers)}]"]


def records(out: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in out.glob("served/sample/*/samples/*.jsonl"):
        rows, damaged = read_log(path)
        assert (damaged, path.read_bytes().count(b"\n")) == (0, len(rows))
        found |= rows
    return found


def everything_written(out: Path) -> str:
    return "\n".join(
        path.read_text(encoding="utf-8")
        for path in out.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


def fail_first(fault: str, times: int = 1) -> Callable[[str, int], str]:
    return lambda text, attempt: fault if attempt < times else "ok"


def run(out: Path, servers: Sequence[FaultServer], *more: str) -> int:
    return main([*api(*servers), f"out={out}", *more])


def test_an_undisturbed_run_of_a_foreign_server(tmp_path: Path) -> None:
    """The model's name is in the identity, the address is not; the text follows the protocol's rule."""
    ids = []
    for name in "ab":
        with FaultServer() as server:
            assert run(tmp_path / name, [server]) == 0
        (folder,) = (tmp_path / name / "served" / "sample").iterdir()
        ids.append(folder.name)
        assert len(records(tmp_path / name)) == 12
    assert ids[0] == ids[1]
    identity = json.loads((folder / "environment.json").read_text())["identity"]
    assert (identity["engine_family"], identity["dtype"]) == ("api", "server")
    assert identity["model"] == {"server_model": "served", "name": "served"}
    record = next(iter(records(tmp_path / "b").values()))
    assert (record["completion"], record["raw_text"], record["finish_reason"]) == (" 答え", " 答え", "stop")
    with FaultServer() as server:
        server.listed = {"id": "other", "object": "model", "owned_by": "me"}
        assert run(tmp_path / "c", [server]) == 0
    assert next((tmp_path / "c" / "other" / "sample").iterdir()).name != ids[0]


@pytest.mark.parametrize("fault", ["429", "500", "cut", "cut_in_the_middle", "empty", "malformed", "html"])
def test_what_passes_is_tried_again(fault: str, tmp_path: Path) -> None:
    with FaultServer(fail_first(fault)) as server:
        server.pause = 0.01
        assert run(tmp_path, [server]) == 0
        assert len(server.calls) == 24
    assert len(records(tmp_path)) == 12
    assert all(record["finish_reason"] == "stop" for record in records(tmp_path).values())


@pytest.mark.parametrize(("fault", "over"), [("overflow", True), ("filter", False), ("filter_finish", False)])
def test_what_concerns_one_request_counts_as_wrong(fault: str, over: bool, tmp_path: Path) -> None:
    chosen: list[str] = []

    def plan(text: str, attempt: int) -> str:
        if not chosen:
            chosen.append(text)
        return fault if text == chosen[0] else "ok"

    with FaultServer(plan) as server:
        assert run(tmp_path, [server]) == 0
    (wrong,) = [record for record in records(tmp_path).values() if record["finish_reason"] == "error"]
    assert (wrong["completion"], wrong["over_context"]) == ("", over) and wrong["error"]
    results = json.loads(next(tmp_path.glob("served/sample/*/results.json")).read_text())
    assert results["run"]["errors"] == 1


def test_a_wrong_key_stops_and_is_told_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server repeats the key it got in its error."""
    monkeypatch.setenv("MY_KEY", KEY)
    with FaultServer() as server:
        server.key = "another"
        assert run(tmp_path, [server], "engine.api_key_env=MY_KEY") == 1
        assert len(server.calls) == 0
    captured = capsys.readouterr()
    assert "refuses the API key" in captured.err and "Traceback" not in captured.err
    assert "0123456789" not in captured.err + captured.out + everything_written(tmp_path)


def test_a_right_key_is_told_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer(fail_first("500")) as server:
        server.key = KEY
        assert run(tmp_path, [server]) == 0
    captured = capsys.readouterr()
    assert "0123456789" not in captured.err + captured.out + everything_written(tmp_path)


@pytest.mark.parametrize("fault", ["500", "bad_key"])
def test_name_and_password_of_an_address_are_told_nowhere(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even when the server repeats the header made of them."""
    with FaultServer(fail_first(fault)) as server:
        address = server.url.replace("http://", "http://user:passw0rd@")
        code = main([*SUITE, *QUICK, f"engine.base_url=[{address}]", f"out={tmp_path}"])
        assert code == (1 if fault == "bad_key" else 0)
        assert server.headers["Authorization"].startswith("Basic ")
    captured = capsys.readouterr()
    told = captured.err + captured.out + everything_written(tmp_path)
    assert "passw0rd" not in told and server.headers["Authorization"].split()[1] not in told
    assert f"127.0.0.1:{server.port}" in told


def test_a_key_that_stops_working_keeps_what_was_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def plan(text: str, attempt: int) -> str:
        calls.append(text)
        return "bad_key" if len(calls) > 5 else "ok"

    with FaultServer(plan) as server:
        assert run(tmp_path, [server], "engine.concurrency=1") == 1
        assert "refuses the API key" in capsys.readouterr().err
        assert len(records(tmp_path)) == 5
        server.plan = lambda text, attempt: "ok"
        assert run(tmp_path, [server]) == 0
    assert "continuing: 5 of 12" in capsys.readouterr().err
    assert len(records(tmp_path)) == 12


def test_an_unknown_model_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultServer(fail_first("no_model", 99)) as server:
        assert run(tmp_path, [server], "engine.model=gpt-9") == 1
        assert len(server.calls) == 1
    assert "does not have the model" in capsys.readouterr().err
    with FaultServer() as server:
        server.listed = {"id": "a", "object": "model", "owned_by": "vllm"}
        assert run(tmp_path, [server], "engine.model=b") == 2
        assert "engine.model=a" in capsys.readouterr().err
        address = f"engine.base_url={server.url.removesuffix('/v1')}"
        assert main([*SUITE, *QUICK, address, f"out={tmp_path}", "engine.model=a"]) == 2
        assert f"{address}/v1" in capsys.readouterr().err
        server.listed = None
        assert run(tmp_path, [server]) == 1, "no list of models, and none is named"
        assert run(tmp_path, [server], "model.name=served") == 0


def test_a_server_that_fails_is_not_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HTTP 500 for the list of models, and litellm's HTTP 400 for a wrong key."""
    with FaultServer() as server:
        server.raw = {"models": (500, {}, {"error": {"message": "it broke"}})}
        assert run(tmp_path, [server]) == 1
        error = capsys.readouterr().err
        assert "the server fails" in error and f"{server.url} (HTTP 500: it broke)" in error
        assert "no server answers" not in error
        # Its kind decides what is sent and is part of the run id.
        assert run(tmp_path, [server], "engine.model=served") == 1
        assert "engine.server=vllm|sglang|tgi|llama.cpp|openai" in capsys.readouterr().err
        assert not records(tmp_path)
        assert run(tmp_path, [server], "engine.model=served", "engine.server=openai") == 0
        assert "is taken as given" in capsys.readouterr().err
        server.raw = {"models": (501, {}, {"error": {"message": "not implemented"}})}
        assert run(tmp_path, [server], "engine.model=served") == 0, "a service without a list"
        server.raw = {"models": (400, {}, {"error": {"message": "No connected db.", "code": "400",
                                                     "type": "no_db_connection"}})}  # fmt: skip
        assert run(tmp_path, [server], "engine.model=served") == 1
        error = capsys.readouterr().err
        assert "refuses the API key" in error and "parameters" not in error


def test_a_failing_list_of_models_makes_no_second_run(tmp_path: Path) -> None:
    """Neither where the kind is named: the run id and the requests stay the same."""
    words = ("engine.model=served", "suite.tasks=[mawps]", "engine.concurrency=1")
    broken = {"models": (500, {}, {"error": {"message": "?"}})}
    with FaultServer(lambda text, attempt: "ok" if len(server.calls) < 3 else "bad_key") as server:
        server.listed = {"id": "served", "owned_by": "vllm"}
        assert run(tmp_path, [server], *words) == 1 and len(records(tmp_path)) == 2
        server.plan, server.raw = (lambda text, attempt: "ok"), broken
        assert run(tmp_path, [server], *words) == 1 and len(records(tmp_path)) == 2
        assert run(tmp_path, [server], *words, "engine.server=vllm") == 0
        assert len(server.calls) == 7 and {"min_p", "repetition_penalty"} <= server.bodies[-1].keys()
    assert len(list(tmp_path.glob("served/sample/*"))) == 1 and len(records(tmp_path)) == 6


def test_prompts_too_long_for_a_server_are_asked_again_when_its_context_has_grown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command after a restart; what fitted stays as it is."""
    long: list[str] = []

    def plan(text: str, attempt: int) -> str:
        long.extend([text] if len(long) < 2 and text not in long else [])
        return "overflow" if text in long else "ok"

    with FaultServer(plan) as server:
        server.listed = {"id": "served", "owned_by": "me", "max_model_len": 512}
        assert run(tmp_path, [server], "engine.concurrency=1") == 0
        assert "the server's context is 512 tokens" in capsys.readouterr().err
        before = records(tmp_path)
        assert sum(record["over_context"] for record in before.values()) == 2
        calls = len(server.calls)
        assert run(tmp_path, [server]) == 0 and len(server.calls) == calls
        assert "finished already" in capsys.readouterr().out
        server.listed["max_model_len"] = 1024
        server.plan = lambda text, attempt: "bad_key"
        assert run(tmp_path, [server]) == 1, "stopped before they are answered: they are not forgotten"
        server.plan = lambda text, attempt: "ok"
        calls = len(server.calls)
        assert run(tmp_path, [server]) == 0 and len(server.calls) == calls + 2
        assert "continuing: 10 of 12" in capsys.readouterr().err
        calls = len(server.calls)
        assert run(tmp_path, [server]) == 0 and len(server.calls) == calls
    after = records(tmp_path)
    assert not any(record["over_context"] for record in after.values()) and len(after) == 12
    assert {key: row for key, row in before.items() if not row["over_context"]}.items() <= after.items()


def test_a_server_that_comes_back_with_a_smaller_context_is_not_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After an absence, and where only an answer tells; a smaller `limit=` forgets no long prompt."""
    mawps = ["suite.tasks=[mawps]", "engine.concurrency=1"]

    def shrinks(text: str, attempt: int) -> str:
        if server.attempts.total() < 2:
            return "ok"
        server.listed = small
        return fault if attempt == 0 else "ok"

    large = {"id": "served", "owned_by": "me", "max_model_len": 1024}
    small = large | {"max_model_len": 512}
    for fault in ("cut", "overflow"):
        with FaultServer(shrinks) as server:
            server.listed = large
            assert run(tmp_path / fault, [server], *mawps) == 1
        error = capsys.readouterr().err
        assert "its context was 1024 tokens and is now 512" in error
        assert "no server can be used" in error and "no server answers" not in error
        kept = records(tmp_path / fault)
        assert len(kept) == 2 and not any(record["over_context"] for record in kept.values())
    with FaultServer(lambda text, attempt: "overflow") as server:
        server.listed = small
        assert run(tmp_path / fault, [server], *mawps) == 0
        server.listed, server.plan = large, lambda text, attempt: "ok"
        assert run(tmp_path / fault, [server], *mawps, "limit=3") == 0
        assert sum(record["over_context"] for record in records(tmp_path / fault).values()) == 3
        assert run(tmp_path / fault, [server], *mawps) == 0
    assert not any(record["over_context"] for record in records(tmp_path / fault).values())


@pytest.mark.parametrize("when", ["later", "always", "no list"])
def test_an_answer_counts_where_the_server_does_not_tell_what_it_is(when: str, tmp_path: Path) -> None:
    """After an absence its list of models fails: it may be the server that it was. It is asked once."""

    def plan(text: str, attempt: int) -> str:
        if server.attempts.total() != 2:
            return "ok"
        if when == "later":
            server.raw["models"] = broken
        server.looks = 0
        return "500"

    broken = (500, {}, {"error": {"message": "?"}})
    with FaultServer(plan) as server:
        server.listed = {"id": "served", "owned_by": "sglang", "max_model_len": 4096}
        server.listed = None if when == "no list" else server.listed
        server.raw |= {"models": broken} if when == "always" else {}
        words = ("suite.tasks=[mawps]", "engine.concurrency=1", "model.name=served")
        words += ("engine.server=sglang",) if when == "always" else ()
        assert run(tmp_path, [server], *words) == 0 and server.looks == 1
    assert len(records(tmp_path)) == 6


class StandIn:
    """A client whose requests are answered."""

    retries = 0
    service = SimpleNamespace(base_url="http://a/v1")

    def __init__(self) -> None:
        self.absence = SimpleNamespace(over=1)

    async def request(self, path: str, body: object) -> Reply:
        return Reply("ok", text="答え")


@pytest.mark.parametrize("found", [Reply("api_error", reachable=False), Reply("api_error"), "it is smaller"])
def test_only_another_server_loses_its_answer(found: Reply | str) -> None:
    client = StandIn()

    async def check(_: object) -> Reply | str:
        return found

    async def ask() -> tuple[Reply, Server]:
        balancer = LoadBalancer([cast(ApiClient, client)], retries=1, check=check)
        return await balancer.ask("/completions", {}), balancer.servers[0]

    reply, server = asyncio.run(ask())
    assert (reply.status == "ok") == isinstance(found, Reply)
    assert (server.changed, server.dead) == ((found == "it is smaller"),) * 2 and server.checked == 0


class Checked:
    """A balancer of one server, whose checks find what `found` says."""

    def __init__(self, found: Reply | str | None) -> None:
        self.found, self.checks, self.client = found, 0, StandIn()
        self.balancer = LoadBalancer([cast(ApiClient, self.client)], retries=1, check=self.check)
        (self.server,) = self.balancer.servers

    async def check(self, _: object) -> Reply | str | None:
        self.checks += 1
        await asyncio.sleep(0)
        return self.found

    async def ask(self, times: int = 1) -> list[str]:
        self.server._until = 0
        replies = (self.balancer.ask("/completions", {}) for _ in range(times))
        return [reply.error or reply.status for reply in await asyncio.gather(*replies)]


def test_another_server_is_used_again_only_when_it_says_that_it_is_the_old_one() -> None:
    async def ask() -> None:
        checked = Checked("it is smaller")
        assert await checked.ask(3) == ["it is smaller"] * 3 and checked.checks == 1
        for untold in (Reply("api_error", error="HTTP 500"), Reply("api_error", reachable=False)):
            checked.found = untold
            assert await checked.ask() == ["it is smaller"] and checked.server.changed
        checked.found = None
        assert await checked.ask() == ["ok"] and not checked.server.changed

    asyncio.run(ask())


def test_a_server_that_does_not_tell_is_checked_again_after_a_while() -> None:
    async def ask() -> None:
        checked = Checked(Reply("api_error"))
        for checks in (1, 1):
            assert await checked.ask(20) == ["ok"] * 20 and checked.checks == checks
        checked.client.absence.over += 1
        assert await checked.ask(20) == ["ok"] * 20 and checked.checks == 2
        checked.server.untold = -math.inf
        checked.found = "it is smaller"
        assert await checked.ask() == ["it is smaller"] and checked.checks == 3

    asyncio.run(ask())


def test_requests_that_fail_together_are_one_failure() -> None:
    async def fail() -> float:
        server = Server(cast(ApiClient, StandIn()))
        for _ in range(64):
            server.failed(Reply("api_error", reachable=False))
        return server._until - asyncio.get_running_loop().time()

    assert asyncio.run(fail()) == pytest.approx(10, abs=1)


def test_an_absence_during_the_check_is_another_one() -> None:
    client = StandIn()

    async def check(_: object) -> None:
        client.absence.over += 1

    async def ask() -> list[int]:
        balancer = LoadBalancer([cast(ApiClient, client)], retries=1, check=check)
        return [(await balancer.ask("/completions", {})) and client.absence.over for _ in range(2)]

    assert asyncio.run(ask()) == [2, 3]


def test_a_dead_servers_requests_go_to_the_other(tmp_path: Path) -> None:
    calls: list[str] = []

    def dies(text: str, attempt: int) -> str:
        calls.append(text)
        return "cut" if len(calls) > 3 else "ok"

    with FaultServer(dies) as first, FaultServer() as second:
        assert run(tmp_path, [first, second], "engine.concurrency=2") == 0
        assert 3 < len(first.calls) < 12 and len(second.calls) >= 8
        assert sum(first.answered.values()) + sum(second.answered.values()) == 12
    assert len(records(tmp_path)) == 12


def test_all_servers_dead_is_an_error_and_the_same_command_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultServer(lambda text, attempt: "cut") as first, FaultServer() as second:
        calls: list[str] = []

        def dies(text: str, attempt: int) -> str:
            calls.append(text)
            return "cut" if len(calls) > 4 else "ok"

        second.plan = dies
        assert run(tmp_path, [first, second], "engine.concurrency=1") == 1
        error = capsys.readouterr().err
        assert "no server answers" in error and "run the same command again" in error
        assert error.count(", since ") >= 2
        assert str(first.port) in error and str(second.port) in error
        kept = records(tmp_path)
        assert len(kept) == 4
        second.plan = lambda text, attempt: "ok"
        assert run(tmp_path, [first, second]) == 0
    assert "continuing: 4 of 12" in capsys.readouterr().err
    assert {key: records(tmp_path)[key] for key in kept} == kept
    assert len(records(tmp_path)) == 12


def test_nobody_there_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SUITE, *QUICK, "engine.base_url=http://127.0.0.1:9/v1", f"out={tmp_path}"]) == 1
    assert "no server answers" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_request_that_breaks_every_server_is_asked_again_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are kept; it is not counted as wrong."""
    chosen: list[str] = []

    def plan(text: str, attempt: int) -> str:
        if len(chosen) < 2 and text not in chosen:
            chosen.append(text)
        return "500" if text == chosen[-1] and len(chosen) == 2 else "ok"

    with FaultServer(plan) as server:
        assert run(tmp_path, [server], "engine.concurrency=1") == 1
        error = capsys.readouterr().err
        assert "1 requests failed at the server" in error and "HTTP 500" in error
        assert len(records(tmp_path)) == 11
        server.plan = lambda text, attempt: "ok"
        assert run(tmp_path, [server]) == 0
    assert len(records(tmp_path)) == 12


def body_of(choice: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "served", "choices": [{"index": 0, **choice}], **more}


# Failures in an HTTP 200, and errors that pass: status, headers and body.
FAILED: dict[str, tuple[int, dict[str, str], Any]] = {
    "finish error": (200, {}, body_of({"text": " 答", "finish_reason": "error"})),
    "abort": (200, {}, body_of({"text": "", "finish_reason": "abort"})),
    "resource": (200, {}, body_of({"text": "", "finish_reason": "insufficient_system_resource"})),
    "error beside": (200, {}, body_of({"text": ""}, error={"message": "upstream gone", "code": 502})),
    "null": (200, {}, {"choices": None, "error": {"message": "Provider returned error", "code": 429}}),
    "events": (200, {"Content-Type": "text/event-stream"}, b'data: {"error": {"message": "gone"}}\n\n'),
    "words": (200, {"Content-Type": "text/plain"}, b"upstream connect error"),
    "image": (200, {}, {"choices": [{"message": {"content": [{"type": "image_url"}]}}]}),
    "no text": (200, {}, body_of({"text": None, "finish_reason": None})),
    "overloaded": (529, {"Retry-After-Ms": "20"}, {"error": {"type": "overloaded_error", "message": "busy"}}),
    "rate": (413, {}, {"error": {"message": "on tokens per minute (TPM)", "code": "rate_limit_exceeded"}}),
}


@pytest.mark.parametrize("fault", FAILED)
def test_an_answer_that_failed_is_asked_again(fault: str, tmp_path: Path) -> None:
    with FaultServer(fail_first(fault)) as server:
        server.raw = FAILED
        assert run(tmp_path, [server], "suite.tasks=[mawps]") == 0
        assert len(server.calls) == 12
    assert {record["completion"] for record in records(tmp_path).values()} == {" 答え"}


@pytest.mark.parametrize("fault", ["abort", "words"])
def test_an_answer_that_fails_for_good_is_no_wrong_answer(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named with the server's words, not kept, and asked again by the same command."""
    chosen: list[str] = []

    def plan(text: str, attempt: int) -> str:
        if len(chosen) < 2 and text not in chosen:
            chosen.append(text)
        return fault if text == chosen[-1] and len(chosen) == 2 else "ok"

    with FaultServer(plan) as server:
        server.raw = FAILED
        assert run(tmp_path, [server], "engine.concurrency=1", "suite.tasks=[mawps]") == 1
        error = capsys.readouterr().err
        assert "1 requests failed" in error and ("abort" in error or "upstream connect error" in error)
        assert len(records(tmp_path)) == 5 and not any(tmp_path.glob("served/sample/*/results.json"))
        server.plan = lambda text, attempt: "ok"
        before = len(server.calls)
        assert run(tmp_path, [server], "suite.tasks=[mawps]") == 0
        assert len(server.calls) == before + 1
    assert len(records(tmp_path)) == 6


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, {"error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 9001"}),
        (400, {"error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 4 maximum"}}),
        (200, {"choices": [{"text": "", "finish_reason": "length"}], "usage": {"completion_tokens": 0}}),
    ],
)
def test_a_prompt_that_a_server_finds_too_long(status: int, body: dict[str, Any], tmp_path: Path) -> None:
    chosen: list[str] = []

    def plan(text: str, attempt: int) -> str:
        if not chosen:
            chosen.append(text)
        return "long" if text == chosen[0] else "ok"

    with FaultServer(plan) as server:
        server.raw = {"long": (status, {}, body)}
        assert run(tmp_path, [server], "suite.tasks=[mawps]") == 0
        assert len(server.calls) == 6
    (wrong,) = [record for record in records(tmp_path).values() if record["finish_reason"] == "error"]
    assert (wrong["completion"], wrong["over_context"]) == ("", True) and wrong["error"]
    partial = json.loads(next(tmp_path.glob("served/sample/*/results.json")).read_text())["partial"]
    assert partial["partial"] and "1 samples count as wrong" in " ".join(partial["reasons"])


def test_one_request_that_a_server_does_not_take_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """HTTP 400 in words that nobody knows: at the first request it concerns all, later that one alone."""
    seen: list[str] = []

    def plan(text: str, attempt: int) -> str:
        seen.extend([text] if text not in seen else [])
        return "odd" if seen.index(text) == 2 else "ok"

    with FaultServer(plan) as server:
        server.raw = {"odd": (400, {}, {"error": {"message": "Nein danke"}})}
        assert run(tmp_path, [server], "engine.concurrency=1", "suite.tasks=[mawps]") == 1
        assert "Nein danke" in capsys.readouterr().err and len(records(tmp_path)) == 5
        server.plan = lambda text, attempt: "odd"
        assert run(tmp_path, [server], "suite.tasks=[mawps]") == 1
        assert "Nein danke" in capsys.readouterr().err and len(records(tmp_path)) == 5
