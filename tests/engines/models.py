"""Tiny random models of several architectures, saved as folders, and byte tokenizers; no network."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from evalkit.core.config import Config, EngineConfig, ModelConfig
from evalkit.engines.local.engine import LocalEngine
from evalkit.engines.local.random_model import byte_tokenizer
from evalkit.engines.models import resolve
from tests.tiny import engine_of

_COMMON = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
_LEARNED = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

SPECIAL = {"<s>": 0, "</s>": 1, "<pad>": 2}
# Name -> (configuration class, its settings).
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _COMMON | {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "llama-gqa": ("LlamaConfig", _COMMON | _GQA),
    "gemma3": ("Gemma3TextConfig", _COMMON | _GQA | _SLIDING | {"query_pre_attn_scalar": 12}),
    "mistral": ("MistralConfig", _COMMON | _GQA | {"sliding_window": 5}),
    "qwen3": ("Qwen3Config", _COMMON | _GQA),
    "gemma2": ("Gemma2Config", _COMMON | _GQA | _SLIDING | {"query_pre_attn_scalar": 12}),
    "gpt2": (
        "GPT2Config",
        _LEARNED | {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 200, "initializer_range": 0.3},
    ),
    "bloom": (
        "BloomConfig",
        _LEARNED | {"hidden_size": 48, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    ),
    # Convolutions, state spaces and linear attention beside attention.
    "lfm2": (
        "Lfm2Config",
        _COMMON | _GQA | {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 16},
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        _COMMON
        | _GQA
        | _EXPERTS
        | {
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "shared_expert_intermediate_size": 24,
        },
    ),
    "falcon-h1": ("FalconH1Config", _COMMON | _GQA | _MAMBA | {"mamba_d_ssm": 96, "mamba_d_head": 12}),
    "granite-hybrid": (
        "GraniteMoeHybridConfig",
        _COMMON
        | _GQA
        | _MAMBA
        | {
            "layer_types": ["mamba", "attention", "mamba"],
            "mamba_d_head": 12,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 48,
        },
    ),
    # No attention at all.
    "mamba2": (
        "Mamba2Config",
        _COMMON | {"num_heads": 8, "head_dim": 12, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "rwkv": ("RwkvConfig", _COMMON | {"attention_hidden_size": 48}),
    # Sinks and windows; keys and values from a common latent; places that count from the left.
    "gpt-oss": (
        "GptOssConfig",
        _COMMON | _GQA | _SLIDING | _EXPERTS | {"num_local_experts": 4},
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        _COMMON
        | _EXPERTS
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "mpt": (
        "MptConfig",
        _LEARNED | {"d_model": 48, "n_layers": 2, "n_heads": 4, "initializer_range": 0.3},
    ),
    "gpt-neo": (
        "GPTNeoConfig",
        _COMMON
        | {
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 64,
        },
    ),
    "bart": (
        "BartConfig",
        _LEARNED
        | {
            "d_model": 48,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 96,
            "max_position_embeddings": 512,
            "init_std": 0.3,
            "is_encoder_decoder": False,
            "is_decoder": True,
            "add_cross_attention": False,
            # Greedy decoding alone decides: `generate` would end every answer at its limit with EOS.
            "forced_eos_token_id": None,
        },
    ),
}


def save_model(architecture: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A model folder with random weights and the byte tokenizer."""
    name, settings = ARCHITECTURES[architecture]
    config = getattr(transformers, name)(**(settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def local_engine(folder: Path, *, config: Config | None = None, **engine: Any) -> LocalEngine:
    """The local engine on a model folder, with these engine options."""
    model = ModelConfig(path=str(folder))
    config = config or Config()
    config.model, config.engine = model, EngineConfig(name="local", device="cpu", **engine)
    built = engine_of(config, resolve(model, offline=True))
    assert isinstance(built, LocalEngine)
    return built


def load_plain(folder: Path) -> PreTrainedModel:
    """The same model as transformers loads it, for references made without evalkit."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def template(single: str) -> Any:
    return processors.TemplateProcessing(single=single, special_tokens=list(SPECIAL.items()))


def tokenizer_with(processor: Any, **options: Any) -> Any:
    core = Tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str())
    if processor is not None:
        core.post_processor = processor
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | options,
        chat_template=byte_tokenizer().chat_template,
    )
