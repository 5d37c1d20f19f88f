"""engine=api against a server with a real model: the answers and scores of the local engine."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.config import Config, EngineConfig, ModelConfig, RandomShape
from evalkit.core.durable import read_log
from evalkit.core.types import Completion, Message, Request, Sampling
from tests.children import Child, Forked
from tests.mtbench.little_bench import make_bench
from tests.serving import ModelServer, random_config, serve, serving
from tests.tiny import engine_of, identified

TASKS = ["jamp", "mawps", "jemhopqa", "jsts", "jsquad"]
SUITE = ["suite=sample", f"suite.tasks=[{','.join(TASKS)}]", "limit=3", "engine.threads=1", "offline=true"]
QUICK = ["engine.retries=1", "engine.max_wait=0.02"]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local")
    assert main(["model=random", *SUITE, f"out={out}"]) == 0
    return folder_of(out)


def api(*urls: str) -> list[str]:
    return ["engine=api", f"engine.base_url=[{','.join(urls)}]", "dtype=float32", *QUICK]


def folder_of(out: Path, model: str = "random") -> Path:
    (folder,) = (out / model / "sample").iterdir()
    return folder


def rows(folder: Path, kind: str = "samples") -> dict[str, dict[str, dict[str, Any]]]:
    found = {}
    for task in TASKS:
        path = folder / kind / f"{task}.jsonl"
        found[task], damaged = read_log(path)
        assert (damaged, path.read_bytes().count(b"\n")) == (0, len(found[task]))
    return found


def some_requests() -> list[Request]:
    """Texts and chats, greedy and sampled, with stop strings, going on, and one that cannot be served."""
    sampled = Sampling(True, 0.8, 0.95, 50, 1.1)
    chat = (Message("system", "s"), Message("user", "問い"))
    return [
        Request("greedy", "以下は、指示です。\n\n", 20, ("\n\n",)),
        Request("stopped", "abc", 40, tuple("abcdefghijklmnop")),
        Request("sampled", "abc", 30, ("\n\n",), sampled, 7),
        Request("penalised", "abc", 30, (), Sampling(repetition_penalty=1.3)),
        Request("chat", chat, 12),
        Request("sampled chat", chat, 12, (), sampled, 3),
        Request("with BOS", "<s>abc", 5),
        Request("nothing", "abc", 0),
        *(Request(f"r{i}", "shared prefix " * 5 + str(i), 1 + i % 9) for i in range(40)),
    ]


def completions(config: Config, requests: list[Request]) -> dict[str, Completion]:
    with engine_of(config, identified(config).model) as engine:
        return {completion.id: completion for completion in engine.generate(requests)}


def local_ones(server: ModelServer, requests: list[Request]) -> dict[str, Completion]:
    """What the server's engine makes of requests, without what servers do not tell."""
    asked = [
        replace(one, prompt=f"<s>{one.prompt.removeprefix('<s>')}") if isinstance(one.prompt, str) else one
        for one in requests
    ]
    return {one.id: replace(one, generator_state=None) for one in server.engine.generate(asked)}


def essence(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The samples of a run without what servers do not tell."""
    return {
        task: {key: {**row, "generator_state": None} for key, row in records.items()}
        for task, records in rows(folder).items()
    }


def test_completions_equal_the_local_ones(server: ModelServer) -> None:
    requests = [request for request in some_requests() if request.max_new_tokens]
    options = EngineConfig(name="api", base_url=server.url, concurrency=8)
    served = completions(replace(random_config(), engine=options), requests)
    assert served == local_ones(server, requests)
    assert len({completion.text for completion in served.values()}) > 10


def test_token_ids_give_the_same(server: ModelServer) -> None:
    from evalkit.core.config import PromptForm

    requests = [Request("a", "日本語", 9), Request("b", "<s>abc", 9)]
    options = EngineConfig(name="api", base_url=server.url, prompts=PromptForm.tokens)
    assert completions(replace(random_config(), engine=options), requests) == local_ones(server, requests)


def test_a_run_has_the_answers_and_scores_of_the_local_one(
    server: ModelServer, local_run: Path, tmp_path: Path
) -> None:
    """Under an id of its own: the family of the engine is part of it."""
    assert main(["model=random", *SUITE, f"out={tmp_path}", *api(server.url)]) == 0
    folder = folder_of(tmp_path)
    assert folder.name != local_run.name
    assert essence(folder) == essence(local_run) and rows(folder, "scores") == rows(local_run, "scores")
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["identity"]["engine_family"] == environment["engine"]["engine"] == "api"


def test_a_model_that_only_the_server_has(server: ModelServer, local_run: Path, tmp_path: Path) -> None:
    """model=served takes the name from the server; without a tokenizer prompts go as texts."""
    words = ["model=served", *SUITE, f"out={tmp_path}", *api(server.url)]
    assert main([*words, "limit=1"]) == 0
    assert main(words) == 0
    assert rows(folder_of(tmp_path), "scores") == rows(local_run, "scores")


def test_mt_bench_answers_are_the_local_ones(server: ModelServer, tmp_path: Path, cache: Path) -> None:
    """Both turns, greedy; a sampled second turn starts its generator anew."""
    from evalkit.mtbench.fastchat import CATEGORIES
    from evalkit.mtbench.folder import MtBenchFolder

    temperature = dict.fromkeys(CATEGORIES, 0.0) | {"writing": 0.9, "stem": 0.5}
    bench = make_bench(tmp_path, 1, sampling={"temperature": temperature, "other": 0.0, "seed": 0})
    found = []
    for name, more in (("local", []), ("api", api(server.url))):
        words = ["model=random", "suite=mt-bench-ja", f"preset={bench.preset}", f"mirror={bench.mirror}"]
        assert main([*words, f"out={tmp_path / name}", "engine.threads=1", *more]) == 0
        (folder,) = (tmp_path / name / "random" / "mt-bench-ja").iterdir()
        turns = {turn.id: replace(turn, generator_state=None) for turn in MtBenchFolder(folder).turns()}
        assert len(turns) == 16
        found.append(
            {key: turn for key, turn in turns.items() if turn.turn == 1 or not temperature[turn.category]}
        )
    assert found[0] == found[1]
    assert len(found[0]) == 14


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine.model=other"], "does not have the model 'other'"),
        (["engine.base_url=localhost:8000"], "http://"),
        (["engine.base_url=null"], "needs the address"),
        (["engine.concurrency=0"], "engine.concurrency"),
    ],
)
def test_what_does_not_fit_is_one_message(
    server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    command = ["model=random", *SUITE, f"out={tmp_path / 'out'}", *api(server.url)]
    for word in words:
        command = [one for one in command if one.split("=")[0] != word.split("=")[0]] + [word]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_model_served_needs_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["model=served", *SUITE, f"out={tmp_path}"]) == 2
    assert "engine=api" in capsys.readouterr().err


def test_servers_of_different_models(
    server: ModelServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = random_config(model=ModelConfig(name="other", random=RandomShape(seed=1)))
    with serving(other) as second:
        words = ["model=served", *SUITE, f"out={tmp_path}", *api(server.url, second.url)]
        assert main([*words, "engine.model=random"]) == 2
        assert "does not have the model 'random'" in capsys.readouterr().err
        assert main(words) == 2
    assert "the servers differ: random (vllm) and other (vllm)" in capsys.readouterr().err


def test_another_bos_rule(server: ModelServer, local_run: Path, tmp_path: Path) -> None:
    assert main(["model=random", *SUITE, f"out={tmp_path}", *api(server.url), "protocol.bos=none"]) == 0
    tokens = [record["prompt_tokens"] for record in rows(folder_of(tmp_path))["jamp"].values()]
    with_bos = [record["prompt_tokens"] for record in rows(local_run)["jamp"].values()]
    assert sorted(tokens) == sorted(count - 1 for count in with_bos)


def test_every_server_is_used(server: ModelServer, tmp_path: Path, local_run: Path) -> None:
    with serving() as second:
        asked: list[int] = [0, 0]
        for index, one in enumerate((server, second)):
            generate = one.engine.generate

            def counting(requests: Any, index: int = index, generate: Any = generate) -> Any:
                listed = list(requests)
                asked[index] += len(listed)
                return generate(listed)

            one.engine.generate = counting  # type: ignore[method-assign]
        words = ["model=random", *SUITE, f"out={tmp_path}", *api(server.url, second.url)]
        try:
            assert main([*words, "engine.concurrency=2"]) == 0
        finally:
            del server.engine.generate
    # One more: the probe for the form of the prompts.
    assert sum(asked) == 16 and min(asked) >= 3
    assert essence(folder_of(tmp_path)) == essence(local_run)


def test_a_server_with_a_key(
    tmp_path: Path, local_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        server.key = "a-long-secret"
        words = ["model=random", *SUITE, f"out={tmp_path}", *api(server.url)]
        assert main(words) == 1
        assert "refuses the API key" in capsys.readouterr().err
        monkeypatch.setenv("MY_KEY", "a-long-secret")
        assert main([*words, "engine.api_key_env=MY_KEY"]) == 0
    assert essence(folder_of(tmp_path)) == essence(local_run)


def test_one_of_two_servers_is_killed_in_the_middle(
    server: ModelServer, tmp_path: Path, local_run: Path
) -> None:
    out, address = tmp_path / "out", tmp_path / "address"
    second = Child(Forked(serve, address), tmp_path, "second")

    def kill() -> None:
        logs = lambda: out.glob("random/sample/*/samples/*.jsonl")  # noqa: E731
        while sum(path.read_bytes().count(b"\n") for path in logs()) < 3:
            time.sleep(0.002)
        second.send(signal.SIGKILL)

    try:
        while not (address.exists() and address.read_text()):
            assert second.running
            time.sleep(0.01)
        url = address.read_text()
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        words = ["model=random", *SUITE, f"out={out}", *api(url, server.url), "engine.concurrency=1"]
        assert main(words) == 0
        killer.join(30)
        assert not killer.is_alive() and second.wait().code == -signal.SIGKILL
    finally:
        second.kill()
    assert essence(folder_of(out)) == essence(local_run)
    # The dead one at the start of a run is passed over too.
    again = ["model=random", *SUITE, f"out={tmp_path / 'again'}", *api(url, server.url)]
    assert main(again) == 0
    assert essence(folder_of(tmp_path / "again")) == essence(local_run)
