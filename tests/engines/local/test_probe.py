"""The ways rows go through models that batches, packing or shared prefixes could change."""

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evalkit.core.config import PrefixMode
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.types import Completion, Message, Request, Sampling
from evalkit.engines.local import fallback
from evalkit.engines.local.engine import LocalEngine
from evalkit.engines.local.fallback import Batches, Lengths
from evalkit.engines.local.probe import ALONE, LADDER, PACKED, choose_way
from evalkit.engines.local.running_rows import RunningRow
from evalkit.engines.local.tokens import Encoded
from tests.engines.local.test_exactness import Reference, differing
from tests.engines.models import load_plain, local_engine, save_model

JOINED = "batches joined after their prompts"
# Architecture -> the way that is expected; a slower one would be right too, but it would be a loss.
WAYS = {
    "lfm2": JOINED,
    "qwen3-next": JOINED,
    "falcon-h1": JOINED,
    "granite-hybrid": JOINED,
    "mamba2": "padded batches by generate",
    "rwkv": ALONE.name,
    "gpt-oss": JOINED,
    "deepseek-v3": PACKED.name,
    "mpt": JOINED,
    "gpt-neo": JOINED,
    "bart": "batches of one length after a shared prefix",
}
# What the architectures of the exactness tests run in: no probe may push them to a slower way.
FAST = {
    "llama": PACKED.name,
    "gemma3": PACKED.name,
    "mistral": PACKED.name,
    "qwen3": PACKED.name,
    "gpt2": PACKED.name,
    "gemma2": JOINED,
    "bloom": "padded batches after a shared prefix",
}


def make_requests() -> list[Request]:
    """Prompts with and without a prefix in common, of equal and of other lengths, of several lives."""
    chance = random.Random(5)

    def text(length: int) -> str:
        return "".join(chance.choice("abcdefghij \n") for _ in range(length))

    shared = text(30)
    prompts = [shared + text(length) for length in (3, 12, 12, 20)] + [text(n) for n in (2, 15, 15, 70)]
    return [Request(f"r{i}", prompt, (2, 7, 4, 9)[i % 4]) for i, prompt in enumerate(prompts)]


REQUESTS = make_requests()


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("lfm2", tmp_path_factory.mktemp("hybrid") / "lfm2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("plain") / "llama")


def texts(completions: Iterator[Completion]) -> dict[str, str]:
    return {completion.id: completion.raw_text for completion in completions}


@pytest.mark.parametrize("architecture", WAYS)
def test_answers_are_those_of_one_prompt_at_a_time(architecture: str, tmp_path: Path) -> None:
    folder = save_model(architecture, tmp_path / architecture)
    reference = Reference(load_plain(folder), REQUESTS)
    assert len(set(reference.texts.values())) > len(REQUESTS) // 2
    with local_engine(folder, batch_size=3) as engine:
        said = engine.describe()
        assert said["way"] == WAYS[architecture], said
        assert differing(list(engine.generate(REQUESTS)), reference) == []
        assert differing(list(engine.with_batch_size(64).generate(REQUESTS[::-1])), reference) == []


@pytest.mark.parametrize("architecture", FAST)
def test_the_fast_ways_stay(architecture: str, tmp_path: Path) -> None:
    with local_engine(save_model(architecture, tmp_path / architecture)) as engine:
        assert engine.describe()["way"] == FAST[architecture]


def test_the_way_and_the_reasons_are_said(hybrid: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="evalkit"), local_engine(hybrid) as engine:
        said = engine.describe()
    json.dumps(said)
    assert "conv" in said["ruled_out"]["packed"]
    assert (said["way"], said["prefix"]) == (JOINED, "expanded")
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "way" in r.msg]
    assert JOINED in line and "not packed: " in line and "probed in" in line


@pytest.mark.parametrize("way", LADDER[1:], ids=lambda way: way.name)
def test_each_way_serves_a_model_that_allows_all(way: Any, llama: Path) -> None:
    reference = Reference(load_plain(llama), REQUESTS)
    with local_engine(llama, batch_size=3, prefix=PrefixMode.off) as engine:
        engine.way = way
        engine._set_batch_size(3)
        assert differing(list(engine.generate(REQUESTS)), reference) == []


def test_a_way_that_raises_or_errs_is_not_taken(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("evalkit.engines.local.attention.forward", broken)
    monkeypatch.setattr("evalkit.engines.local.fallback.PrefixCache", broken)
    real = fallback._run_generate

    def one_off(rows: Any, loaded: Any) -> Any:
        done = real(rows, loaded)
        for row in rows:
            if len(rows) > 1 and row.given is not None:
                row.offered[-1] = row.offered[-1].roll(1)
        return done

    monkeypatch.setattr("evalkit.engines.local.fallback._run_generate", one_off)
    with local_engine(llama) as engine:
        said = engine.describe()
        assert said["way"] == ALONE.name
        assert "no such kernel" in said["ruled_out"]["packed"]
        assert "differ" in said["ruled_out"]["padded batches by generate"]
        assert differing(list(engine.generate(REQUESTS)), Reference(load_plain(llama), REQUESTS)) == []


@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
def test_what_fails_later_goes_on_one_at_a_time(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(architecture, tmp_path / "model")
    sampled = Sampling(do_sample=True)
    requests = [Request(f"r{i}", "abc" * i + "d", 4 + i, sampling=sampled, seed=i) for i in range(1, 7)]
    with local_engine(folder, batch_size=3) as engine:
        expected = texts(engine.generate(requests))
        calls = []

        def failing(real: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                calls.append(1)
                if len(calls) > 6:
                    raise RuntimeError("a length nobody has tried")
                return real(*arguments, **options)

            return call

        monkeypatch.setattr("evalkit.engines.local.pool.forward", failing(engine_forward()))
        monkeypatch.setattr("evalkit.engines.local.fallback._forward", failing(fallback._forward))
        done = list(engine.generate(requests))
    assert len(calls) == 7
    assert sorted(one.id for one in done) == sorted(one.id for one in requests)
    assert texts(iter(done)) == expected
    assert "a length nobody has tried" in caplog.text


def engine_forward() -> Any:
    from evalkit.engines.local import attention

    return attention.forward


def test_a_model_that_cannot_generate_is_one_message(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *arguments: Any, **options: Any) -> Any:
        raise ValueError("a language must be set")

    monkeypatch.setattr("transformers.LlamaForCausalLM.generate", broken)
    with local_engine(llama) as engine, pytest.raises(EvalkitError, match=r"(?s)language must be set.*r0"):
        list(engine.generate(REQUESTS))
    with pytest.raises(InputError, match=r"engine\.prefix=merged"):
        local_engine(llama, prefix=PrefixMode.merged)


def test_a_sample_of_a_hybrid_depends_on_its_own_seed_only(hybrid: Path) -> None:
    sampling = Sampling(do_sample=True, temperature=1.5, top_p=0.9)
    chat = (Message("user", "abc"), Message("assistant", "de"), Message("user", "f"))
    requests = [Request(f"r{i}", "ab" * i, 9, sampling=sampling, seed=i) for i in range(1, 7)]
    requests.append(Request("chat", chat, 9, sampling=sampling, seed=9))
    with local_engine(hybrid, batch_size=4) as engine:
        crowd = texts(engine.generate(requests))
        alone = {}
        for request in requests:
            alone |= texts(engine.generate([request]))
    assert crowd == alone
    assert len(set(crowd.values())) > 4


def test_windows_longer_than_the_probe_are_made_small_for_it(tmp_path: Path) -> None:
    from evalkit.engines.local.probe import _QUICK, _Case, _small_windows

    folder = save_model("gpt-oss", tmp_path / "model", sliding_window=100)
    with local_engine(folder, prefix=PrefixMode.off, batch_size=1) as engine:
        model = engine._model().model
        with _small_windows(model) as there:
            assert there and model.config.sliding_window < 16
            assert model.model.layers[0].self_attn.sliding_window < 16
        assert model.config.sliding_window == model.model.layers[0].self_attn.sliding_window == 100
        case = _Case(engine._model(), _QUICK)
    assert case.windows and case.small


def test_a_window_that_cannot_be_made_small_is_not_padded(tmp_path: Path) -> None:
    # GPT-Neo builds its window into a buffer: padding between prefix and prompt would show beyond it only.
    with local_engine(save_model("gpt-neo", tmp_path / "model")) as engine:
        reasons = engine.describe()["ruled_out"]
    assert reasons["padded batches after a shared prefix"] == "a window that is longer than the probe"


def test_a_context_shorter_than_the_probe(tmp_path: Path) -> None:
    folder = save_model("gpt2", tmp_path / "gpt2", n_positions=8)
    with local_engine(folder) as engine:
        assert engine.describe()["way"] == PACKED.name
        (done,) = engine.generate([Request("a", "ab", 3)])
    assert done.new_tokens == 3


def test_nothing_is_probed_where_there_is_no_choice(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_engine(llama) as engine:
        loaded = engine._model()

        def unwanted(*arguments: Any, **options: Any) -> Any:
            raise AssertionError("probed")

        monkeypatch.setattr("evalkit.engines.local.fallback._run_generate", unwanted)
        choice = choose_way(loaded, PrefixMode.off, 1)
    assert not isinstance(choice, str)
    assert (choice.way, choice.ruled_out) == (ALONE, {})


def test_rows_that_ended_in_a_batch_that_ran_out_of_memory_are_not_lost(llama: Path) -> None:
    with local_engine(llama) as engine:
        rows = [_row(engine, index) for index in range(4)]

        def run(some: Any) -> Iterator[RunningRow]:
            for row in some:
                while row.add(5):
                    pass
                if len(some) > 2:
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return iter(some)

        batches = Batches(engine._model().model, 4)
        (batch,) = batches.of(rows, Lengths.padded)
        done = list(batches.attempt(batch, run))
    assert sorted(row.request.id for row in done) == ["r0", "r1", "r2", "r3"]
    assert [len(row.new) for row in done] == [2] * 4


def _row(engine: LocalEngine, index: int) -> RunningRow:
    encoded = Encoded(Request(f"r{index}", "", 2), [7] * (index + 1), frozenset())
    return RunningRow(encoded, engine._decoder, Sampling())
