"""How text prompts reach a server so that the model sees them with the BOS the protocol asks for.

Servers put their tokenizer's BOS before a text; some omit it on request. This is verified: a short
prompt is sent first, and the server's count of its tokens is compared with the tokenizer's. A
doubled or missing BOS, or another tokenizer, is then an error and not a wrong score.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalkit.core.config import BosRule, PromptForm
from evalkit.core.errors import EvalkitError, InputError
from evalkit.engines.bos import appended_tokens, token_ids, without_bos
from evalkit.services.client import ServiceError
from evalkit.services.replies import Reply

log = logging.getLogger(__name__)

PROBE = "日本で一番高い山は富士山です。\n\nHello, world! 1 + 1 = "

# Sends a prompt with further fields of the body.
Ask = Callable[[str | Sequence[int], Mapping[str, Any]], Awaitable[Reply]]


@dataclass(frozen=True)
class Form:
    """The form of text prompts; `extra` goes into every body."""

    kind: PromptForm
    extra: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, text: str, tokenizer: Any | None, bos: BosRule) -> str | list[int]:
        """A prompt in this form."""
        if self.kind is PromptForm.tokens:
            return token_ids(text, tokenizer, bos)
        # With add_special_tokens=false a server keeps a BOS that is written in the text.
        return text if self.extra or tokenizer is None else without_bos(text, tokenizer)


TEXT = Form(PromptForm.text)
PLAIN_TEXT = Form(PromptForm.text, {"add_special_tokens": False})
TOKENS = Form(PromptForm.tokens)


async def choose_form(ask: Ask, tokenizer: Any | None, bos: BosRule, wanted: PromptForm) -> Form:
    """The first form with which this server sees the right tokens.

    Args:
        ask: sends the probe for one new token.
        tokenizer: of the model; None: not available.
        bos: the protocol's rule.
        wanted: the form the user asks for, or auto.

    Raises:
        EvalkitError: no form gives the model the prompt the protocol asks for.
        InputError: the tokenizer is needed and not available.
    """
    if wanted is PromptForm.tokens and tokenizer is None:
        raise _needs_tokenizer("engine.prompts=tokens needs the model's tokenizer")
    if tokenizer is None:
        return await _without_tokenizer(ask, bos)
    forms = [TEXT, PLAIN_TEXT] if bos is BosRule.none else [TEXT]
    if wanted is not PromptForm.text:
        forms = [TOKENS] if wanted is PromptForm.tokens else [*forms, TOKENS]
    right = len(token_ids(PROBE, tokenizer, bos))
    behind = appended_tokens(tokenizer, bos)
    # To a text a server adds all that the tokenizer adds: without a count only token ids are certain.
    trusted = (TOKENS,) if behind or bos is BosRule.none else (TEXT, TOKENS)
    seen: list[int] = []
    for form in forms:
        count, taken = await _count(ask, form, form.prompt(PROBE, tokenizer, bos))
        if count == right or (taken and count is None and form in trusted):
            if count is None:
                log.warning("the server counts no tokens: whether BOS and tokenizer are right was not seen")
            log.info("prompts go as %s%s", form.kind.value, f" with {dict(form.extra)}" if form.extra else "")
            return form
        seen += [count] if count is not None else []
    other = {len(token_ids(PROBE, tokenizer, _other(bos))), right + 1, right - 1, right + len(behind)}
    raise _no_form(right, seen, other, bos, behind)


async def _without_tokenizer(ask: Ask, bos: BosRule) -> Form:
    if bos is BosRule.auto:
        return TEXT
    usual, _ = await _count(ask, TEXT, PROBE)
    plain, _ = await _count(ask, PLAIN_TEXT, PROBE)
    if usual is not None and plain is not None and plain < usual:
        return PLAIN_TEXT
    raise _needs_tokenizer("whether the server adds a BOS cannot be told without the model's tokenizer")


async def _count(ask: Ask, form: Form, prompt: str | Sequence[int]) -> tuple[int | None, bool]:
    """The server's count of the probe's tokens (None: it gives none), and whether it accepted the form."""
    try:
        reply = await ask(prompt, form.extra)
    except ServiceError as error:
        if error.reason == "request" and form is not TEXT:
            return None, False
        if error.reason in ("request", "model") and form is TEXT:
            raise ServiceError(
                error.reason,
                error.what,
                where=error.where,
                fix="check engine.model; a service without /completions: engine.prompts=chat (a deviation)",
            ) from None
        raise
    return reply.input_tokens, reply.status == "ok"


def _other(bos: BosRule) -> BosRule:
    return BosRule.none if bos is BosRule.auto else BosRule.auto


def _no_form(
    right: int, seen: Sequence[int], other: Collection[int], bos: BosRule, behind: Sequence[str]
) -> EvalkitError:
    counted = f"the server counts {' or '.join(map(str, sorted(set(seen))))} tokens in a prompt of {right}"
    where = f"protocol.bos={bos.value}"
    if not seen:
        return EvalkitError("the server does not take such prompts", where=where, fix="engine.prompts=auto")
    if set(seen) <= set(other):
        ends = f", or {' '.join(behind)} stand behind every prompt" if behind else ""
        return EvalkitError(
            f"{counted}: a BOS would be missing or doubled{ends}",
            where=where,
            fix="engine.prompts=auto with a server that takes token ids (vLLM, SGLang, llama.cpp)",
        )
    return EvalkitError(
        f"{counted}: it has another tokenizer than model= says",
        where=where,
        fix="serve the model that model= names, or give model.tokenizer=",
    )


def _needs_tokenizer(what: str) -> InputError:
    return InputError(what, fix="model.tokenizer=FOLDER_OR_HUB_NAME")
