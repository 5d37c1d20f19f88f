"""No key gets into a file, a log or an error text, however it came there."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from evalkit.__main__ import main
from evalkit.core.config import Config, JudgeConfig, ModelConfig
from evalkit.core.logs import log_to
from evalkit.core.secrets import hide, hide_known, printable
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


@pytest.mark.parametrize("word", [f"engine.api_key_env={KEY}", f"engine.parameters.api_key={KEY}"])
def test_a_key_among_the_engines_options_is_refused(
    word: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["model=served", "suite=sample", "suite.tasks=[jamp]", "engine=api", f"out={tmp_path}"]
    assert main([*words, "engine.base_url=http://127.0.0.1:9", word]) == 2
    said = "".join(capfd.readouterr())
    assert "api_key" in said and KEY not in said
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
    # In an answer only the service's own keys are replaced: all else is the model's text.
    monkeypatch.setenv("POSTGRES_PASSWORD", "postgres")
    assert hide_known(f"sk-learn, postgres {KEY}", KEY, "") == "sk-learn, postgres [key]"
    assert printable("a\x1b]0;title\x07\r\nb\tc\x9b") == "a\ufffd]0;title\ufffd\ufffd\nb\tc\ufffd"
    assert os.environ["MY_SERVICE_TOKEN"] == KEY
