"""The vLLM adapter against a stand-in that checks its calls; vLLM itself needs a GPU."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.config import Config, Dtype, EngineConfig, ModelConfig
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.types import REST_OF_CONTEXT, Message, Request, Sampling
from evalkit.engines.base import Engine
from tests.engines import fake_vllm
from tests.engines.models import local_engine, save_model, template, tokenizer_with
from tests.tiny import engine_of, identified

SAMPLED = Sampling(True, 0.8, 0.95, 50, 1.1)
REQUESTS = [
    Request("text", "abc", 20, ("\n\n",)),
    Request("stopped", "abc", 40, ("e", "x")),
    Request("BOS", "<s>abc", 9),
    Request("sampled", "abc", 20, (), SAMPLED, 7),
    Request("chat", (Message("user", "q"),), 12),
    *(Request(f"r{i}", f"prefix {i}", 1 + i) for i in range(12)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    monkeypatch.setitem(sys.modules, "vllm.platforms", fake_vllm.platforms)


def engine(folder: Path, config: Config | None = None, **options: Any) -> Engine:
    config = config or Config()
    config.model = ModelConfig(path=str(folder))
    config.engine = EngineConfig(name="vllm", **options)
    return engine_of(config, identified(config).model)


def test_completions_equal_the_local_ones(folder: Path) -> None:
    """The generator state apart: vLLM's sampling has none to go on from."""
    with engine(folder) as built:
        found = {completion.id: completion for completion in built.generate(REQUESTS)}
    with local_engine(folder) as local:
        expected = {completion.id: completion for completion in local.generate(REQUESTS)}
    assert found == {key: replace(one, generator_state=None) for key, one in expected.items()}
    assert {completion.finish_reason for completion in found.values()} >= {"length", "stop_string"}


def test_nothing_stands_behind_a_prompt(folder: Path, tmp_path: Path) -> None:
    """A tokenizer that ends every text changes no completion, here and in the local engine."""
    ends = tmp_path / "ends"
    shutil.copytree(folder, ends)
    tokenizer_with(template("<s> $A </s>")).save_pretrained(ends)
    with engine(folder) as built:
        expected = {completion.id: completion for completion in built.generate(REQUESTS)}
    with engine(ends) as built:
        assert {completion.id: completion for completion in built.generate(REQUESTS)} == expected
    with local_engine(ends) as local:
        found = {one.id: replace(one, generator_state=None) for one in local.generate(REQUESTS)}
    assert found == expected


def test_its_own_family_and_the_protocols_precision(folder: Path) -> None:
    config = Config(model=ModelConfig(path=str(folder)), engine=EngineConfig(name="vllm", batch_size=7))
    found = identified(config)
    assert (found.family, found.dtype) == ("vllm", "bfloat16")
    with engine_of(config, found.model) as built:
        facts = built.describe()
    assert fake_vllm.MADE[-1].options == {
        "dtype": "bfloat16",
        "max_num_seqs": 7,
        "tokenizer": str(folder.resolve()),
    }
    assert facts["vllm"] == "0.0-fake" and facts["prefix_caching"] is True
    config.dtype = Dtype.float16
    assert identified(config).dtype == "float16"


def test_what_vllm_is_told_is_part_of_the_identity(folder: Path) -> None:
    config = Config(model=ModelConfig(path=str(folder)), engine=EngineConfig(name="vllm"))
    plain = identified(config).model.identity
    config.engine.parameters = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.8}
    assert identified(config).model.identity == plain
    config.engine.parameters["quantization"] = "fp8"
    assert identified(config).model.identity == {**plain, "parameters": {"quantization": "fp8"}}
    config.engine.batch_size = 7
    for name, option in (("dtype", "dtype"), ("model", "model.path"), ("max_num_seqs", "engine.batch_size")):
        config.engine.parameters = {name: "x"}
        with pytest.raises(InputError, match=f"engine.parameters.{name}(.|\n)*{option}=") as raised:
            identified(config)
        assert raised.value.exit_code == 2


def test_the_end_of_the_context(folder: Path) -> None:
    requests = [Request("long", "x" * 60, 5), Request("cut", "x" * 45, 30), Request("fits", "x" * 20, 5)]
    # One that thinks may use the rest of the context, and there is none.
    requests += [Request(f"thinks {n}", "x" * n, REST_OF_CONTEXT) for n in (49, 60)]
    with engine(folder, parameters={"max_model_len": 50}) as built:
        found = {completion.id: completion for completion in built.generate(requests)}
    assert found["fits"].error is None
    for name in ("long", "cut", "thinks 49", "thinks 60"):
        assert (found[name].finish_reason, found[name].over_context) == ("error", True)
        assert "50" in (found[name].error or "")


def test_what_is_left_when_someone_stops_early(folder: Path) -> None:
    with engine(folder) as built:
        stream = built.generate(REQUESTS)
        next(stream)
        stream.close()
        assert len(fake_vllm.MADE[-1].llm_engine.aborted) == len(REQUESTS) - 1
        assert len(list(built.generate(REQUESTS[:2]))) == 2


def test_what_vllm_cannot_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvalkitError, match="cannot load the model"):
        engine(folder, parameters={"no_such_option": 1})
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"constraints-vllm\.txt"):
        engine(folder)


def test_a_whole_run(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What vLLM and its processes say is in run.log, not on the terminal."""
    words = ["model=hf", f"model.path={folder}", "suite=sample", "suite.tasks=[jamp]", "num_few_shots=0"]
    words += ["engine.parameters.max_model_len=2000", "limit=3", "offline=true", f"out={tmp_path}"]
    assert main([*words, "engine=vllm"]) == 0
    told = capfd.readouterr()
    assert "a word" not in told.out + told.err and "generating: 3/3" in told.err
    (log,) = tmp_path.glob("*/sample/*/run.log")
    for word in ("a word of vLLM", "a word of its process", "a word while it runs"):
        assert word in log.read_text()
    assert main([*words, "engine=vllm", "engine.parameters.max_model_len=15"]) == 1
    said = "cannot load the model: ValueError: Available memory (1 GiB) is less\n"
    assert said in capfd.readouterr().err
    assert main(["model=random", *words[2:5], "engine=vllm", f"out={tmp_path / 'no'}"]) == 2
    assert "has none" in capfd.readouterr().err
