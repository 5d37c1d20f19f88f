"""The verb ask: one question to a model, shown with the exact prompt."""

import logging
from dataclasses import dataclass
from typing import Any

from evalkit.core.config import BosRule, Config
from evalkit.core.errors import InputError
from evalkit.core.types import Completion, Message, Request, Sampling
from evalkit.engines.bos import CHAT_RULE, token_ids
from evalkit.engines.local.chat_template import render_chat
from evalkit.mtbench.answers.chat import takes_system_message
from evalkit.mtbench.answers.turns import TOP_K
from evalkit.mtbench.presets import DEFAULT_PRESET, load_preset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A question's prompt, special tokens spelled out as the model sees them, and the answer."""

    prompt: str
    templated: bool
    sampling: Sampling
    completion: Completion


def ask(config: Config) -> Asked:
    """Asks `config.model` the words of `config.folders` with the sampling of `config.ask`.

    A model without a chat template gets the question as it is.

    Raises:
        InputError: no model or no question.
        EvalkitError: the model cannot be fetched or loaded.
    """
    from evalkit.engines import build_engine, identify
    from evalkit.engines.local.tokenizer import load_tokenizer

    if config.model is None:
        raise InputError("no model is given", fix='ask model=1.8b-instruct "自然言語処理とは何か"')
    question = " ".join(config.folders)
    if not question.strip():
        raise InputError("no question is given", fix='ask model=1.8b-instruct "自然言語処理とは何か"')
    identified = identify(config.model, config.engine, config.dtype, offline=config.data.offline)
    resolved = identified.model
    # For a model that only a server has, the conversation is shown as it is sent.
    tokenizer = load_tokenizer(resolved) if resolved.has_tokenizer else None
    prompt = _prompt(question, config.ask.system, tokenizer)
    with build_engine(resolved, config.engine, config.dtype, bos=config.protocol.bos) as engine:
        top_k = (engine.describe().get("generation_config") or {}).get("top_k")
        sampling = Sampling(
            do_sample=config.ask.temperature > 0,
            temperature=config.ask.temperature if config.ask.temperature > 0 else 1.0,
            top_p=config.ask.top_p,
            top_k=TOP_K if top_k is None else int(top_k),
            repetition_penalty=config.ask.repetition_penalty,
        )
        request = Request("ask", prompt, config.ask.max_new_tokens, (), sampling, config.seed)
        (completion,) = engine.generate([request])
    templated = not isinstance(prompt, str)
    shown = _visible(prompt, tokenizer, config.protocol.bos)
    return Asked(shown, templated, sampling, completion)


def _prompt(question: str, system: str | None, tokenizer: Any | None) -> str | tuple[Message, ...]:
    if tokenizer is None:
        user = Message("user", question)
        return (user,) if system is None else (Message("system", system), user)
    if not tokenizer.chat_template:
        return question
    user = Message("user", question)
    sent = load_preset(DEFAULT_PRESET).system_message if system is None else system
    if sent is None:
        return (user,)
    if not takes_system_message(tokenizer):
        if system is not None:
            log.warning("the chat template takes no system message: ask.system is left out")
        return (user,)
    return (Message("system", sent), user)


def _visible(prompt: str | tuple[Message, ...], tokenizer: Any | None, bos: BosRule) -> str:
    if tokenizer is None:
        return prompt if isinstance(prompt, str) else "\n".join(f"{m.role}: {m.content}" for m in prompt)
    if isinstance(prompt, str):
        ids = token_ids(prompt, tokenizer, bos)
    else:
        ids = token_ids(render_chat(prompt, tokenizer), tokenizer, CHAT_RULE)
    shown: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return shown
