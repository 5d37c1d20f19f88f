"""The verb judge against a failing server: complete, exactly once, never twice."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, rating_of
from little_bench import Bench, make_bench

from evalkit.__main__ import main
from evalkit.core.durable import from_line, to_line
from evalkit.mtbench.folder import MtBenchFolder
from tests.children import fork

KEY = "sk-test-0123456789abcdef"
# Of a command in a process of its own, which starts without what a test sets.
ENV = {"OPENAI_API_KEY": KEY}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def words(bench: Bench, out: Path, server: FaultServer | None, *more: str) -> list[str]:
    """The command that judges the little bench's answers into `out`."""
    answers = out.parent / "answers.jsonl"
    if not answers.exists():
        bench.answers(answers, "m")
    first = [f"run={out}"] if (out / "mt_bench.json").exists() else [f"answers={answers}", f"out={out}"]
    where = [f"judge.base_url={server.url}"] if server else []
    return [
        "judge",
        *first,
        f"preset={bench.preset}",
        f"mirror={bench.mirror}",
        "judge=gpt-4",
        *where,
        "judge.max_wait=0.02",
        "judge.identity=test",
        "metrics.resamples=50",
        *more,
    ]


def judge(bench: Bench, out: Path, server: FaultServer | None, *more: str) -> int:
    return main(words(bench, out, server, *more))


def stored() -> list[dict[str, Any]]:
    """Every line of every store, undamaged."""
    rows = []
    for path in Path(os.environ["EVALKIT_CACHE"], "judgments").glob("*.jsonl"):
        for line in path.read_bytes().splitlines(keepends=True):
            row = from_line(line)
            assert row is not None, line
            rows.append(row)
    return rows


def results(out: Path) -> dict[str, Any]:
    content = json.loads((out / "results.json").read_text())
    assert isinstance(content, dict)
    return content


def test_160_judgments_once(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with FaultServer() as server:
        assert judge(bench, out, server) == 0
        assert len(server.calls) == 160
        expected = [rating_of(text) for text in server.calls]
        # The same again, and another run with the same answers: no call.
        assert judge(bench, out, server) == 0
        assert judge(bench, tmp_path / "other", server) == 0
        assert len(server.calls) == 160
    assert len({row["id"] for row in stored()}) == len(stored()) == 160
    content = results(out)
    assert content["mt_bench"]["m"]["show_result"]["average"] == pytest.approx(sum(expected) / 160)
    assert content["tables"]["m"]["statuses"] == {"ok": 160}
    assert not content["partial"]["partial"]
    again, other = results(out), results(tmp_path / "other")
    assert again["mt_bench"] == other["mt_bench"]
    assert other["cost"]["calls"] == 0
    judgments = MtBenchFolder(out).judgments("gpt-4")
    assert [judgment.rating for judgment in judgments] == [judgment.strict for judgment in judgments]


def test_requests_are_those_of_the_protocol(bench: Bench, tmp_path: Path) -> None:
    with FaultServer() as server:
        assert judge(bench, tmp_path / "run", server) == 0
    body = server.bodies[0]
    assert body["model"] == "gpt-4-0613"
    assert {key: body[key] for key in ("temperature", "n", "max_tokens")} == {
        "temperature": 0,
        "n": 1,
        "max_tokens": 2048,
    }
    assert set(body) == {"model", "messages", "temperature", "n", "max_tokens"}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


MIXES = {
    "rate limits": ("429",),
    "server errors": ("500",),
    "cut connections": ("cut", "cut_in_the_middle"),
    "nonsense": ("empty", "malformed", "html"),
    "refusals": ("filter", "overflow", "filter_finish"),
    "another model answers": ("wrong_model",),
    "timeouts": ("timeout",),
    "everything": ("429", "500", "cut", "empty", "malformed", "filter", "overflow", "wrong_model"),
}


@pytest.mark.parametrize("mix", MIXES)
def test_complete_under_faults(mix: str, bench: Bench, tmp_path: Path) -> None:
    """Every third question meets a fault in its first call; passing ones in its second call too."""
    faults = MIXES[mix]
    final = {"filter": "filtered", "filter_finish": "filtered", "overflow": "overflow"}

    def fault_of(text: str) -> str | None:
        number = rating_of(text + "salt")
        most = 1 if mix == "timeouts" else 3
        return faults[number % len(faults)] if rating_of(text) <= most else None

    def plan(text: str, attempt: int) -> str:
        fault = fault_of(text)
        if fault is None or (fault not in final and fault != "wrong_model" and attempt > 1):
            return "ok"
        return fault

    out = tmp_path / "run"
    with FaultServer(plan) as server:
        assert (
            judge(bench, out, server, "judge.timeout=0.3" if mix == "timeouts" else "judge.timeout=20") == 0
        )
        met = [fault_of(text) for text in server.answered]
        assert sum(fault is not None for fault in met) > 8
        # The server answered (or refused for good) each of the 160 exactly once.
        assert len(server.answered) == 160
        if mix != "timeouts":
            assert set(server.answered.values()) == {1}
        calls = len(server.calls)
        assert judge(bench, out, server) == 0
        assert len(server.calls) == calls
    assert len({row["id"] for row in stored()}) == len(stored()) == 160
    statuses = results(out)["tables"]["m"]["statuses"]
    assert sum(statuses.values()) == 160
    for status in set(final.values()):
        wanted = sum(final.get(fault or "") == status for fault in met)
        assert statuses.get(status, 0) == wanted
    assert "api_error" not in statuses


def test_a_permanent_error_costs_one_call(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with FaultServer(lambda text, attempt: "no_model") as server:
        assert judge(bench, out, server) == 1
        assert len(server.calls) == 1
    shown = capsys.readouterr().err
    assert "does not have the model" in shown
    for word in ("retired", "replay", "calibrate", "gpt-4o-2024-08-06"):
        assert word in shown
    assert not (out / "results.json").exists()


def test_a_bad_key_is_never_shown(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with FaultServer(lambda text, attempt: "bad_key") as server:
        assert judge(bench, out, server) == 1
        assert len(server.calls) == 1
    captured = capsys.readouterr()
    assert "refuses the API key" in captured.err
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    assert "0123456789" not in captured.err + captured.out


def test_a_permanent_error_in_the_middle_keeps_what_was_judged(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with FaultServer(latency=0.005) as server:
        server.plan = lambda text, attempt: "bad_key" if len(server.calls) > 50 else "ok"
        assert judge(bench, out, server) == 1
        kept = len(stored())
        assert 34 <= kept <= 50
        assert len(server.calls) <= 50 + 16
        server.plan = lambda text, attempt: "ok"
        before = len(server.calls)
        assert judge(bench, out, server) == 0
        assert len(server.calls) - before == 160 - kept


def test_one_request_that_is_refused_does_not_stop_the_others(bench: Bench, tmp_path: Path) -> None:
    """HTTP 400 without a known code: at the first call it concerns all, later that request alone."""
    out = tmp_path / "run"
    with FaultServer(lambda text, attempt: "bad_request" if "問い75、二つ目" in text else "ok") as server:
        assert judge(bench, out, server) == 1
        assert len(server.calls) == 160
    assert results(out)["tables"]["m"]["statuses"] == {"ok": 159, "api_error": 1}
    (failed,) = [j for j in MtBenchFolder(out).judgments("gpt-4") if j.status == "api_error"]
    assert "HTTP 400" in (failed.error or "") and failed.rating is None


def test_failures_are_asked_again(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with FaultServer(lambda text, attempt: "500" if "math" in text and "一つ目" in text else "ok") as server:
        server.plan = lambda text, attempt: "500" if "math" in text and "31" in text else "ok"
        assert judge(bench, out, server, "judge.retries=1") == 1
        first = results(out)
        assert first["tables"]["m"]["statuses"] == {"ok": 158, "api_error": 2}
        assert first["partial"]["partial"]
        server.plan = lambda text, attempt: "ok"
        calls = len(server.calls)
        assert judge(bench, out, server) == 0
        assert len(server.calls) == calls + 2
    assert results(out)["tables"]["m"]["statuses"] == {"ok": 160}


def test_a_service_that_is_down_is_left_alone(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultServer(lambda text, attempt: "500") as server:
        assert judge(bench, tmp_path / "run", server, "judge.retries=0", "judge.concurrency=2") == 1
        assert len(server.calls) < 20
    assert "in a row failed" in capsys.readouterr().err


def test_statuses_of_ratings(bench: Bench, tmp_path: Path) -> None:
    texts = {1: "[[11]]", 2: "[[08]]", 3: "no rating", 4: "good [3]", 5: "[[7]] but no number at the end"}
    out = tmp_path / "run"
    with FaultServer() as server:
        server.text_of = lambda rating: texts.get(rating, f"[[{rating}]]")
        assert judge(bench, out, server) == 0
        seen = [rating_of(text) for text in server.calls]
    table = results(out)["tables"]["m"]
    assert table["statuses"] == {
        "ok": sum(number > 3 for number in seen),
        "out_of_range": seen.count(1),
        "malformed": seen.count(2),
        "unparsed": seen.count(3),
    }
    assert table["parsed_by"]["single_bracket"] == seen.count(4)
    assert table["strict_differs"] == seen.count(1) + seen.count(4) + seen.count(5)
    values = {1: 11, 4: 3, 5: 7}
    counted = [values.get(number, number) for number in seen if number not in (2, 3)]
    rules = results(out)["mt_bench"]["m"]
    assert rules["show_result"]["average"] == pytest.approx(sum(counted) / len(counted))
    failed = len(seen) - len(counted)
    assert rules["llm_leaderboard"]["average"] == pytest.approx((sum(counted) - failed) / 160)


def test_repeats(tmp_path: Path, cache: Path) -> None:
    """Three judgments of every turn are three calls, and a median of them one score."""
    bench, out = make_bench(tmp_path, 1), tmp_path / "run"
    with FaultServer() as server:
        order = iter(range(10_000))
        server.text_of = lambda rating: f"[[{(2, 3, 10)[next(order) % 3]}]]"
        options = ("judge.repeats=3", "judge.concurrency=1")
        assert judge(bench, out, server, *options, "judge.reduce=median") == 0
        assert len(server.calls) == 3 * 16
        assert judge(bench, out, server, *options, "judge.reduce=mean") == 0
        assert len(server.calls) == 3 * 16
        # One judgment of each is there already.
        assert judge(bench, tmp_path / "one", server, "judge.repeats=1") == 0
        assert len(server.calls) == 3 * 16
    assert results(out)["tables"]["m"]["repeats"] == 3
    assert results(out)["mt_bench"]["m"]["show_result"]["average"] == pytest.approx(5)


def test_reasks(tmp_path: Path, cache: Path) -> None:
    """A preset that re-asks does so until the rating is a whole number from 1 to 10, 3 times at most."""
    bench = make_bench(tmp_path, 1, reasks=3)
    replies = {0: "nothing", 1: "[[7.5]]", 2: "[[8]]"}
    with FaultServer() as server:
        seen: dict[str, int] = {}

        def plan(text: str, attempt: int) -> str:
            seen["now"] = attempt if "math" in text else 9 if "stem" in text else 2
            return "ok"

        server.plan = plan
        server.text_of = lambda rating: replies.get(seen["now"], "never a rating")
        out = tmp_path / "run"
        assert judge(bench, out, server, "judge.concurrency=1") == 0
        math = [text for text in server.calls if "math" in text]
        stem = [text for text in server.calls if "stem" in text]
        assert len(math) == 2 * 3 and len(stem) == 2 * 4
        assert len(server.calls) == 6 * 2 + len(math) + len(stem)
        calls = len(server.calls)
        assert judge(bench, out, server, "judge.concurrency=1") == 0
        assert len(server.calls) == calls
    rules = results(out)["mt_bench"]["m"]["show_result"]
    assert rules["math"] == 8 and rules["stem"] is None


def test_kill_and_restart(bench: Bench, tmp_path: Path) -> None:
    """kill -9 in the middle, twice: no finished judgment is asked again."""
    out = tmp_path / "run"
    with FaultServer(latency=0.03) as server:
        for least in (20, 70):
            process = fork(words(bench, out, server, "judge.concurrency=4"), tmp_path, env=ENV)
            wait_for_stored(least)
            process.kill()
            finished = stored_ids()
            assert least <= len(finished) < 160
        # A torn line, as a crash of the machine leaves it.
        path = next(Path(os.environ["EVALKIT_CACHE"], "judgments").glob("*.jsonl"))
        with path.open("ab") as log:
            log.write(b'{"id": "half a li')
        before = len(server.calls)
        assert judge(bench, out, server) == 0
        assert len(server.calls) - before == 160 - len(finished)
    assert len(stored_ids()) == 160
    assert results(out)["tables"]["m"]["statuses"] == {"ok": 160}


def stored_ids() -> set[str]:
    ids = set()
    for path in Path(os.environ["EVALKIT_CACHE"], "judgments").glob("*.jsonl"):
        rows = map(from_line, path.read_bytes().splitlines(keepends=True))
        ids |= {row["id"] for row in rows if row is not None}
    return ids


def wait_for_stored(number: int) -> None:
    deadline = time.monotonic() + 60
    while len(stored_ids()) < number and time.monotonic() < deadline:
        time.sleep(0.01)


def test_two_processes_share_the_work(bench: Bench, tmp_path: Path) -> None:
    """Both judge the same answers at the same time: each judgment is paid for once."""
    with FaultServer(latency=0.05) as server:
        processes = [
            fork(words(bench, tmp_path / name, server, "judge.concurrency=4"), tmp_path, env=ENV)
            for name in ("one", "two")
        ]
        assert [process.wait().code for process in processes] == [0, 0]
        assert len(server.calls) == 160
    assert len({row["id"] for row in stored()}) == len(stored()) == 160
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert one["mt_bench"] == two["mt_bench"]
    assert one["cost"]["calls"] + two["cost"]["calls"] == 160
    assert min(one["cost"]["calls"], two["cost"]["calls"]) > 10


def test_dry_run_calls_nothing(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    out = tmp_path / "run"
    with FaultServer() as server:
        assert judge(bench, out, server, "--dry-run") == 0
        assert server.calls == []
    shown = capsys.readouterr().out
    assert "160 calls to make" in shown and "0.49 tokens per character" in shown
    assert "$2.4" in shown, "160 x 231 output tokens at $60 and a few short prompts"


def test_max_cost_is_never_passed(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A call costs 1000 x $30 + 100 x $60 per million = $0.036 here."""
    out = tmp_path / "run"
    with FaultServer(latency=0.005) as server:
        assert judge(bench, out, server, "judge.max_cost=1") == 1
        spent = len(server.calls) * 0.036
        assert spent <= 1.0
        # The worst case of one call (2048 tokens out) is $0.13: the rest must have been used.
        assert spent > 0.8
        assert "judge.max_cost=1" in capsys.readouterr().err
        calls = len(server.calls)
        assert len(stored()) == calls
        assert judge(bench, out, server, "judge.max_cost=100") == 0
        assert len(server.calls) == 160


def test_answers_that_are_lost_count_against_the_limit(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service that works, charges, and breaks the connection: its worst case is taken for spent."""
    with FaultServer(lambda text, attempt: "cut") as server:
        # One call may cost up to 2048 x $60 per million and a little for its prompt: $0.13.
        options = ("judge.max_cost=0.5", "judge.retries=100", "judge.concurrency=2")
        assert judge(bench, tmp_path / "run", server, *options) == 1
        assert len(server.calls) == 3
    assert "judge.max_cost=0.5" in capsys.readouterr().err


def test_max_cost_needs_a_price(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert judge(bench, out, None, "judge=openai", "judge.model=unheard-of", "judge.max_cost=1") == 2
    assert "price of unheard-of" in capsys.readouterr().err


def test_another_model_answers(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FaultServer() as server:
        server.served_model = "gpt-3.5-turbo"
        assert judge(bench, tmp_path / "run", server) == 0
    assert "160 judgments were made by gpt-3.5-turbo, not by gpt-4-0613" in capsys.readouterr().out


def test_a_run_brings_its_judgments_along(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder judged on one machine needs no call on another with an empty store."""
    out = tmp_path / "run"
    with FaultServer() as server:
        assert judge(bench, out, server) == 0
        monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "elsewhere"))
        assert judge(bench, out, server) == 0
        assert len(server.calls) == 160


def test_what_was_made_of_other_answers_goes_with_them(tmp_path: Path, cache: Path) -> None:
    """The table at any change, judgments where an answer is replaced; a refused command changes nothing."""
    bench, out = make_bench(tmp_path, 1), tmp_path / "run"
    folder = MtBenchFolder(out)
    first = [f"answers={bench.answers(tmp_path / 'first.jsonl', 'm')}", f"out={out}"]
    other = [f"answers={bench.answers(tmp_path / 'other.jsonl', 'm', '別の答え{id}-{turn}')}", f"out={out}"]
    with FaultServer() as server:
        rest = [word for word in words(bench, out, server) if not word.startswith(("answers=", "out="))]
        assert main([*rest, *first]) == 0
        assert main([*rest, *first, "mode=batch"]) == 0
        before = folder.results_path.read_bytes()
        assert main([*rest, *other, "judge.concurrency=0"]) == 2
        assert main([*rest, *other, "--dry-run"]) == 0
        assert main(["calibrate", *rest[1:], *other]) == 2
        assert main([*rest, *other, "judge=openai", "judge.model=x", "judge.max_cost=1"]) == 2
        assert len(folder.judgments("gpt-4")) == 16 and folder.results_path.read_bytes() == before
        (out / "calibration").mkdir()
        (out / "calibration" / "j.json").write_text("{}")
        assert main([*rest, *other, "mode=batch"]) == 0
        assert folder.judges() == [] and not folder.results_path.exists()
        assert not list((out / "calibration").iterdir())
        calls = len(server.calls)
        assert main([*rest, *first]) == 0
        assert len(server.calls) == calls
    turns = folder.turns()
    folder.write_turns(turns[:-1])
    assert not folder.judges()
    folder.write_judgments("j", [])
    folder.write_turns(turns)
    assert folder.judges() == ["j"]


def test_what_addresses_a_judgment(tmp_path: Path, cache: Path) -> None:
    """Other parameters, another model or another server are other judgments."""
    bench = make_bench(tmp_path, 1)
    with FaultServer() as server:
        base = ("judge.identity=a",)
        assert judge(bench, tmp_path / "1", server, *base) == 0
        for number, change in enumerate(
            ("judge.identity=b", "judge.parameters.temperature=1", "judge.model=x")
        ):
            calls = len(server.calls)
            assert judge(bench, tmp_path / f"c{number}", server, *base, change) == 0
            assert len(server.calls) == calls + 16, change
    # A named judge that is given another model does not keep its name.
    assert results(tmp_path / "c1")["judge"]["label"] == "gpt-4"
    assert (
        results(tmp_path / "c2")["judge"]["label"] == results(tmp_path / "c2")["tables"]["m"]["judge"] == "x"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("judge=azure", "judge.deployment=NAME"),
        ("judge=openai", "judge.model=NAME"),
        ("judge.concurrency=0", "option judge.concurrency"),
        ("judge.repeats=0", "option judge.repeats"),
        ("judge.max_cost=-1", "option judge.max_cost"),
        ("judge.base_url=localhost:8000", "judge.base_url"),
        ("judge=gpt4", "did you mean 'gpt-4'"),
        ("judge.prices=/none.yaml", "/none.yaml"),
    ],
)
def test_bad_options(
    change: str, message: str, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(bench, tmp_path / "run", None, change) == 2
    assert message in capsys.readouterr().err


def test_no_key(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert judge(bench, tmp_path / "run", None) == 2
    assert "export OPENAI_API_KEY" in capsys.readouterr().err


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "judge=gpt-4"]) == 2
    assert main(["judge", "judge=gpt-4", f"run={tmp_path / 'none'}"]) == 2
    assert main(["judge", "judge=gpt-4", f"run={tmp_path}"]) == 2
    assert "it has no mt_bench.json" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield


def test_azure(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deployment, api-version and key of the resource; the price is that of judge.model."""
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY")
    out = tmp_path / "run"
    with FaultServer() as server:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"http://127.0.0.1:{server.port}/")
        more = (
            "judge=azure",
            "judge.deployment=mine",
            "judge.api_version=2024-06-01",
            "judge.model=gpt-4-0613",
        )
        assert judge(bench, out, None, *more) == 0
    assert set(server.paths) == {"/openai/deployments/mine/chat/completions?api-version=2024-06-01"}
    assert server.headers["api-key"] == KEY
    content = results(out)
    assert content["judge"]["label"] == "mine"
    assert content["cost"]["dollars"] == pytest.approx(160 * 0.036)


def test_parameters_can_be_changed_and_left_out(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultServer(lambda text, attempt: "bad_request") as server:
        assert judge(bench, tmp_path / "run", server) == 1
        assert "judge.parameters.KEY=VALUE" in capsys.readouterr().err
        server.plan = lambda text, attempt: "ok"
        more = ("judge.parameters.max_tokens=null", "judge.parameters.max_completion_tokens=99")
        assert judge(bench, tmp_path / "run", server, *more, "judge.parameters.seed=1") == 0
    body = server.bodies[-1]
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["seed"]) == (99, 1)


def test_the_presets_own_judge(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(tmp_path, 1, judge="gpt-4o-2024-08-06")
    with FaultServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        command = [word for word in words(bench, tmp_path / "run", None) if not word.startswith("judge.")]
        command.remove("judge=gpt-4")
        assert main(command) == 0
    assert server.bodies[0]["model"] == "gpt-4o-2024-08-06"
    assert results(tmp_path / "run")["judge"]["service"] == server.url


def test_ctrl_c_is_resumable(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with FaultServer(latency=0.05) as server:
        process = fork(words(bench, out, server, "judge.concurrency=2"), tmp_path, env=ENV)
        wait_for_stored(10)
        process.send(signal.SIGINT)
        ended = process.wait()
        assert ended.code == 130
        assert "Traceback" not in ended.err
        kept, calls = len(stored_ids()), len(server.calls)
        server.latency = 0.0
        assert judge(bench, out, server) == 0
        assert len(server.calls) - calls == 160 - kept


def told(content: Any, finish: str | None, **more: Any) -> tuple[int, dict[str, str], Any]:
    message = {"role": "assistant", "content": content}
    return (200, {}, {"choices": [{"message": message, "finish_reason": finish}], **more})


# Answers in an HTTP 200 that are no judgments.
LOST = {
    "finish error": told("", "error"),
    "half": told("評価は", "abort"),
    "resource": told(None, "insufficient_system_resource"),
    "empty": told("", "stop", usage={"prompt_tokens": 9, "completion_tokens": 0}),
    "null": told(None, None),
    "error": (200, {}, {"choices": None, "error": {"message": "Provider returned error", "code": 502}}),
    "parts": told([{"type": "image_url"}], "stop"),
}


@pytest.mark.parametrize("fault", LOST)
def test_a_judgment_that_failed_is_never_kept(
    fault: str, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked again within the retries, then by the next judge; the others are kept."""
    bench, out = make_bench(tmp_path, 1), tmp_path / "run"
    with FaultServer(lambda text, attempt: fault if "math" in text else "ok") as server:
        server.raw = LOST
        assert judge(bench, out, server, "judge.retries=1") == 1
        assert len(server.calls) == 14 + 2 * 2 and len(stored()) == 14
        assert results(out)["tables"]["m"]["statuses"] == {"ok": 14, "api_error": 2}
        assert "2 judgments failed" in " ".join(results(out)["partial"]["reasons"])
        server.plan = lambda text, attempt: "ok"
        assert judge(bench, out, server) == 0
        assert len(server.calls) == 14 + 2 * 2 + 2
    assert results(out)["tables"]["m"]["statuses"] == {"ok": 16}


def test_failures_that_an_earlier_version_kept_are_asked_again(tmp_path: Path, cache: Path) -> None:
    """They are in the store as answers, and in the run folder as judgments without a rating."""
    bench, out = make_bench(tmp_path, 1), tmp_path / "run"
    with FaultServer() as server:
        assert judge(bench, out, server) == 0
        (path,) = Path(os.environ["EVALKIT_CACHE"], "judgments").glob("*.jsonl")
        rows = [from_line(line) for line in path.read_bytes().splitlines(keepends=True)]
        lost = [("", "error"), ("評価は", "abort"), ("", "stop"), ("[[1]]", "sensitive"), (None, None)]
        kept = [("評価しません", "stop"), ("", "length"), ("評価しません", None)]
        for row, (text, finish) in zip(rows, [*lost, *kept], strict=False):
            assert row is not None
            row |= {"text": text, "finish_reason": finish}
        path.write_bytes(b"".join(to_line(row) for row in rows if row is not None))
        changed = {row["id"]: row["text"] for row in rows[:8] if row is not None}
        judgments = MtBenchFolder(out).judgments("gpt-4")
        MtBenchFolder(out).write_judgments(
            "gpt-4",
            [
                replace(one, text=changed[one.key], status="unparsed", rating=None)
                if one.key in changed
                else one
                for one in judgments
            ],
        )
        before = len(server.calls)
        assert judge(bench, out, server) == 0
        assert len(server.calls) == before + len(lost)
        assert judge(bench, out, server) == 0
        assert len(server.calls) == before + len(lost)
    assert results(out)["tables"]["m"]["statuses"] == {"ok": 13, "unparsed": 3}


def test_a_pause_that_an_answer_asks_for_is_kept(tmp_path: Path, cache: Path) -> None:
    bench = make_bench(tmp_path, 1)
    body = {"error": {"code": 429, "message": "busy", "details": [{"retryDelay": "0.2s"}]}}
    with FaultServer() as server:
        server.raw = {"busy": (200, {}, body)}
        server.plan = lambda text, attempt: "busy" if len(server.calls) == 1 else "ok"
        assert judge(bench, tmp_path / "run", server) == 0
        assert server.times[1] - server.times[0] >= 0.2
