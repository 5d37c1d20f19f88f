"""The special tokens of a prompt: the only place that decides on BOS and on what follows the text.

`protocol.bos=auto` puts in front of a text what its tokenizer puts there, `none` nothing. A BOS is
never doubled. Nothing follows the text: after an EOS or SEP that its tokenizer appends, a model would
begin another text.
"""

from collections.abc import Sequence
from typing import Any

from evalkit.core.config import BosRule

# The rule for a rendered chat, whose template has written the special tokens.
CHAT_RULE = BosRule.none
# Texts that end in different tokens, so that a common last token was appended.
_PROBES = ("1", "あ", "b")


def token_ids(text: str, tokenizer: Any, bos: BosRule) -> list[int]:
    """One text as token ids."""
    return batch_token_ids([text], tokenizer, [bos])[0]


def batch_token_ids(texts: Sequence[str], tokenizer: Any, rules: Sequence[BosRule]) -> list[list[int]]:
    """Texts as token ids, each by its own rule.

    Args:
        texts: the prompts.
        tokenizer: a transformers tokenizer, or what has the same call and special tokens.
        rules: one for each text.
    """
    special = [
        bos is BosRule.auto and not _begins_with_bos(text, tokenizer)
        for text, bos in zip(texts, rules, strict=True)
    ]
    appended = _appended_ids(tokenizer)
    found: list[list[int]] = [[] for _ in texts]
    for rule in set(special):
        places = [place for place, chosen in enumerate(special) if chosen is rule]
        encoded = _encode(tokenizer, [texts[place] for place in places], special=rule)
        for place, ids in zip(places, encoded, strict=True):
            found[place] = _without_doubled_bos(_without_end(ids, appended[rule]), tokenizer)
    return found


def without_bos(text: str, tokenizer: Any) -> str:
    """The text without a BOS that is spelled out, for a server that adds its own."""
    return text.removeprefix(tokenizer.bos_token) if _begins_with_bos(text, tokenizer) else text


def appended_tokens(tokenizer: Any, bos: BosRule) -> list[str]:
    """The tokens that a tokenizer appends to every text by this rule, and that prompts go without."""
    ids = _appended_ids(tokenizer)[bos is BosRule.auto]
    return [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]


def _appended_ids(tokenizer: Any) -> dict[bool, tuple[int, ...]]:
    """What a tokenizer appends to every text, with its special tokens (true) and without."""
    # Some tokenizers append a special token even when told to add none.
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    plain = _encode(tokenizer, _PROBES, special=False)
    always: list[int] = []
    while all(len(ids) > len(always) for ids in plain):
        last = {ids[-1 - len(always)] for ids in plain}
        if len(last) > 1 or not last <= special:
            break
        always.insert(0, last.pop())
    more: list[int] = []
    for text, ids in zip(_PROBES, plain, strict=True):
        if len(ids) > len(always):
            (whole,) = _encode(tokenizer, [text], special=True)
            begins = (i for i in range(len(whole)) if whole[i : i + len(ids)] == ids)
            more = whole[next(begins, len(whole)) + len(ids) :]
            break
    return {True: (*always, *more), False: tuple(always)}


def _encode(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    encoded = tokenizer(list(texts), add_special_tokens=special, padding=False, truncation=False)
    return [list(ids) for ids in encoded["input_ids"]]


def _without_end(ids: list[int], appended: Sequence[int]) -> list[int]:
    ends = bool(appended) and ids[-len(appended) :] == list(appended)
    return ids[: -len(appended)] if ends else ids


def _without_doubled_bos(ids: list[int], tokenizer: Any) -> list[int]:
    # Some tokenizers have two rules that each put a BOS in front.
    bos = tokenizer.bos_token_id
    while bos != tokenizer.unk_token_id and len(ids) > 1 and ids[0] == ids[1] == bos:
        del ids[0]
    return ids


def _begins_with_bos(text: str, tokenizer: Any) -> bool:
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
