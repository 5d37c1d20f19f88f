"""Texts -> token ids without loading a model, or an estimate where the tokenizer is missing.

The estimate was measured on the prompts of the suite jaster with the llm-jp-3 tokenizer
(docs/scaling.md).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from evalkit.core.config import BosRule, ModelConfig
from evalkit.engines.bos import CHAT_RULE, batch_token_ids
from evalkit.runs.plan.shapes import model_file

# Tokens of llm-jp-3's tokenizer per ASCII character and per any other character.
PER_ASCII = 0.28
PER_OTHER = 0.62


@dataclass(frozen=True)
class TokenCounter(ABC):
    """Counts tokens.

    Attributes:
        how: by what, for people.
        exact: whether ids are the tokenizer's own.
    """

    how: str
    exact: ClassVar[bool] = True

    @abstractmethod
    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts, BOS by the rule; equal beginnings have equal ids."""

    def lengths(self, ids: Sequence[int]) -> float:
        """The number of tokens; an estimate unless `exact`."""
        return float(len(ids))


class _TransformersCall:
    """A tokenizer.json with the call of a transformers tokenizer; the file does not name its BOS."""

    bos_token = bos_token_id = unk_token_id = None
    all_special_ids = ()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: list[str], *, add_special_tokens: bool, **_: Any) -> dict[str, Any]:
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [one.ids for one in encoded]}


@dataclass(frozen=True)
class FileTokenizer(TokenCounter):
    """A tokenizer.json."""

    tokenizer: Any
    bos: BosRule

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids that the engine computes."""
        return batch_token_ids(texts, _TransformersCall(self.tokenizer), [self.bos] * len(texts))


@dataclass(frozen=True)
class ChatTokenizer(TokenCounter):
    """A whole tokenizer, for rendered chats: their template has written the special tokens."""

    tokenizer: Any

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids that the engine computes."""
        return batch_token_ids(texts, self.tokenizer, [CHAT_RULE] * len(texts))


@dataclass(frozen=True)
class Bytes(TokenCounter):
    """The byte-level tokenizer of `model=random`."""

    bos: BosRule

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """BOS and the bytes."""
        first = [256] if self.bos is BosRule.auto else []
        return [[*first, *text.encode("utf-8", "surrogatepass")] for text in texts]


@dataclass(frozen=True)
class PerCharacter(TokenCounter):
    """Measured tokens per character: the ids are code points, and lengths are shares of them."""

    how: str = (
        f"{PER_ASCII} tokens per ASCII character and {PER_OTHER} per other character, measured with the "
        "llm-jp-3 tokenizer: this model's is not here"
    )
    exact: ClassVar[bool] = False

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The code points."""
        return [list(map(ord, text)) for text in texts]

    def lengths(self, ids: Sequence[int]) -> float:
        """The estimated number of tokens."""
        ascii_ = sum(1 for code in ids if code < 128)
        return ascii_ * PER_ASCII + (len(ids) - ascii_) * PER_OTHER


def token_counter(model: ModelConfig, bos: BosRule) -> TokenCounter:
    """The model's own tokenizer where its tokenizer.json is on this machine, else measured figures."""
    if model.random is not None and model.tokenizer is None:
        return Bytes("bytes", bos)
    path = model_file(model, "tokenizer.json", model.tokenizer)
    if path is None:
        return PerCharacter()
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises plain Exception for every malformed file.
        return PerCharacter(f"{PerCharacter().how} ({path} cannot be read: {error})")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return FileTokenizer(f"the tokenizer {path}", tokenizer, bos)
