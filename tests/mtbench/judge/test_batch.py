"""mode=batch: files written and read, and the endpoint driven to its end."""

import json
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer
from little_bench import Bench, make_bench

from evalkit.__main__ import main
from evalkit.mtbench.folder import MtBenchFolder


@pytest.fixture
def small(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench of 8 questions, and a key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    return make_bench(tmp_path, 1)


def judge(bench: Bench, out: Path, server: FaultServer, *more: str) -> int:
    answers = out.parent / "answers.jsonl"
    if not answers.exists():
        bench.answers(answers, "m")
    first = [f"run={out}"] if (out / "mt_bench.json").exists() else [f"answers={answers}", f"out={out}"]
    return main(
        [
            "judge",
            *first,
            f"preset={bench.preset}",
            f"mirror={bench.mirror}",
            "judge=gpt-4o-2024-08-06",
            f"judge.base_url={server.url}",
            "judge.identity=test",
            "metrics.resamples=50",
            *more,
        ]
    )


def results(out: Path) -> dict[str, Any]:
    content = json.loads((out / "results.json").read_text())
    assert isinstance(content, dict)
    return content


def request_file(out: Path) -> list[dict[str, Any]]:
    (path,) = (out / "batch").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer(server: FaultServer, row: dict[str, Any]) -> dict[str, Any]:
    text = "\n".join(message["content"] for message in row["body"]["messages"])
    body = server.completion(text, row["body"])
    return {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}


def test_files_only(small: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests out, answers in by hand; what has no answer is asked in the next file."""
    out = tmp_path / "run"
    with FaultServer() as server:
        assert judge(small, out, server, "mode=batch") == 0
        assert "mode=batch batch.results=FILE" in capsys.readouterr().err
        assert not (out / "results.json").exists()
        rows = request_file(out)
        assert len(rows) == len({row["custom_id"] for row in rows}) == 16
        assert rows[0]["method"] == "POST" and rows[0]["url"] == "/v1/chat/completions"
        assert rows[0]["body"]["model"] == "gpt-4o-2024-08-06"
        assert rows[0]["body"]["max_tokens"] == 2048

        answers = [answer(server, row) for row in rows]
        answers[0] = {"custom_id": rows[0]["custom_id"], "response": None, "error": {"code": "batch_expired"}}
        answers[1]["response"] = {
            "status_code": 400,
            "body": {"error": {"code": "content_filter", "message": "no"}},
        }
        answers.append({"custom_id": "f" * 64, "response": None, "error": None})
        path = tmp_path / "output.jsonl"
        path.write_text("\n".join(map(json.dumps, answers)))
        assert judge(small, out, server, "mode=batch", f"batch.results={path}") == 1
        assert "1 answers belong to other judgments" in capsys.readouterr().err
        table = results(out)["tables"]["m"]
        assert table["statuses"] == {"ok": 14, "filtered": 1, "api_error": 1}
        # The rest call by call: one call.
        assert server.calls == []
        assert judge(small, out, server) == 0
        assert len(server.calls) == 1
    assert results(out)["tables"]["m"]["statuses"] == {"ok": 15, "filtered": 1}


@pytest.mark.parametrize("word", ["batch.submit=true", "batch.results=output.jsonl"])
@pytest.mark.parametrize("verb", ["judge", "calibrate", "pairwise"])
def test_batch_options_without_the_mode(verb: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They would be ignored, and every call made at full price."""
    assert main([verb, "judge=gpt-4", word]) == 2
    assert "add mode=batch" in capsys.readouterr().err


def test_a_file_without_any_of_the_answers(
    small: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch of another judge does not replace a finished table by an empty one."""
    out, path = tmp_path / "run", tmp_path / "output.jsonl"
    with FaultServer() as server:
        assert judge(small, out, server, "mode=batch") == 0
        path.write_text("\n".join(json.dumps(answer(server, row)) for row in request_file(out)))
        assert judge(small, out, server, "mode=batch", f"batch.results={path}") == 0
        before = (out / "results.json").read_bytes()
        other = ("judge=gpt-4", "mode=batch", f"batch.results={path}")
        assert judge(small, out, server, *other) == 2
    assert "none of the 16 answers" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before


ROWS: list[tuple[dict[str, Any], str]] = [
    ({"response": None, "error": None}, "api_error"),
    ({}, "api_error"),
    ({"response": None, "error": {"code": "batch_cancelled", "message": "gone"}}, "api_error"),
    ({"response": {"status_code": 200, "body": None}}, "api_error"),
    ({"response": {"status_code": 200, "body": {"choices": []}}}, "api_error"),
    ({"response": {"status_code": 200, "body": {"error": {"message": "x", "code": 502}}}}, "api_error"),
    ({"response": {"status_code": 500, "body": {"error": {"message": "it broke"}}}}, "api_error"),
    ({"response": {"status_code": 429, "body": "Too Many Requests"}}, "api_error"),
    ({"response": {"status_code": 400, "body": {"error": {"message": "unknown field"}}}}, "api_error"),
    ({"choice": {"finish_reason": "error", "message": {"content": "評価は"}}}, "api_error"),
    ({"choice": {"finish_reason": "stop", "message": {"content": ""}}}, "api_error"),
    ({"choice": {"finish_reason": "content_filter", "message": {"content": None}}}, "filtered"),
    (
        {"response": {"status_code": 400, "body": {"error": {"message": "prompt is too long: 9 > 4"}}}},
        "overflow",
    ),
    ({"response": {"status_code": "413", "body": None}}, "overflow"),
    (
        {"choice": {"finish_reason": "stop", "message": {"content": [{"type": "text", "text": "[[5]]"}]}}},
        "ok",
    ),
    ({"choice": {"finish_reason": "stop", "message": {"content": "無評価"}}}, "unparsed"),
]


def test_rows_as_services_write_them(small: Bench, tmp_path: Path) -> None:
    """What failed in a batch is no judgment: it is asked by the next command, and nothing else is."""
    out = tmp_path / "run"
    with FaultServer() as server:
        assert judge(small, out, server, "mode=batch") == 0
        asked = request_file(out)
        rows = []
        for row, (answer, _) in zip(asked, ROWS, strict=True):
            if "choice" in answer:
                answer = {"response": {"status_code": 200, "body": {"choices": [answer["choice"]]}}}
            rows.append({"custom_id": row["custom_id"], **answer})
        path = tmp_path / "output.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        assert judge(small, out, server, "mode=batch", f"batch.results={path}") == 1
        found = {j.key: j.status for j in MtBenchFolder(out).judgments("gpt-4o-2024-08-06") if j.key}
        wanted = {row["custom_id"]: status for row, (_, status) in zip(asked, ROWS, strict=True)}
        assert found == {key: status for key, status in wanted.items() if status != "api_error"}
        failed = sum(status == "api_error" for _, status in ROWS)
        assert results(out)["tables"]["m"]["statuses"]["api_error"] == failed
        assert judge(small, out, server) == 0
        assert len(server.calls) == failed


def test_a_batch_whose_answers_failed_is_sent_again(small: Bench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    lost = {"choices": [{"finish_reason": "error", "message": {"content": ""}}]}
    with FaultServer(lambda text, attempt: "ok" if attempt else "lost") as server:
        server.raw = {"lost": (200, {}, lost)}
        words = ("mode=batch", "batch.submit=true", "batch.poll=0.01")
        assert judge(small, out, server, *words) == 1
        assert results(out)["tables"]["m"]["statuses"] == {"api_error": 16}
        assert judge(small, out, server, *words) == 0
    assert results(out)["tables"]["m"]["statuses"] == {"ok": 16}


def test_the_endpoint_is_driven(small: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with FaultServer(lambda text, attempt: "filter" if "stem" in text else "ok") as server:
        assert judge(small, out, server, "mode=batch", "batch.submit=true", "batch.poll=0.01") == 0
        assert len(server.batches) == 1
        assert results(out)["tables"]["m"]["statuses"] == {"ok": 14, "filtered": 2}
        # 14 answers of 1000 and 100 tokens at half of $2.5 and $10.
        assert results(out)["cost"]["dollars"] == pytest.approx(14 * (1000 * 2.5 + 100 * 10) / 1e6 / 2)
        online = {j.id: j.rating for j in MtBenchFolder(out).judgments("gpt-4o-2024-08-06")}
        # Judged already: neither a batch nor a call.
        assert judge(small, out, server, "mode=batch", "batch.submit=true") == 0
        assert judge(small, out, server) == 0
        assert len(server.batches) == 1 and server.calls == []
        assert online == {j.id: j.rating for j in MtBenchFolder(out).judgments("gpt-4o-2024-08-06")}


def test_a_batch_under_way_is_found_again(small: Bench, tmp_path: Path) -> None:
    """The process dies after the submission: the next one waits for the same batch."""
    out = tmp_path / "run"
    with FaultServer() as server:
        work = server._work
        server._work = lambda data: {"status": "cancelled"}  # type: ignore[method-assign]
        assert judge(small, out, server, "mode=batch", "batch.submit=true", "batch.poll=0.01") == 1
        assert len(server.batches) == 1
        # A batch that ended with nothing cost nothing: it is sent again.
        server._work = work  # type: ignore[method-assign]
        server.batches["batch-0"]["status"] = "in_progress"
        assert judge(small, out, server, "mode=batch", "batch.submit=true", "batch.poll=0.01") == 0
        assert len(server.batches) == 1
    assert results(out)["tables"]["m"]["statuses"] == {"ok": 16}


def test_a_batch_that_expires_keeps_what_it_has(small: Bench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with FaultServer(lambda text, attempt: "expired" if "math" in text and not attempt else "ok") as server:
        words = ("mode=batch", "batch.submit=true", "batch.poll=0.01")
        assert judge(small, out, server, *words) == 1
        assert results(out)["tables"]["m"]["statuses"] == {"ok": 14, "api_error": 2}
        assert judge(small, out, server, *words) == 0
        assert len(server.batches) == 2
        assert set(server.answered.values()) == {1}


def test_a_batch_that_expired_whole_is_sent_again(small: Bench, tmp_path: Path) -> None:
    """Its error file names every request: read once, it has nothing more to say."""
    out = tmp_path / "run"
    with FaultServer(lambda text, attempt: "ok" if attempt else "expired") as server:
        words = ("mode=batch", "batch.submit=true", "batch.poll=0.01")
        assert judge(small, out, server, *words) == 1
        assert results(out)["tables"]["m"]["statuses"] == {"api_error": 16}
        assert judge(small, out, server, *words) == 0
        assert len(server.batches) == 2
    assert results(out)["tables"]["m"]["statuses"] == {"ok": 16}


def test_a_dry_run_knows_the_price_of_a_batch(
    small: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultServer() as server:
        shown = []
        for words in ((), ("mode=batch",)):
            assert judge(small, tmp_path / "run", server, "--dry-run", *words, "judge.repeats=50") == 0
            shown.append(float(capsys.readouterr().out.rpartition("$")[2]))
    assert shown[1] == pytest.approx(shown[0] / 2, abs=0.006)


def test_a_batch_may_not_pass_the_limit(
    small: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultServer() as server:
        words = ("mode=batch", "batch.submit=true", "judge.max_cost=0.01")
        assert judge(small, tmp_path / "run", server, *words) == 1
        assert server.batches == {}
    assert "the batch may cost up to" in capsys.readouterr().err
