"""Requests -> token ids: the BOS rule, chat templates, and what a request needs while it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evalkit.config import BosRule
from evalkit.errors import InputError
from evalkit.types import Message, Request

_CHUNK = 256


@dataclass(frozen=True)
class Encoded:
    """A request with its prompt as token ids and the ids that end its completion."""

    request: Request
    ids: list[int]
    eos: frozenset[int]


class Vocabulary(Protocol):
    """What encoding needs of a model: its tokenizer, and the ids that end a text and a chat answer."""

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end a text completion."""

    @property
    def chat_eos(self) -> frozenset[int]:
        """Ids that end a chat answer."""


def encode(requests: Sequence[Request], loaded: Vocabulary, bos: BosRule) -> list[Encoded]:
    """The requests' prompts as token ids, in order.

    Text gets the tokenizer's own special tokens (`bos` auto) or none; a prompt whose text begins
    with BOS gets no second one. A chat is rendered by the chat template, which writes its own.

    Raises:
        InputError: a chat request for a tokenizer without a chat template.
    """
    encoded: list[Encoded] = []
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]
        texts = [_text(request, loaded.tokenizer) for request in chunk]
        for request, ids in zip(chunk, _ids(chunk, texts, loaded.tokenizer, bos), strict=True):
            eos = loaded.eos if isinstance(request.prompt, str) else loaded.chat_eos
            encoded.append(Encoded(request, ids, eos))
    return encoded


def _text(request: Request, tokenizer: Any) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return render_chat(request.prompt, tokenizer)


def render_chat(messages: Sequence[Message], tokenizer: Any) -> str:
    """The text of a conversation whose next turn is the assistant's.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses these roles.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError(
            "the model's tokenizer has no chat template, so it cannot be asked in turns",
            where="option model.chat_template",
            fix="model.chat_template=FILE.jinja, or take an instruct model",
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InputError(f"the chat template refuses the conversation: {error}") from None
    return text


def token_ids(text: str, tokenizer: Any, bos: BosRule) -> list[int]:
    """A text prompt as token ids, by the same rule."""
    special = bos is BosRule.auto and not _begins_with_bos(text, tokenizer)
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def without_bos(text: str, tokenizer: Any) -> str:
    """A text for a tokenizer that puts its BOS in front: one that is spelled out there is left out."""
    return text.removeprefix(tokenizer.bos_token) if _begins_with_bos(text, tokenizer) else text


def _ids(requests: Sequence[Request], texts: list[str], tokenizer: Any, bos: BosRule) -> Iterator[list[int]]:
    special = [
        bos is BosRule.auto and isinstance(request.prompt, str) and not _begins_with_bos(text, tokenizer)
        for request, text in zip(requests, texts, strict=True)
    ]
    by_rule = {
        rule: iter(
            tokenizer(
                [text for text, chosen in zip(texts, special, strict=True) if chosen is rule],
                add_special_tokens=rule,
                padding=False,
                truncation=False,
            )["input_ids"]
        )
        for rule in set(special)
    }
    for rule in special:
        yield list(next(by_rule[rule]))


def _begins_with_bos(text: str, tokenizer: Any) -> bool:
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
