"""Prompts -> token ids, and token ids -> the completion's text by the protocol's decoding rule.

Special tokens are decided in `evalkit.engines.bos`. Source of the decoding rule: section 1 ("Tokens
and generation") of the llm-jp-eval v1.3.1 protocol.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from evalkit.core.config import BosRule
from evalkit.core.errors import InputError
from evalkit.core.text import unicode_text
from evalkit.core.types import REST_OF_CONTEXT, Request
from evalkit.engines.bos import CHAT_RULE, batch_token_ids
from evalkit.engines.local.chat_template import render_chat

# Prompts encoded in one call of the tokenizer.
_CHUNK = 256
# The replacements of the text-generation pipeline's clean-up, in its order.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# A token with part of a character decodes to this alone.
_BROKEN = "\ufffd"
# Tokens decoded beyond the length of the longest stop string.
_MARGIN = 8


@dataclass(frozen=True)
class Encoded:
    """A request with its prompt as token ids and the ids that end its completion."""

    request: Request
    ids: list[int]
    eos: frozenset[int]


class EndIds(NamedTuple):
    """Ids that end a text completion, and ids that end a chat answer."""

    text: frozenset[int]
    chat: frozenset[int]


def end_ids(tokenizer: Any, own: int | list[int] | None) -> EndIds:
    """The ids that end completions: the tokenizer's EOS, else the model's; both for chats.

    Args:
        tokenizer: the model's.
        own: `eos_token_id` of the model's generation_config.
    """
    given, model_eos = _as_ids(tokenizer.eos_token_id), _as_ids(own)
    return EndIds(given or model_eos, given | model_eos)


def _as_ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])


def encode(
    requests: Sequence[Request], tokenizer: Any, ends: EndIds, bos: BosRule, context: int | None = None
) -> list[Encoded]:
    """The requests' prompts as token ids, in order; `bos` is the rule for text, chats are rendered.

    `context` is the model's number of positions, where known; `REST_OF_CONTEXT` becomes what a prompt
    leaves of it.

    Raises:
        InputError: a chat request for a tokenizer without a chat template, or with one that may
            not be used (`render_chat`); `REST_OF_CONTEXT` for a model whose context is not known.
    """
    encoded: list[Encoded] = []
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]
        texts, rules = [], []
        for request in chunk:
            if isinstance(request.prompt, str):
                texts.append(request.prompt)
                rules.append(bos)
            else:
                texts.append(render_chat(request.prompt, tokenizer))
                rules.append(CHAT_RULE)
        for request, ids in zip(chunk, batch_token_ids(texts, tokenizer, rules), strict=True):
            eos = ends.text if isinstance(request.prompt, str) else ends.chat
            encoded.append(Encoded(_with_limit(request, len(ids), context), ids, eos))
    return encoded


def _with_limit(request: Request, prompt_tokens: int, context: int | None) -> Request:
    if request.max_new_tokens != REST_OF_CONTEXT:
        return request
    if context is None:
        raise InputError(
            "the model's files do not say how long its context is, so a thought needs a limit",
            where="option reasoning.thought_length",
            fix="reasoning.thought_length=8192",
        )
    return replace(request, max_new_tokens=context - prompt_tokens)


def clean_up(text: str) -> str:
    """The text without the spaces that the pipeline's clean-up removes."""
    for old, new in CLEAN_UP:
        text = text.replace(old, new)
    return text


class DecodedText(NamedTuple):
    """A completion's text by the protocol's rule, and the plain decoding of its new tokens."""

    text: str
    raw_text: str


class CompletionDecoder:
    """Decodes completions of one tokenizer.

    The rule: clean_up(decode(prompt + new)) without its first len(clean_up(decode(prompt)))
    characters, special tokens left out. Decoding the new ids alone could lose a leading space.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def decode(self, prompt: Sequence[int], new: Sequence[int], *, keep_special: bool = False) -> DecodedText:
        """The text of `new` (without EOS) as the continuation of `prompt`.

        `keep_special` writes out special tokens in the plain decoding.
        """
        before = clean_up(self._plain(prompt))
        whole = clean_up(self._plain([*prompt, *new]))
        return DecodedText(whole[len(before) :], self._plain(new, keep_special=keep_special))

    def stopped(self, prompt: Sequence[int], new: Sequence[int], stops: Sequence[str]) -> bool:
        """Whether the text of `new` contains one of `stops`, given that it did not one token before.

        Most tokens cannot complete a stop string and cost one look-up. For the others the tail is
        decoded; only when it contains the string is the whole decoded by the rule.
        """
        if not stops or not new or not any(self._may_complete(new[-1], stop) for stop in stops):
            return False
        length = max(map(len, stops)) + _MARGIN
        tail = [*prompt[-length:], *new][-2 * length :]
        if not any(stop in self._plain(tail) for stop in stops):
            return False
        text = self.decode(prompt, new).text
        return any(stop in text for stop in stops)

    def _may_complete(self, token: int, stop: str) -> bool:
        # Decoders strip and add spaces by context, so a stop string that ends in one is always decoded.
        if stop[-1] == " ":
            return True
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._plain([token])
        return stop[-1] in piece or _BROKEN in piece

    def _plain(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=not keep_special, clean_up_tokenization_spaces=False
        )
        # A tokenizer written in Python may return half a character for cut bytes.
        return unicode_text(text)
