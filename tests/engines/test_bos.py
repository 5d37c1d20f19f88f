"""What stands around a prompt: the tokenizer's own special tokens in front, BOS once, nothing behind."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evalkit.core.config import BosRule, ModelConfig
from evalkit.core.types import Message, Request
from evalkit.engines.bos import appended_tokens, token_ids
from evalkit.engines.local.chat_template import render_chat
from evalkit.engines.local.random_model import byte_tokenizer
from evalkit.engines.local.tokens import EndIds, encode
from evalkit.runs.plan.counting import token_counter
from tests.engines.models import template, tokenizer_with

TEXT = "次の質問に答えなさい。 1 + 1 ="
BERT = processors.BertProcessing(("</s>", 1), ("<s>", 0))
ROBERTA = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
ENDS = EndIds(frozenset({1}), frozenset({1}))


def plain(text: str = TEXT) -> list[int]:
    return list(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


PROCESSORS = {
    "in front": (template("<s> $A"), [0], []),
    "EOS": (template("<s> $A </s>"), [0], ["</s>"]),
    "EOS alone": (template("$A </s>"), [], ["</s>"]),
    "two": (template("<s> $A </s> <pad>"), [0], ["</s>", "<pad>"]),
    "two in front": (template("<pad> <s> $A </s>"), [2, 0], ["</s>"]),
    "BOS twice": (template("<s> <s> $A"), [0], []),
    "BERT": (BERT, [0], ["</s>"]),
    "RoBERTa": (ROBERTA, [0], ["</s>"]),
    "in sequence": (processors.Sequence([processors.ByteLevel(), template("<s> $A </s>")]), [0], ["</s>"]),
    "nothing": (template("$A"), [], []),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_post_processors(name: str) -> None:
    """One at a time and many together give the same; a text with BOS of its own gets no second one."""
    processor, front, behind = PROCESSORS[name]
    tokenizer = tokenizer_with(processor)
    requests = [Request("a", TEXT, 1), Request("b", f"<s>{TEXT}", 1), Request("c", "1</s>", 1)]
    found = [one.ids for one in encode(requests, tokenizer, ENDS, BosRule.auto)]
    assert found == [[*front, *plain()], [0, *plain()], [*front, *plain("1"), 1]]
    assert found == [token_ids(str(one.prompt), tokenizer, BosRule.auto) for one in requests]
    assert appended_tokens(tokenizer, BosRule.auto) == behind
    bare = [one.ids for one in encode(requests[:1], tokenizer, ENDS, BosRule.none)]
    assert bare == [plain()] == [token_ids(TEXT, tokenizer, BosRule.none)]
    assert appended_tokens(tokenizer, BosRule.none) == []


def test_tokenizers_that_end_every_text() -> None:
    """T5's rule, and the option add_eos_token of Llama tokenizers."""
    from transformers import LlamaTokenizer, T5Tokenizer

    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "1"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    llama = LlamaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True, add_eos_token=True)
    scored = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", "▁", "a", "b", "1")]
    t5 = T5Tokenizer(vocab=scored, extra_ids=0)
    for tokenizer in (llama, t5):
        whole = tokenizer("a b1")["input_ids"]
        assert whole[-1] == tokenizer.eos_token_id
        assert token_ids("a b1", tokenizer, BosRule.auto) == whole[:-1]


class Stubborn:
    """A tokenizer with code of its own that ends every text, also when told to add nothing."""

    bos_token, bos_token_id, unk_token_id, all_special_ids = "<s>", 0, None, [0, 1]

    def __call__(self, texts: str | list[str], *, add_special_tokens: bool, **_: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": [*([0] if add_special_tokens else []), *plain(texts), 1]}
        return {
            "input_ids": [self(text, add_special_tokens=add_special_tokens)["input_ids"] for text in texts]
        }

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [{0: "<s>", 1: "</s>"}[one] for one in ids]


def test_a_tokenizer_that_always_ends_the_text() -> None:
    tokenizer = Stubborn()
    for rule, front in ((BosRule.auto, [0]), (BosRule.none, [])):
        (found,) = encode([Request("a", TEXT, 1)], tokenizer, ENDS, rule)
        assert found.ids == [*front, *plain()] == token_ids(TEXT, tokenizer, rule)
        assert appended_tokens(tokenizer, rule) == ["</s>"]


def test_words_that_are_all_unknown_stay() -> None:
    """They look alike behind every text, and BOS may be the unknown token: neither is taken away."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "known": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<unk>", eos_token="</s>", unk_token="<unk>"
    )
    assert token_ids("no word here", tokenizer, BosRule.auto) == [0, 0, 0]
    assert token_ids("known known", tokenizer, BosRule.none) == [2, 2]


def test_chats_get_what_the_template_writes() -> None:
    """One BOS where it writes one, none where it writes none, and no EOS behind."""
    tokenizer = tokenizer_with(template("<s> $A </s>"))
    asked = Request("a", (Message("user", "こんにちは"),), 1)
    (found,) = encode([asked], tokenizer, ENDS, BosRule.auto)
    assert found.ids == [0, *plain("\n\n### 指示:\nこんにちは\n\n### 応答:\n")]
    for text, front in (("{{ bos_token }}{{ bos_token }}", [0]), ("", [])):
        tokenizer.chat_template = text + "{{ messages[-1]['content'] }}"
        (found,) = encode([asked], tokenizer, ENDS, BosRule.auto)
        assert found.ids == [*front, *plain("こんにちは")]
        assert render_chat(asked.prompt, tokenizer).endswith("こんにちは")  # type: ignore[arg-type]


def test_a_plan_counts_the_same(tmp_path: Path) -> None:
    tokenizer_with(template("<s> $A </s>")).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    counter = token_counter(ModelConfig(path=str(tmp_path)), BosRule.auto)
    assert counter.exact
    assert counter.ids([TEXT, ""]) == [[0, *plain()], [0]]
