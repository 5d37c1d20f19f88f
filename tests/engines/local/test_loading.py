"""Loading is strict: no answer comes from weights, files or tokenizers that are not the model's own."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from evalkit.core.config import Config, EngineConfig, ModelConfig
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.types import Request
from evalkit.engines.local.random_model import byte_tokenizer
from evalkit.engines.local.tokenizer import load_tokenizer
from evalkit.engines.models import assembled, resolve
from evalkit.engines.models.whole import refuse_quantised
from tests.engines.models import local_engine, save_model
from tests.tiny import engine_of

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 383328\n"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama-gqa", tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    changed = {name: weight.clone() for name, weight in change(safetensors.torch.load_file(path)).items()}
    safetensors.torch.save_file(changed, path, metadata={"format": "pt"})


def configure(folder: Path, name: str = "config.json", **changes: Any) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(content | changes), encoding="utf-8")


def refusal(folder: Path, **model: Any) -> str:
    """The message of the refusal; exit code 2."""
    options = ModelConfig(path=str(folder), **model)
    config = Config(model=options, engine=EngineConfig(name="local", device="cpu"))
    with pytest.raises(EvalkitError) as caught:
        engine_of(config, resolve(options, offline=True))
    assert caught.value.exit_code == 2
    return caught.value.message()


# --- weights -------------------------------------------------------------------------------------


def test_weights_that_are_missing_are_named(folder: Path) -> None:
    rewrite(folder, lambda w: {name: w[name] for name in w if "layers.1.mlp" not in name})
    message = refusal(folder)
    assert "3 weights" in message and "model.layers.1.mlp.down_proj.weight" in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_forward_module.model."])
def test_a_wrapped_models_names(folder: Path, prefix: str) -> None:
    rewrite(folder, lambda w: {prefix + name: w[name] for name in w})
    assert repr(prefix) in refusal(folder)


def test_other_shapes_are_named(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda w: w | {name: w[name][:90]})
    assert f"{name} is 90x48, not 96x48" in refusal(folder)


def test_empty_weights_of_zero_3(folder: Path) -> None:
    rewrite(folder, lambda w: {name: torch.zeros(0) for name in w})
    assert "another shape" in refusal(folder)


def test_an_expert_that_is_missing(tmp_path: Path) -> None:
    shape = SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2}
    folder = saved(tmp_path / "moe", transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape)))
    with local_engine(folder) as engine:
        assert "unused_weights" not in engine.describe()
    rewrite(folder, lambda w: {name: w[name] for name in w if "experts.3.w1" not in name})
    message = refusal(folder)
    assert "experts.gate_up_proj" in message and "cannot be put together" in message


@pytest.mark.parametrize("stored_twice", [False, True])
def test_a_tied_head(tmp_path: Path, stored_twice: bool) -> None:
    config = transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True)
    folder = saved(tmp_path / "tied", transformers.LlamaForCausalLM(config))
    if stored_twice:
        rewrite(folder, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"]})
    with local_engine(folder) as engine:
        assert "unused_weights" not in engine.describe()


def test_a_head_that_is_said_to_be_tied_and_is_not(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True)
    folder = saved(tmp_path / "model", transformers.LlamaForCausalLM(config))
    configure(folder, tie_word_embeddings=False)
    assert "lm_head.weight" in refusal(folder)


def test_weights_without_a_place_are_said_and_recorded(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(folder, lambda w: w | {"v_head.weight": torch.zeros(3)})
    with caplog.at_level(logging.WARNING, "evalkit"), local_engine(folder) as engine:
        assert engine.describe()["unused_weights"] == {"count": 1, "names": ["v_head.weight"]}
    assert "v_head.weight" in caplog.text


# --- other kinds of models -----------------------------------------------------------------------

_BERT = {**SHAPE, "num_key_value_heads": None}
OTHERS: dict[str, Callable[[], Any]] = {
    "reward": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True)
    ),
    "tokens": lambda: transformers.LlamaForTokenClassification(transformers.LlamaConfig(**SHAPE)),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_BERT)),
    "bert with a head": lambda: transformers.BertLMHeadModel(transformers.BertConfig(**_BERT)),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ),
    "vit": lambda: transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_does_not_continue_texts(tmp_path: Path, kind: str) -> None:
    assert "not a causal language model" in refusal(saved(tmp_path / "model", OTHERS[kind]()))


def test_bert_as_a_decoder_is_causal(tmp_path: Path) -> None:
    model = transformers.BertLMHeadModel(transformers.BertConfig(**_BERT, is_decoder=True))
    with local_engine(saved(tmp_path / "model", model)) as engine:
        (done,) = engine.generate([Request("a", "abc", 2)])
    assert done.new_tokens == 2


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"quant_method": "superq", "bits": 4}, "does not know the quantisation 'superq'"),
        ({"bits": 4, "group_size": 64}, "no name"),
        ({"quant_method": "eetq"}, "pip install kernels"),
    ],
)
def test_quantisations_that_cannot_be_read(folder: Path, section: dict[str, Any], words: str) -> None:
    configure(folder, quantization_config=section)
    assert words in refusal(folder)


UP = "model.layers.0.mlp.up_proj"
QUANTISED: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "fp8 with scales": (
        lambda w: {
            f"{UP}.weight": w[f"{UP}.weight"].to(torch.float8_e4m3fn),
            f"{UP}.weight_scale_inv": torch.ones(1, 1),
        },
        f"1 weights as F8_E4M3, and config.json has no quantization_config: {UP}.weight",
    ),
    "int8 of bitsandbytes": (
        lambda w: {f"{UP}.weight": w[f"{UP}.weight"].to(torch.int8), f"{UP}.SCB": torch.ones(96)},
        "1 weights as I8",
    ),
    "bool": (lambda w: {f"{UP}.weight": w[f"{UP}.weight"] > 0}, "1 weights as BOOL"),
    "a bias": (lambda w: {f"{UP}.bias": torch.ones(96, dtype=torch.int16)}, "1 weights as I16"),
    "scales alone": (lambda w: {f"{UP}.weight_scale": torch.ones(1)}, "1 parts of quantised weights"),
    "a scale that nothing applies": (lambda w: {f"{UP}.scale": torch.ones(1)}, f"{UP}.scale"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_without_a_rule(folder: Path, kind: str) -> None:
    change, words = QUANTISED[kind]
    rewrite(folder, lambda w: w | change(w))
    assert words in refusal(folder)


def test_quantised_weights_with_a_rule_for_vllm_only(folder: Path) -> None:
    rewrite(folder, lambda w: w | QUANTISED["bool"][0](w))
    (folder / "hf_quant_config.json").write_text("{}", encoding="utf-8")
    assert "only vLLM reads hf_quant_config.json: engine=vllm" in refusal(folder)
    refuse_quantised(folder, by_vllm=True)


def test_whole_numbers_that_are_no_weights(folder: Path) -> None:
    """Positions, masks and counters of old checkpoints; parameters of a loaded model count as weights."""
    old = {
        "model.layers.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "model.embeddings.position_ids": torch.arange(4)[None],
        "model.logit_scale": torch.ones(1),
    }
    rewrite(folder, lambda w: w | old)
    refuse_quantised(folder, unused=old)
    with pytest.raises(InputError, match="1 weights as I64"):
        refuse_quantised(folder, {"model.embeddings.position_ids"})


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"]
)
def test_a_pointer_of_git_lfs(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(POINTER, encoding="utf-8")
    if name == "config.json":
        assert "config.json" in refusal(folder)
    else:
        message = refusal(folder)
        assert name in message and "git lfs pull" in message


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_file_that_ends_in_the_middle(folder: Path, name: str, share: float) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert name in refusal(folder)


def test_a_link_to_nothing(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.unlink()
    path.symlink_to(folder / "gone")
    assert "tokenizer_config.json is a link" in refusal(folder)


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    model.save_pretrained(folder, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(folder)
    local_engine(folder).close()
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in refusal(folder)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("class Odd(Exception): pass\nraise Odd('an odd thing')", "an odd thing"),
        ("raise AttributeError", "AttributeError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import nowhere_to_be_found\nclass Own: pass", "pip install nowhere_to_be_found"),
    ],
)
def test_code_of_the_model_that_raises(
    folder: Path, code: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "modeling_own.py").write_text(code, encoding="utf-8")
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    with caplog.at_level(logging.INFO, "evalkit"):
        message = refusal(folder, trust_remote_code=True)
    assert words in message and "Traceback" not in message and "Traceback" in caplog.text


def test_a_configuration_of_other_types(folder: Path) -> None:
    configure(folder, hidden_size="many")
    message = refusal(folder)
    assert "hidden_size" in message and "config.json" in message


# --- tokenizers ----------------------------------------------------------------------------------


def test_eos_without_an_embedding(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{n}>" for n in range(50)])
    tokenizer.add_special_tokens({"eos_token": "<|new|>"})
    tokenizer.save_pretrained(folder)
    message = refusal(folder)
    assert "eos_token '<|new|>'" in message and "300 embeddings" in message


def test_a_prompt_with_a_token_that_has_no_embedding(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{n}>" for n in range(50)])
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.WARNING, "evalkit"), local_engine(folder) as engine:
        assert "9 tokens of the tokenizer have no embedding" in caplog.text
        assert [done.error for done in engine.generate([Request("fine", "<1>a", 2)])] == [None]
        with pytest.raises(InputError) as caught:
            list(engine.generate([Request("fine", "a", 2), Request("task/7", "a<49>", 2)]))
    assert "'<49>' with the id 308" in caught.value.what and "task/7" in (caught.value.where or "")


def tokenizer_of(folder: Path) -> Any:
    return load_tokenizer(assembled(ModelConfig(path=str(folder)), "x", (folder, {}), (None, {})))


def sentencepiece(folder: Path, name: str, kind: str, model_type: str) -> Any:
    """Puts a trained sentencepiece model in place of tokenizer.json; gives sentencepiece's own reader."""
    import sentencepiece as library

    corpus = folder / "corpus"
    corpus.write_text(
        "\n".join(f"質問に答えてください。東京の数は{n} hello world {n * 7}" for n in range(200)),
        encoding="utf-8",
    )
    library.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "made"), vocab_size=75, model_type=model_type,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.json").unlink()
    (folder / "made.model").rename(folder / name)
    settings = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return library.SentencePieceProcessor(model_file=str(folder / name))


@pytest.mark.parametrize(
    ("name", "kind", "model_type"),
    [
        ("tokenizer.model", "LlamaTokenizer", "bpe"),
        ("tokenizer.model", "LlamaTokenizer", "unigram"),
        ("spiece.model", "T5Tokenizer", "unigram"),
    ],
)
def test_sentencepiece_only(folder: Path, name: str, kind: str, model_type: str) -> None:
    reader = sentencepiece(folder, name, kind, model_type)
    tokenizer = tokenizer_of(folder)
    texts = ["質問に答えてください。東京の数は12 hello world"]
    if model_type == "unigram":
        texts.append("東京の鷗")
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reader.encode(text)
    local_engine(folder).close()


def test_a_class_that_cannot_read_its_file(folder: Path) -> None:
    sentencepiece(folder, "spiece.model", "T5Tokenizer", "bpe")
    assert "T5Tokenizer does not cut texts as its file does" in refusal(folder)


def test_a_tokenizer_file_of_another_kind_than_its_class(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("▁", -2.0),
        ("東", -4.0),
        ("京", -4.0),
        ("東京", -3.0),
    ]
    made = Tokenizer(models.Unigram(letters, 0, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.save(str(folder / "tokenizer.json"))
    configure(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizer", unk_token="<unk>")
    assert tokenizer_of(folder)("東京鷗", add_special_tokens=False)["input_ids"] == [3, 6, 0]


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.model", b""), ("tokenizer.model", b"\x0a\x0e\x0a\x05<unk"), ("spiece.model", None)],
)
def test_a_sentencepiece_file_that_is_damaged_or_misnamed(
    folder: Path, name: str, content: bytes | None
) -> None:
    sentencepiece(folder, "tokenizer.model", "LlamaTokenizer", "bpe")
    if content is None:
        (folder / "tokenizer.model").rename(folder / name)
    else:
        (folder / name).write_bytes(content)
    assert "tokenizer" in refusal(folder)


def test_a_tokenizer_that_needs_another_package(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\na\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "sudachi"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert "pip install sudachipy" in refusal(folder)


# --- the other ways in ---------------------------------------------------------------------------


def test_vllm_and_ray_look_at_the_files_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import ray

    from tests.engines import fake_vllm

    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    monkeypatch.setitem(sys.modules, "vllm.platforms", fake_vllm.platforms)
    made = len(fake_vllm.MADE)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for name in ("vllm", "ray"):
        options = ModelConfig(path=str(folder))
        config = Config(model=options, engine=EngineConfig(name=name, device="cpu"))
        with pytest.raises(InputError, match=r"model\.safetensors has"):
            engine_of(config, resolve(options, offline=True))
    assert len(fake_vllm.MADE) == made and not ray.is_initialized()
