"""No key gets into a file, a log or an error text, however it came there."""

import base64
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from evalkit.__main__ import main
from evalkit.core.config import Config, JudgeConfig, ModelConfig
from evalkit.core.errors import InputError
from evalkit.core.logs import log_to
from evalkit.core.secrets import check_address, hide, hide_known, printable, redact, refuse_keys
from evalkit.mtbench.judge.judges import resolve_judge
from evalkit.mtbench.presets import load_preset
from evalkit.records.environment import config_text
from tests.mtbench.fault_server import FaultServer
from tests.mtbench.little_bench import Bench, make_bench

KEY = "k3y-0123456789-abcdefghij"
PASSWORD = "p4ssw0rd-in-the-address"
BASIC = base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()


class EchoServer(FaultServer):
    """Repeats the caller's key wherever it can: in bodies of errors, in the answer and its model."""

    async def _respond(
        self, fault: str, text: str, body: dict[str, Any], request: web.Request
    ) -> web.StreamResponse:
        # Without the word before it, which would give it away.
        key = request.headers["Authorization"].split()[-1]
        if fault == "ok":
            completion = self.completion(text, body)
            completion["choices"][0]["message"]["content"] = f"{key} was sent. Rating: [[5]]"
            return web.json_response(completion | {"model": f"model of {key}"})
        if fault == "html":
            return web.Response(text=f"<html>{key}</html>", content_type="text/html", status=502)
        if fault == "nonsense":
            return web.Response(text=f'{{"{key}": ', content_type="application/json")
        return self._error(int(fault), f"code {key}", f"you sent {key}", {"x-key": key})


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return make_bench(tmp_path, per_category=1)


def leaks(folder: Path, *secrets: str) -> list[str]:
    """The files below a folder whose name or content has one of these."""
    return [
        str(path)
        for path in folder.rglob("*")
        if any(secret in path.name for secret in secrets)
        or (path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets))
    ]


@pytest.mark.parametrize("login", [False, True])
@pytest.mark.parametrize("fault", ["ok", "401", "403", "404", "400", "429", "500", "html", "nonsense"])
def test_a_judge_server_that_repeats_the_key(
    fault: str,
    login: bool,
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JUDGE_ACCESS", KEY)
    answers = bench.answers(tmp_path / "answers.jsonl", "m")
    with EchoServer(lambda text, attempt: fault) as server:
        address = server.url.replace("://", f"://somebody:{PASSWORD}@") if login else server.url
        words = [f"answers={answers}", f"out={tmp_path / 'run'}", f"preset={bench.preset}"]
        where = [f"mirror={bench.mirror}", "judge=openai", "judge.model=m", f"judge.base_url={address}"]
        how = ["judge.api_key_env=JUDGE_ACCESS", "judge.retries=0", "judge.max_wait=0.01"]
        code = main(["judge", *words, *where, *how, "metrics.resamples=20"])
        # Name and password in the address take the key's place.
        sent = server.headers["Authorization"]
        assert sent == (f"Basic {BASIC}" if login else f"Bearer {KEY}")
    assert (code == 0) is (fault == "ok")
    if fault == "ok":
        (stored,) = (tmp_path / "cache" / "judgments").glob("*.jsonl")
        assert b"was sent. Rating: [[5]]" in stored.read_bytes()
    said = "".join(capfd.readouterr())
    assert said and KEY not in said and PASSWORD not in said and BASIC not in said
    assert leaks(tmp_path, KEY, PASSWORD, BASIC) == []


@pytest.mark.parametrize("fault", ["ok", "401", "400", "500"])
def test_an_engine_server_that_repeats_the_key(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINE_ACCESS", KEY)
    out = tmp_path / "results"
    with EchoServer(lambda text, attempt: fault) as server:
        words = [
            "model=served",
            "suite=sample",
            "suite.tasks=[jamp]",
            "limit=2",
            "offline=true",
            f"out={out}",
        ]
        how = ["engine=api", f"engine.base_url={server.url}", "engine.api_key_env=ENGINE_ACCESS"]
        more = ["engine.retries=0", "engine.max_wait=0.01", "engine.prompts=chat", "metrics.resamples=20"]
        code = main([*words, *how, *more])
        assert server.headers["Authorization"] == f"Bearer {KEY}"
    assert (code == 0) is (fault == "ok")
    if fault == "ok":
        logs = list(out.rglob("samples/jamp.jsonl"))
        assert logs and all(b"[key] was sent" in path.read_bytes() for path in logs)
    said = "".join(capfd.readouterr())
    assert said and KEY not in said
    assert leaks(tmp_path, KEY) == []


@pytest.mark.parametrize(
    "word",
    [
        f"engine.api_key_env={KEY}",
        f"engine.parameters.api_key={KEY}",
        f"engine.parameters={{extra_headers:{{X-Api-Key:{KEY}}}}}",
    ],
)
def test_a_key_among_the_engines_options_is_refused(
    word: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["model=served", "suite=sample", "suite.tasks=[jamp]", "engine=api", f"out={tmp_path}"]
    assert main([*words, "engine.base_url=http://127.0.0.1:9", word]) == 2
    said = "".join(capfd.readouterr())
    assert "api_key" in said.lower().replace("-", "_") and KEY not in said
    assert leaks(tmp_path, KEY) == []


@pytest.mark.parametrize(
    "words",
    [
        [f"judge.api_key={KEY}"],
        [f"judge.api_key_env={KEY}"],
        [f"judge.parameters.api_key={KEY}"],
        [f"judge.parameters.Authorization={KEY}"],
        [f"--api-key={KEY}"],
        [f"--reference={KEY}", f"--key={KEY}"],
        [f"api_key={KEY}"],
        ["sk-0123456789abcdefghij"],
    ],
)
def test_a_key_on_the_command_line_is_refused_and_not_repeated(
    words: list[str], bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = bench.answers(tmp_path / "answers.jsonl", "m")
    common = [f"answers={answers}", f"out={tmp_path / 'run'}", f"preset={bench.preset}"]
    command = ["judge", *common, f"mirror={bench.mirror}", "judge=openai", "judge.model=m"]
    assert main([*command, "judge.base_url=http://127.0.0.1:9", *words]) == 2
    said = "".join(capfd.readouterr())
    assert said and KEY not in said and "sk-0123456789" not in said
    assert leaks(tmp_path, KEY, "sk-0123456789") == []


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"extra_headers": {"Authorization": "x"}}, "extra_headers.Authorization"),
        ({"metadata": [{"apiKey": "x"}]}, "metadata.apiKey"),
        ({"hf_token": "x"}, "hf_token"),
        ({"a": {"b": {"password": 1234}}}, "a.b.password"),
        ({"headers": {"X-Mine": "Bearer x-1234567"}}, "headers.X-Mine"),
        ({"user": "sk-0123456789"}, "user"),
        ({"prompt_cache_key": "x", "hf_token": True, "max_token": 5, "stop_token": "x"}, None),
        ({"response_format": {"properties": {"token": {"type": "string"}}, "required": ["token"]}}, None),
    ],
)
def test_a_key_in_a_parameter_is_found(parameters: dict[str, Any], name: str | None) -> None:
    if name is None:
        refuse_keys("engine", None, parameters)
        return
    with pytest.raises(InputError, match="a key among") as caught:
        refuse_keys("engine", None, parameters)
    assert str(caught.value.where).endswith(f"parameters.{name}")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://[::1:8000/v1", "not an address"),
        ("http://127.0.0.1:99999/v1", "not an address"),
        ("http://127.0.0.1:80a/v1", "not an address"),
        ("http://u:pass/w0rd@h/v1", "not an address"),
        ("http:///v1", "not an address"),
        ("http://a b/v1", "not an address"),
        ("ftp://h/v1", "not an address"),
        ("http://u:pass@h/v1?key=w0rd", "has no query"),
        ("http://u:pass@h/v1/completions", "ends in /completions"),
        ("http://h/v1/chat/completions", "ends in /chat/completions"),
        ("http://h/v1/models", "ends in /models"),
        ("http://u:p@ss@h:1/models", None),
        ("https://[::1]:8000/v1", None),
    ],
)
def test_an_address_is_that_of_a_service(address: str, said: str | None) -> None:
    if said is None:
        check_address(address, "engine.base_url")
        return
    with pytest.raises(InputError, match=said) as caught:
        check_address(address, "engine.base_url")
    told = f"{caught.value.where} {caught.value.fix}"
    assert "engine.base_url" in told and "pass" not in told and "w0rd" not in told
    judge = JudgeConfig(name="openai", model="m", base_url=address)
    with pytest.raises(InputError, match=said):
        resolve_judge(judge, load_preset("fastchat"))


def test_the_configuration_kept_with_a_run_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", KEY)
    config = Config(
        model=ModelConfig(path=f"https://user:{PASSWORD}@host/model?token={PASSWORD}&a=1"),
        judge=JudgeConfig(name="x", base_url=f"http://u:{PASSWORD}@h:1/v1", parameters={"user": KEY}),
    )
    text = config_text(config)
    assert KEY not in text and PASSWORD not in text
    assert "https://host/model?token=[key]&a=1" in text and "http://h:1/v1" in text


def test_the_log_has_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with pytest.raises(RuntimeError), log_to(tmp_path / "run.log") as log:
        log.info("asked http://u:%s@host with %s", PASSWORD, KEY)
        raise RuntimeError(f"the library said {KEY}\x1b[2J")
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "asked http://host with [key]" in text and "the library said [key]" in text
    assert KEY not in text and PASSWORD not in text and "\x1b" not in text


def test_what_is_hidden_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", KEY)
    monkeypatch.setenv("SHORT_KEY", "none")
    monkeypatch.setenv("EVALKIT_HOME", "an-ordinary-folder")
    assert hide(f"{KEY}, none, an-ordinary-folder") == "[key], none, an-ordinary-folder"
    assert hide("hf_abcdefghijklmnop Bearer abc.def-ghi") == "[key] [key]"
    assert hide("me@example.org asks https://example.org/a@b?x=1") == (
        "me@example.org asks https://example.org/a@b?x=1"
    )
    odd = f"{KEY}/+"
    for form in (quote(odd), quote(odd, safe=""), base64.b64encode(f":{odd}".encode()).decode()):
        assert KEY not in redact(f"bad key {form}", odd) and "[key]" in redact(f"bad key {form}", odd)
    said = redact("Bad key: Bearer tok1234, or tok1234. No bearer token, none", "tok1234", "none")
    assert said == "Bad key: [key] or [key]. No bearer token, none"
    # In an answer only the service's own keys are replaced: all else is the model's text.
    monkeypatch.setenv("POSTGRES_PASSWORD", "postgres")
    assert hide_known(f"sk-learn, postgres {KEY}", KEY, "") == "sk-learn, postgres [key]"
    assert printable("a\x1b]0;title\x07\r\nb\tc\x9b") == "a\ufffd]0;title\ufffd\ufffd\nb\tc\ufffd"
    assert os.environ["MY_SERVICE_TOKEN"] == KEY
