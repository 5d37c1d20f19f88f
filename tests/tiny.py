"""A model folder small enough to be made and run in a test."""

from pathlib import Path


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
