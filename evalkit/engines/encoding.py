"""Requests -> token ids: the special tokens around a prompt, and what a request needs while it runs.

In front stands what the tokenizer puts there (`protocol.bos`), BOS never twice. Behind a prompt
stands nothing: after an EOS or SEP that its tokenizer adds, a model would begin another text.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evalkit.config import BosRule
from evalkit.engines.chat_template import render_chat
from evalkit.types import Request

_CHUNK = 256
# Texts that end in different tokens, so that what all of them end in was added.
_PROBES = ("1", "あ", "b")


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

    Text gets the tokenizer's own special tokens in front (`bos` auto) or none; a prompt whose text
    begins with BOS gets no second one. A chat is rendered by the chat template, which writes its
    own, and a prompt given as token ids is taken as it is.

    Raises:
        InputError: a chat request for a tokenizer without a chat template, or with one that may
            not be used (`render_chat`).
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


def token_ids(text: str, tokenizer: Any, bos: BosRule) -> list[int]:
    """A text prompt as token ids, by the same rule; `bos` none is right for a rendered chat too."""
    special = bos is BosRule.auto and not _begins_with_bos(text, tokenizer)
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    return _bare(ids, _appended(tokenizer)[special], tokenizer)


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
    appended = _appended(tokenizer)
    for rule in special:
        yield _bare(list(next(by_rule[rule])), appended[rule], tokenizer)


def _bare(ids: list[int], appended: Sequence[int], tokenizer: Any) -> list[int]:
    ids = without_end(ids, appended)
    # Some tokenizers have two rules that each put a BOS in front.
    bos = tokenizer.bos_token_id
    while bos != tokenizer.unk_token_id and len(ids) > 1 and ids[0] == ids[1] == bos:
        del ids[0]
    return ids


def without_end(ids: list[int], appended: Sequence[int]) -> list[int]:
    """Token ids without those that a tokenizer put behind the text."""
    ends = bool(appended) and ids[-len(appended) :] == list(appended)
    return ids[: -len(appended)] if ends else ids


def left_out(tokenizer: Any, bos: BosRule) -> list[str]:
    """The tokens that this tokenizer puts behind every text by this rule, and that prompts go without."""
    ids = _appended(tokenizer)[bos is BosRule.auto]
    return [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]


def _appended(tokenizer: Any) -> dict[bool, tuple[int, ...]]:
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return appended_ids(lambda text, add: list(tokenizer(text, add_special_tokens=add)["input_ids"]), special)


def appended_ids(
    encode: Callable[[str, bool], list[int]], special: Collection[int]
) -> dict[bool, tuple[int, ...]]:
    """What a tokenizer puts behind every text: with its special tokens asked for (true), and without.

    Args:
        encode: a text -> token ids, with or without special tokens.
        special: ids that stand for no text; some tokenizers add one even when told not to.
    """
    plain = [encode(text, False) for text in _PROBES]
    always: list[int] = []
    while all(len(ids) > len(always) for ids in plain):
        last = {ids[-1 - len(always)] for ids in plain}
        if len(last) > 1 or not last <= set(special):
            break
        always.insert(0, last.pop())
    more: list[int] = []
    for text, ids in zip(_PROBES, plain, strict=True):
        if len(ids) > len(always):
            whole = encode(text, True)
            begins = (i for i in range(len(whole)) if whole[i : i + len(ids)] == ids)
            more = whole[next(begins, len(whole)) + len(ids) :]
            break
    return {True: (*always, *more), False: tuple(always)}


def _begins_with_bos(text: str, tokenizer: Any) -> bool:
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
