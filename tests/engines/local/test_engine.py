"""The local engine's contract: bad input, BOS, chat, ends, sampling, and what it says of itself."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evalkit.core.config import (
    Attention,
    BosRule,
    Config,
    EngineConfig,
    GenerationConfig,
    ModelConfig,
    PrefixMode,
    ProtocolConfig,
    RandomShape,
)
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.types import Completion, Message, Request, Sampling
from evalkit.engines.local.engine import LocalEngine
from evalkit.engines.local.random_model import byte_tokenizer
from evalkit.engines.local.tokens import EndIds
from evalkit.engines.models import resolve
from tests.engines.models import load_plain, local_engine, save_model
from tests.tiny import engine_of

MODES = [PrefixMode.merged, PrefixMode.expanded, PrefixMode.off]
CHAT = (Message("system", "規則"), Message("user", "こんにちは"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama-gqa", tmp_path_factory.mktemp("model") / "llama", max_position_embeddings=64)


@pytest.fixture(scope="module")
def modes(folder: Path) -> Iterator[dict[PrefixMode, LocalEngine]]:
    """The model of `folder` in each mode."""
    with ExitStack() as stack:
        yield {mode: stack.enter_context(local_engine(folder, prefix=mode)) for mode in MODES}


def random_engine(**options: Any) -> LocalEngine:
    model = ModelConfig(name="random", random=RandomShape(vocab=259, initializer_range=0.3))
    engine = EngineConfig(name="local", device="cpu")
    built = engine_of(Config(model=model, engine=engine, **options), resolve(model, offline=True))
    assert isinstance(built, LocalEngine)
    return built


def by_id(completions: Any) -> dict[str, Completion]:
    return {completion.id: completion for completion in completions}


@pytest.mark.parametrize("mode", MODES)
def test_requests_that_cannot_be_answered(folder: Path, mode: PrefixMode) -> None:
    config = Config(protocol=ProtocolConfig(bos=BosRule.none))
    with local_engine(folder, config=config, prefix=mode) as engine:
        done = by_id(
            engine.generate([Request("empty", "", 5), Request("none", "ab", 0), Request("ok", "ab", 5)])
        )
    assert done["ok"].finish_reason != "error" and done["ok"].new_tokens > 0
    for name, reason in (("empty", "empty"), ("none", "max_new_tokens is 0")):
        assert (done[name].finish_reason, done[name].text, done[name].new_tokens) == ("error", "", 0)
        assert reason in (done[name].error or "")


@pytest.mark.parametrize("mode", MODES)
def test_a_repeated_id_is_refused(modes: dict[PrefixMode, LocalEngine], mode: PrefixMode) -> None:
    with pytest.raises(InputError, match="same id"):
        list(modes[mode].generate([Request("a", "x", 1), Request("b", "x", 1), Request("a", "y", 1)]))


@pytest.mark.parametrize("mode", MODES)
def test_no_requests_no_completions(modes: dict[PrefixMode, LocalEngine], mode: PrefixMode) -> None:
    assert list(modes[mode].generate([])) == []


@pytest.mark.parametrize("mode", MODES)
def test_beyond_a_rotary_context_it_goes_on_and_is_marked(
    modes: dict[PrefixMode, LocalEngine], mode: PrefixMode
) -> None:
    done = by_id(modes[mode].generate([Request("long", "x" * 80, 4), Request("short", "x" * 8, 4)]))
    assert done["long"].over_context and done["long"].new_tokens == 4
    assert done["long"].prompt_tokens == 81
    assert not done["short"].over_context


@pytest.mark.parametrize("mode", MODES)
def test_beyond_learned_positions_there_is_no_answer(tmp_path: Path, mode: PrefixMode) -> None:
    folder = save_model("gpt2", tmp_path / "gpt2", n_positions=40)
    requests = [Request("over", "x" * 60, 4), Request("cut", "x" * 30, 20), Request("fits", "x" * 30, 10)]
    with local_engine(folder, prefix=mode) as engine:
        done = by_id(engine.generate(requests))
    for name in ("over", "cut"):
        assert (done[name].finish_reason, done[name].text, done[name].over_context) == ("error", "", True)
        assert "40 positions" in (done[name].error or "")
    assert (done["fits"].finish_reason, done["fits"].new_tokens) == ("length", 10)


@pytest.mark.parametrize("mode", MODES)
def test_broken_weights_are_named_at_once(tmp_path: Path, mode: PrefixMode) -> None:
    folder = save_model("llama", tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][7] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    wanted = PrefixMode.off if mode is PrefixMode.off else PrefixMode.auto
    with local_engine(folder, prefix=wanted) as engine, pytest.raises(EvalkitError, match="not a number"):
        list(engine.generate([Request("a", "abc", 3)]))


@pytest.mark.parametrize("mode", MODES)
def test_a_model_without_eos_runs_to_its_length(folder: Path, tmp_path: Path, mode: PrefixMode) -> None:
    bare = save_model("llama-gqa", tmp_path / "bare", eos_token_id=None)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (bare / name).exists():
            settings = json.loads((bare / name).read_text())
            settings.pop("eos_token", None)
            (bare / name).write_text(json.dumps(settings))
    with local_engine(bare, prefix=mode) as engine:
        assert engine._model().ends == (frozenset(), frozenset())
        (done,) = engine.generate([Request("a", "abc", 30)])
    assert (done.finish_reason, done.new_tokens) == ("length", 30)


@pytest.mark.parametrize("mode", MODES)
def test_ends(mode: PrefixMode, tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "llama", seed=3)
    prompt = torch.tensor([byte_tokenizer()("abc")["input_ids"]])
    new = (
        load_plain(folder).generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
    )
    with local_engine(folder, prefix=mode) as engine:
        (free,) = engine.generate([Request("free", "abc", 12)])
        assert (free.finish_reason, free.new_tokens) == ("length", 12)
        # The fourth token as EOS: it is counted, and the text ends before it.
        engine._model().ends = EndIds(frozenset({new[3]}), frozenset())
        (ended,) = engine.generate([Request("ended", "abc", 12)])
    assert (ended.finish_reason, ended.new_tokens) == ("stop", new.index(new[3]) + 1)
    assert free.raw_text.startswith(ended.raw_text)
    stop = next(character for character in free.text if character.isascii())
    with local_engine(folder, prefix=mode) as engine:
        (stopped,) = engine.generate([Request("stopped", "abc", 12, stop=("\n\n", stop))])
    assert stopped.finish_reason == "stop_string"
    assert stopped.text == free.text[: free.text.index(stop) + 1]


def test_bos_by_rule_and_never_twice() -> None:
    counts = {}
    for rule in BosRule:
        with random_engine(protocol=ProtocolConfig(bos=rule)) as engine:
            done = by_id(engine.generate([Request("plain", "abc", 1), Request("written", "<s>abc", 1)]))
        counts[rule] = (done["plain"].prompt_tokens, done["written"].prompt_tokens)
    assert counts == {BosRule.auto: (4, 4), BosRule.none: (3, 4)}


def test_chat_goes_through_the_template_without_a_second_bos() -> None:
    text = "<s>規則\n\n### 指示:\nこんにちは\n\n### 応答:\n"
    with random_engine() as engine:
        done = by_id(engine.generate([Request("chat", CHAT, 6), Request("text", text, 6)]))
    assert done["chat"].prompt_tokens == done["text"].prompt_tokens
    assert done["chat"].raw_text == done["text"].raw_text


def test_chat_without_a_template(folder: Path, tmp_path: Path) -> None:
    bare = save_model("llama", tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with local_engine(bare) as engine, pytest.raises(InputError, match=r"no chat template"):
        list(engine.generate([Request("chat", CHAT, 6)]))
    model = ModelConfig(path=str(bare), chat_template="{{ messages[-1]['content'] }}")
    config = Config(model=model, engine=EngineConfig(name="local"))
    engine = engine_of(config, resolve(model, offline=True))
    (done,) = engine.generate([Request("chat", CHAT, 1)])
    assert done.prompt_tokens == len("こんにちは".encode())


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_depends_on_its_own_seed_only(
    modes: dict[PrefixMode, LocalEngine], mode: PrefixMode
) -> None:
    sampling = Sampling(do_sample=True, temperature=1.5, top_p=0.9)
    alone = Request("me", "abc", 20, sampling=sampling, seed=5)
    others = [Request(f"o{i}", "ab" * i, 20, sampling=sampling, seed=5 + i) for i in range(1, 8)]
    engine = modes[mode].with_batch_size(3)
    (first,) = engine.generate([alone])
    crowd = by_id(engine.generate([*others, alone]))
    again = by_id(engine.generate([alone, *reversed(others)]))
    assert first == crowd["me"] == again["me"]
    assert len({crowd[f"o{i}"].text for i in range(1, 8)}) > 4
    same_prompt = Request("you", "abc", 20, sampling=sampling, seed=6)
    (other,) = modes[mode].generate([same_prompt])
    assert other.text != first.text


def test_all_modes_sample_alike(modes: dict[PrefixMode, LocalEngine]) -> None:
    requests = [
        Request(f"r{i}", "abc" * 20 + "x" * i, 9, sampling=Sampling(do_sample=True), seed=i) for i in range(6)
    ]
    texts = [
        {key: done.text for key, done in by_id(engine.generate(requests)).items()}
        for engine in modes.values()
    ]
    assert texts[0] == texts[1] == texts[2]


def test_generation_config_is_followed_only_when_told(folder: Path, tmp_path: Path) -> None:
    sampler = save_model("llama", tmp_path / "llama")
    own = {"do_sample": True, "temperature": 2.5, "top_p": 0.99, "eos_token_id": [1, 9]}
    (sampler / "generation_config.json").write_text(json.dumps(own))
    request = [Request("a", "abc", 15, seed=1)]
    with local_engine(sampler) as engine:
        (greedy,) = engine.generate(request)
        assert engine.describe()["generation_config"]["temperature"] == 2.5
        assert engine._model().ends == (frozenset({1}), frozenset({1, 9}))
    with local_engine(sampler, config=Config(generation=GenerationConfig(from_model=True))) as engine:
        (sampled,) = engine.generate(request)
    with local_engine(sampler) as engine:
        (asked,) = engine.generate(
            [Request("a", "abc", 15, sampling=Sampling(True, 2.5, 0.99, top_k=50), seed=1)]
        )
    assert sampled.text == asked.text != greedy.text


def test_describe_says_how(folder: Path) -> None:
    with local_engine(folder, batch_size=7) as engine:
        said = engine.describe()
    json.dumps(said)
    assert (said["prefix"], said["rows"], said["device"], said["dtype"]) == ("merged", 7, "cpu", "float32")
    assert said["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "CUDA devices"),
        ({"device": "abacus"}, "unknown device"),
        ({"attention": Attention.flash}, "flash attention cannot be used"),
    ],
)
def test_options_this_machine_cannot_satisfy(folder: Path, options: dict[str, Any], message: str) -> None:
    model = ModelConfig(path=str(folder))
    config = Config(model=model, engine=EngineConfig(**({"name": "local", "device": "cpu"} | options)))
    with pytest.raises(InputError, match=message):
        engine_of(config, resolve(model, offline=True))


def test_a_forced_way_that_does_not_serve(tmp_path: Path) -> None:
    folder = save_model("gemma2", tmp_path / "gemma2")
    with pytest.raises(InputError, match=r"(?s)engine.prefix=merged.*softcap"):
        local_engine(folder, prefix=PrefixMode.merged)
    with local_engine(folder) as engine:
        assert engine.describe()["prefix"] == "expanded"


def test_an_unknown_engine() -> None:
    model = ModelConfig(name="random", random=RandomShape())
    with pytest.raises(InputError, match="unknown engine 'abacus'"):
        engine_of(Config(model=model, engine=EngineConfig(name="abacus")), resolve(model, offline=True))


def test_device_map_puts_the_model_through_accelerate(
    folder: Path, modes: dict[PrefixMode, LocalEngine]
) -> None:
    pytest.importorskip("accelerate")
    requests = [Request(f"r{i}", "abc" * 9 + "x" * i, 6) for i in range(4)]
    plain = by_id(modes[PrefixMode.merged].generate(requests))
    with local_engine(folder, device_map="auto") as engine:
        mapped = by_id(engine.generate(requests))
    assert mapped == plain


def test_dynamic_rotary_frequencies_run_alone(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = save_model("llama", tmp_path / "llama", max_position_embeddings=40, rope_parameters=rope)
    requests = [Request("long", "long text " * 6, 8)] + [Request(f"r{i}", "ab" * i, 8) for i in range(1, 6)]
    with local_engine(folder) as engine:
        together = by_id(engine.generate(requests))
        assert engine.prefix is PrefixMode.merged
    with local_engine(folder, prefix=PrefixMode.off, batch_size=1) as engine:
        for request in requests:
            (alone,) = engine.generate([request])
            assert together[request.id] == alone
