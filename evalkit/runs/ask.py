"""The verb ask: one question to a model, shown with the exact prompt."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalkit.core.config import BosRule, Config, given_suite
from evalkit.core.errors import InputError
from evalkit.core.progress import phase
from evalkit.core.text import did_you_mean
from evalkit.core.types import Completion, Message, Request, Sampling
from evalkit.core.words import t
from evalkit.engines.bos import CHAT_RULE, token_ids
from evalkit.engines.local.chat_template import as_text, render_chat
from evalkit.engines.local.tokenizer import tokenizer_of
from evalkit.mtbench.presets import DEFAULT_PRESET, load_preset
from evalkit.mtbench.turns import TOP_K, takes_system_message
from evalkit.records.run_folder import SplitRecord
from evalkit.runs.suite import asking_of, load_suite
from evalkit.tasks.pfgen import SPEC
from evalkit.tasks.thoughts import Thoughts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AskedQuestion:
    """A question's prompt, special tokens spelled out as the model sees them, and the answer.

    `split` is the thought and the answer by the rule in use; None: there is no rule, or no answer.
    """

    prompt: str
    templated: bool
    sampling: Sampling
    completion: Completion
    split: SplitRecord | None = None


def ask(config: Config) -> AskedQuestion:
    """Asks `config.model` the words of `config.folders` with the sampling of `config.ask`.

    A model without a chat template gets the question as it is. `ask.max_new_tokens` is the limit of the
    answer; a thought before it has its own, `reasoning.thought_length`.

    Raises:
        InputError: no model or no question, or a rule for thoughts that lacks its pattern.
        EvalkitError: the model cannot be fetched or loaded.
    """
    from evalkit.engines import build_engine, identify

    if config.model is None:
        raise InputError("no model is given", fix='ask model=1.8b-instruct "自然言語処理とは何か"')
    question = " ".join(config.folders).strip()
    if not question:
        raise InputError("no question is given", fix='ask model=1.8b-instruct "自然言語処理とは何か"')
    identified = identify(config.model, config.engine, config.dtype, offline=config.data.offline)
    resolved = identified.model
    # For a model that only a server has, the conversation is shown as it is sent.
    tokenizer = tokenizer_of(resolved)
    given = _of_suite(question, config, tokenizer) if config.suite is not None else None
    prompt = _prompt(question, config.ask.system, tokenizer) if given is None else given.prompt
    templated = not isinstance(prompt, str)
    thoughts = Thoughts.of(config.reasoning, tokenizer, chat=templated)
    limit = config.ask.max_new_tokens if given is None else SPEC.output_length
    with phase(t("loading the model")):
        built = build_engine(resolved, config.engine, config.dtype, bos=config.protocol.bos)
    with built as engine:
        request = given or _request(prompt, thoughts, config, engine.describe())
        (completion,) = engine.generate([request])
    split = None
    if thoughts is not None and completion.error is None:
        split = thoughts.reply(
            completion,
            opened=tokenizer is not None and thoughts.opened(as_text(prompt, tokenizer)),
            output_length=limit,
            tokenizer=tokenizer,
            ends=(),
            keeps_special=identified.family != "api",
        )
    shown = _visible(prompt, tokenizer, config.protocol.bos)
    return AskedQuestion(shown, templated, request.sampling, completion, split)


def _request(
    prompt: str | tuple[Message, ...], thoughts: Thoughts | None, config: Config, described: Mapping[str, Any]
) -> Request:
    """The request for a question of the command line, to an engine as it is `described`."""
    asked, top_k = config.ask, (described.get("generation_config") or {}).get("top_k")
    sampling = Sampling(
        do_sample=asked.temperature > 0,
        temperature=asked.temperature if asked.temperature > 0 else 1.0,
        top_p=asked.top_p,
        top_k=TOP_K if top_k is None else int(top_k),
        repetition_penalty=asked.repetition_penalty,
    )
    return Request(
        id="ask",
        prompt=prompt,
        max_new_tokens=asked.max_new_tokens if thoughts is None else thoughts.limit(asked.max_new_tokens),
        sampling=sampling,
        seed=config.seed,
        keep_special=thoughts is not None,
    )


def _of_suite(question: str, config: Config, tokenizer: Any | None) -> Request:
    """The request that a run of pfgen makes for a question: by its id, `Q01/3` for a trial, or its text."""
    suite = given_suite(config.suite)
    if not suite.pfgen:
        raise InputError("ask takes its question from the command line", where=f"suite={suite.name}")
    if own := [option for option in config.given if option.startswith("ask.")]:
        raise InputError("a run of pfgen decides this", where=f"option {own[0]}", fix="leave it out")
    asking = asking_of(config, tokenizer)
    (task,) = load_suite(suite, config.data, say=log.info).tasks
    names = {sample.input: sample.id for sample in task.samples}
    key = names.get(question, question)
    for request in asking.requests(task):
        if request.id in (key, f"{key}/1"):
            return request
    raise InputError(
        f"no question of pfgen: {question!r}{did_you_mean(question, names)}",
        where=f"suite=pfgen samples={config.samples}",
        fix="Q01 to Q50, Q01/2 for its second trial, or the text of a question",
    )


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
