"""The endpoint of `serve` over real HTTP: answers, refusals, keys, and its end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from evalkit.__main__ import main
from evalkit.engines.base import Engine
from evalkit.types import Message, Request, Sampling
from tests.serving import Running, random_config, serving

ROOT = Path(__file__).resolve().parent.parent
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    config = random_config()
    config.serve.max_body = 20_000
    config.serve.max_tokens = 64
    with serving(config) as server:
        yield server


def post(running: Running, path: str, body: Any, **more: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body)
    return httpx.post(f"{running.url}/{path}", content=content, timeout=60, **more)


def local(engine: Engine, request: Request) -> str:
    (completion,) = engine.generate([request])
    return completion.raw_text


def test_models_tell_what_evalkit_needs(running: Running) -> None:
    (entry,) = httpx.get(f"{running.url}/models").json()["data"]
    assert (entry["id"], entry["owned_by"]) == ("random", "evalkit")
    told = entry["evalkit"]
    assert (told["family"], told["dtype"], told["bos"]) == ("local", "float32", "auto")
    assert told["identity"]["random"]["layers"] == 2


def test_text_and_token_ids_and_lists(running: Running) -> None:
    from evalkit.engines.random_model import byte_tokenizer

    expected = [local(running.engine, Request("a", text, 12)) for text in ("abc", "日本")]
    one = post(running, "completions", {"model": "random", "prompt": "abc", **GREEDY}).json()
    assert one["choices"][0]["text"] == expected[0]
    assert one["usage"] == {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}
    ids = byte_tokenizer()("abc")["input_ids"]
    assert post(running, "completions", {"prompt": ids, **GREEDY}).json()["choices"] == one["choices"]
    both = post(running, "completions", {"prompt": ["abc", "日本"], **GREEDY}).json()
    assert [choice["text"] for choice in both["choices"]] == expected
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert both["usage"]["completion_tokens"] == 24
    lists = post(running, "completions", {"prompt": [ids, ids[1:]], **GREEDY}).json()
    assert lists["choices"][0]["text"] == expected[0]
    assert lists["choices"][1]["evalkit"]["prompt_tokens"] == 3, "token ids get no BOS"


def test_chat_and_stop_strings(running: Running) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
    ]
    request = Request("a", (Message("system", "s"), Message("user", "q")), 20)
    expected = local(running.engine, request)
    body: dict[str, Any] = {"messages": messages, "temperature": 0, "max_completion_tokens": 20}
    answer = post(running, "chat/completions", body)
    message = answer.json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": expected}
    stop = expected[3]
    body["stop"] = stop
    choice = post(running, "chat/completions", body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == expected[: expected.find(stop)]
    assert choice["evalkit"]["finish_reason"] == "stop_string"
    assert stop in choice["evalkit"]["raw_text"]


def test_sampling_follows_the_seed_and_its_parameters(running: Running) -> None:
    body = {"prompt": "abc", "max_tokens": 20, "temperature": 0.9, "seed": 5}
    body |= {"top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1}
    sampling = Sampling(True, 0.9, 0.95, 40, 1.1)
    expected = local(running.engine, Request("a", "abc", 20, (), sampling, 5))
    answers = [post(running, "completions", body).json()["choices"][0]["text"] for _ in range(2)]
    assert answers == [expected, expected]
    assert post(running, "completions", body | {"seed": 6}).json()["choices"][0]["text"] != expected
    free = [post(running, "completions", {"prompt": "abc", "max_tokens": 20}).json() for _ in range(2)]
    assert free[0]["choices"][0]["text"] != free[1]["choices"][0]["text"]


@pytest.mark.parametrize("chat", [False, True])
def test_streams(running: Running, chat: bool) -> None:
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}]} if chat else {"prompt": "q"}
    path = "chat/completions" if chat else "completions"
    whole = post(running, path, prompt | GREEDY).json()
    streamed = post(
        running, path, prompt | GREEDY | {"stream": True, "stream_options": {"include_usage": True}}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *chunks, end = re.findall(r"data: (.+)\n\n", streamed.text)
    assert end == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    choices = [chunk["choices"][0] for chunk in parsed if chunk["choices"]]
    if chat:
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == whole["choices"][0]["message"]["content"]
    else:
        assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices] == [None, "length"]
    assert parsed[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("completions", b"{", 400, "not JSON"),
        ("completions", b"[1]", 400, "not a JSON object"),
        ("completions", b'{"prompt": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400, ""),
        ("completions", {}, 400, "prompt"),
        ("completions", {"prompt": []}, 400, "prompt"),
        ("completions", {"prompt": [1, "a"]}, 400, "prompt"),
        ("completions", {"prompt": [-1]}, 400, "token ids go from 0"),
        ("completions", {"prompt": [100000]}, 400, "token ids go from 0"),
        ("completions", {"prompt": "a", "max_tokens": 65}, 400, "max_tokens"),
        ("completions", {"prompt": "a", "max_tokens": True}, 400, "max_tokens"),
        ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature"),
        ("completions", {"prompt": "a", "temperature": "hot"}, 400, "temperature"),
        ("completions", {"prompt": "a", "n": 2}, 400, "n is not supported"),
        ("completions", {"prompt": "a", "logprobs": 3}, 400, "logprobs"),
        ("completions", {"prompt": "a", "stop": [""]}, 400, "stop"),
        ("completions", {"prompt": "a", "stream": "yes"}, 400, "stream"),
        ("completions", {"prompt": "a", "model": "gpt-5"}, 404, "gpt-5"),
        ("completions", {"prompt": ""}, 400, ""),
        ("completions", {"prompt": "x" * 20_000}, 413, "20000 bytes"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": ["hi"]}, 400, "role"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, 400, "role"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "text",
        ),
        ("elsewhere", {}, 404, "Not Found"),
    ],
)
def test_what_is_refused(running: Running, path: str, body: Any, status: int, words: str) -> None:
    answer = post(running, path, body)
    if body == {"prompt": ""}:
        # An empty text still has a BOS with this tokenizer.
        assert answer.status_code == 200
        return
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"] and set(error) == {"message", "type", "param", "code"}


def test_an_answer_that_cannot_be_given(running: Running) -> None:
    """evalkit's own client gets the failed completion, others an error."""
    body: dict[str, Any] = {"prompt": [[]], "max_tokens": 4}
    assert post(running, "completions", body).status_code == 400
    choice = post(running, "completions", body | {"evalkit": {}}).json()["choices"][0]
    assert choice["evalkit"]["finish_reason"] == "error" and "empty" in choice["evalkit"]["error"]


def test_only_so_many_may_wait() -> None:
    config = random_config()
    config.serve.max_waiting = 2
    with serving(config) as server:
        answer = post(server, "completions", {"prompt": ["a", "b", "c"], "max_tokens": 2})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert post(server, "completions", {"prompt": ["a", "b"], "max_tokens": 2}).status_code == 200


def test_an_engine_that_breaks_is_an_error_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.engine, "generate", lambda requests: iter([][0]))
            answer = post(server, "completions", {"prompt": "a", "max_tokens": 2})
            assert answer.status_code == 500 and "IndexError" in answer.json()["error"]["message"]
        assert post(server, "completions", {"prompt": "a", "max_tokens": 2}).status_code == 200


def test_a_key_is_asked_for_everywhere() -> None:
    with serving(key="geheim-日本") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "geheim"}):
            assert httpx.get(f"{server.url}/models", headers=headers).status_code == 401
            assert post(server, "completions", {"prompt": "a"}, headers=headers).status_code == 401
            assert post(server, "chat/completions", {}, headers=headers).status_code == 401
        right = {"Authorization": "Bearer geheim-日本".encode()}
        assert httpx.get(f"{server.url}/models", headers=right).status_code == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve.host=0.0.0.0"], "without a key only this machine may call"),
        (["serve.host="], "not an address of this machine"),
        (["serve.host=no.such.host.invalid"], "not an address of this machine"),
        (["serve.port=99999"], "serve.port=99999"),
        (["engine=api"], "engine=local"),
        (["generation.from_model=true"], "generation.from_model"),
    ],
)
def test_bad_input(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVALKIT_API_KEY", raising=False)
    assert main(["serve", "model=random", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "model=random", f"serve.port={taken.getsockname()[1]}"]) == 2
    assert "serve.port=0 takes a free one" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_and_ends_when_told(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evalkit", "serve", "model=random", "serve.port=0", "engine.threads=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EVALKIT_API_KEY": "s3cret-key"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        found = re.fullmatch(r"serving random at (http://127\.0\.0\.1:\d+/v1).*\n", first)
        assert found, first + process.stderr.read()
        assert "engine.api_key_env=EVALKIT_API_KEY" in second and "s3cret" not in first + second
        assert httpx.get(f"{found[1]}/models").status_code == 401
        key = {"Authorization": "Bearer s3cret-key"}
        assert httpx.get(f"{found[1]}/models", headers=key).status_code == 200
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "stopped\n", "")
