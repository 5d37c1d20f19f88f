"""A model that thinks as a script says: a Llama whose next token depends on the last one only."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

START, END = "<think>", "</think>"
EOS = "<|eot|>"
# A blank line and the words of an answer stand within the thought; the answer is 3.
SCRIPT = (START, "よく考える。", "\n\n", "答えは4かな", "。いや、", END, "\n", "3")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if open_thought %}<think>{% endif %}{% endif %}"
    "{# models of this family write <think> and </think> #}"
)


def save_thinking_model(folder: Path, script: Sequence[str] = SCRIPT, *, template: str = TEMPLATE) -> Path:
    """Writes a model that answers every chat with `script`; its pieces must differ from each other."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    assert len(set(script)) == len(script)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: place for place, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|system|>", "<|user|>", "<|assistant|>", EOS]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)
    fast.add_special_tokens({"additional_special_tokens": specials[:3]})
    fast.add_tokens([piece for piece in script if not piece.startswith("<|")])
    fast.add_special_tokens({"extra_special_tokens": [piece for piece in script if piece.startswith("<|")]})
    fast.chat_template = template
    size = -(-len(fast) // 8) * 8
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    ids = [fast.convert_tokens_to_ids(piece) for piece in ("<|assistant|>", *script, EOS)]
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        # Whatever is not in the script ends the answer; a little noise, so that no two logits are equal.
        model.lm_head.weight.add_(1e-3 * torch.rand(size, size))
        model.lm_head.weight[fast.eos_token_id] += 0.5
        for before, after in pairwise(ids):
            model.lm_head.weight[after, before] += 1.0
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
