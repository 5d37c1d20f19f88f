"""A model folder small enough to be made and run in a test, and engines as a run builds them."""

from pathlib import Path

from evalkit.core.config import Config
from evalkit.engines import build_engine, identify
from evalkit.engines.base import Engine, Identified
from evalkit.engines.models import ResolvedModel


def save_tiny_model(folder: Path) -> Path:
    """A one-layer Llama with random weights and a byte-level tokenizer, saved to `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from evalkit.engines.local.random_model import byte_tokenizer

    tokenizer = byte_tokenizer()
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def identified(config: Config) -> Identified:
    """The model of a configuration, as a run identifies it."""
    assert config.model is not None
    return identify(config.model, config.engine, config.dtype, offline=config.data.offline)


def engine_of(config: Config, resolved: ResolvedModel) -> Engine:
    """The engine of a configuration, as a run builds it."""
    return build_engine(
        resolved,
        config.engine,
        config.dtype,
        bos=config.protocol.bos,
        follow_generation_config=config.generation.from_model,
    )
