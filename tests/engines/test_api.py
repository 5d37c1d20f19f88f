"""engine=api against `serve` over real HTTP: the same run, the same records as the local engine."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.config import BosRule, Config, EngineConfig, ModelConfig, RandomShape
from evalkit.engines import build_engine, identify
from evalkit.records import read_log
from evalkit.types import Completion, Message, Request, Sampling
from tests.mtbench.little_bench import make_bench
from tests.serving import Running, random_config, serving

ROOT = Path(__file__).resolve().parents[2]
TASKS = ["jamp", "mawps", "jemhopqa", "jsts", "jsquad"]
SUITE = ["suite=sample", f"suite.tasks=[{','.join(TASKS)}]", "engine.threads=1", "offline=true"]
QUICK = ["engine.retries=1", "engine.max_wait=0.02"]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local")
    assert main(["model=random", *SUITE, f"out={out}"]) == 0
    return folder_of(out)


def api(*urls: str) -> list[str]:
    return ["engine=api", f"engine.base_url=[{','.join(urls)}]", *QUICK]


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
    with build_engine(config, identify(config).model) as engine:
        return {completion.id: completion for completion in engine.generate(requests)}


def test_completions_equal_the_local_ones(server: Running) -> None:
    requests = [request for request in some_requests() if request.max_new_tokens]
    options = EngineConfig(name="api", base_url=server.url, concurrency=8)
    served = completions(replace(random_config(), engine=options), requests)
    local = {completion.id: completion for completion in server.engine.generate(requests)}
    assert served == local
    assert len({completion.text for completion in local.values()}) > 10
    state = local["sampled chat"].generator_state
    assert state is not None
    turn = [replace(requests[5], id="turn 2", generator_state=state)]
    assert completions(replace(random_config(), engine=options), turn) == {
        completion.id: completion for completion in server.engine.generate(turn)
    }


def test_token_ids_give_the_same(server: Running) -> None:
    from evalkit.server_options import PromptForm

    requests = [Request("a", "日本語", 9), Request("b", "<s>abc", 9)]
    options = EngineConfig(name="api", base_url=server.url, prompts=PromptForm.tokens)
    served = completions(replace(random_config(), engine=options), requests)
    assert served == {completion.id: completion for completion in server.engine.generate(requests)}


def test_a_run_is_the_local_one(server: Running, local_run: Path, tmp_path: Path) -> None:
    assert main(["model=random", *SUITE, f"out={tmp_path}", *api(server.url)]) == 0
    folder = folder_of(tmp_path)
    assert folder.name == local_run.name
    assert rows(folder) == rows(local_run) and rows(folder, "scores") == rows(local_run, "scores")
    results = [json.loads((path / "results.json").read_text()) for path in (folder, local_run)]
    assert results[0] == results[1]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["engine"]["engine"] == "api"
    assert environment["engine"]["served_by"]["engine"] == "local"


def test_a_model_that_only_the_server_has(server: Running, local_run: Path, tmp_path: Path) -> None:
    """model=served takes model, name and precision from the endpoint; a local run continues it."""
    words = ["model=served", *SUITE, f"out={tmp_path}", *api(server.url)]
    assert main([*words, "limit=2"]) == 0
    assert folder_of(tmp_path).name == local_run.name
    assert main(["model=random", *SUITE, f"out={tmp_path}"]) == 0
    assert rows(folder_of(tmp_path)) == rows(local_run)


def test_mt_bench_answers_are_the_local_ones(server: Running, tmp_path: Path, cache: Path) -> None:
    """Both turns, greedy and sampled, the generator running on."""
    from evalkit.mtbench.folder import MtBenchFolder
    from evalkit.mtbench.questions import CATEGORIES

    temperature = dict.fromkeys(CATEGORIES, 0.0) | {"writing": 0.9, "stem": 0.5}
    bench = make_bench(tmp_path, 1, sampling={"temperature": temperature, "other": 0.0, "seed": 0})
    found = []
    for name, more in (("local", []), ("api", api(server.url))):
        words = ["model=random", "suite=mt-bench-ja", f"preset={bench.preset}", f"mirror={bench.mirror}"]
        assert main([*words, f"out={tmp_path / name}", "engine.threads=1", *more]) == 0
        (folder,) = (tmp_path / name / "random" / "mt-bench-ja").iterdir()
        turns = {turn.id: turn for turn in MtBenchFolder(folder).turns()}
        found.append((folder.name, turns, json.loads((folder / "results.json").read_text())))
    assert found[0] == found[1]
    assert len(found[0][1]) == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.random.layers=3"], "random.layers"),
        (["dtype=bfloat16"], "float32"),
        (["protocol.bos=none"], "BOS rule"),
        (["model=hf", "model.path={folder}"], "is not the command's"),
        (["engine.model=other"], "does not have the model 'other'"),
        (["engine.prompts=chat"], "engine.prompts=auto"),
        (["engine.base_url=localhost:8000"], "http://"),
        (["engine.base_url="], "needs the address"),
        (["engine.concurrency=0"], "engine.concurrency"),
    ],
)
def test_what_does_not_fit_is_one_message(
    server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    given = [word.format(folder=folder) for word in words]
    command = ["model=random", *SUITE, f"out={tmp_path / 'out'}", *api(server.url)]
    for word in given:
        command = [one for one in command if one.split("=")[0] != word.split("=")[0]] + [word]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_model_served_needs_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["model=served", *SUITE, f"out={tmp_path}"]) == 2
    assert "engine=api" in capsys.readouterr().err


def test_servers_of_different_models(
    server: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = random_config(model=ModelConfig(name="random", random=RandomShape(seed=1)))
    with serving(other) as second:
        words = ["model=served", *SUITE, f"out={tmp_path}", *api(server.url, second.url)]
        assert main(words) == 2
    assert "do not serve the same model" in capsys.readouterr().err


def test_a_server_with_another_bos_rule(local_run: Path, tmp_path: Path) -> None:
    config = random_config()
    config.protocol.bos = BosRule.none
    with serving(config) as server:
        assert main(["model=random", *SUITE, f"out={tmp_path}", *api(server.url), "protocol.bos=none"]) == 0
    assert folder_of(tmp_path).name != local_run.name
    tokens = [record["prompt_tokens"] for record in rows(folder_of(tmp_path))["jamp"].values()]
    with_bos = [record["prompt_tokens"] for record in rows(local_run)["jamp"].values()]
    assert sorted(tokens) == sorted(count - 1 for count in with_bos)


def test_sampling_of_the_model(server: Running) -> None:
    """generation.from_model: the endpoint tells the model's own generation_config."""
    config = replace(random_config(), engine=EngineConfig(name="api", base_url=server.url))
    config.generation.from_model = True
    here = random_config()
    here.generation.from_model = True
    requests = [Request("a", "abc", 9)]
    assert completions(config, requests) == completions(here, requests)


def test_every_server_is_used(server: Running, tmp_path: Path, local_run: Path) -> None:
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
    assert sum(asked) == 30 and min(asked) >= 5
    assert rows(folder_of(tmp_path)) == rows(local_run)


def test_a_server_with_a_key(
    tmp_path: Path, local_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(key="a-long-secret") as server:
        words = ["model=random", *SUITE, f"out={tmp_path}", *api(server.url)]
        assert main(words) == 1
        assert "refuses the API key" in capsys.readouterr().err
        monkeypatch.setenv("EVALKIT_API_KEY", "a-long-secret")
        assert main([*words, "engine.api_key_env=EVALKIT_API_KEY"]) == 0
    assert rows(folder_of(tmp_path)) == rows(local_run)


@contextmanager
def process_serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, that can be killed."""
    command = [sys.executable, "-m", "evalkit", "serve", "model=random", "serve.port=0", "engine.threads=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("EVALKIT_API_KEY", None)
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=-1, stderr=-2, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+/v1", process.stdout.readline())
        assert found
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def test_one_of_two_servers_is_killed_in_the_middle(server: Running, tmp_path: Path, local_run: Path) -> None:
    with process_serving(tmp_path) as (process, url):
        out = tmp_path / "out"

        def kill() -> None:
            logs = lambda: out.glob("random/sample/*/samples/*.jsonl")  # noqa: E731
            while sum(path.read_bytes().count(b"\n") for path in logs()) < 3:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        words = ["model=random", *SUITE, f"out={out}", *api(url, server.url), "engine.concurrency=1"]
        assert main(words) == 0
        killer.join(30)
        assert process.wait(30) == -signal.SIGKILL
    assert rows(folder_of(out)) == rows(local_run)
    # The dead one at the start of a run is passed over too.
    again = ["model=random", *SUITE, f"out={tmp_path / 'again'}", *api(url, server.url)]
    assert main(again) == 0
    assert rows(folder_of(tmp_path / "again")) == rows(local_run)
