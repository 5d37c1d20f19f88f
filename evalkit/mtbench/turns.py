"""Questions -> two-turn answers: the requests of an MT-Bench run, and the records of their completions.

Source: sections 2 and 3 of the MT-Bench protocol notes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from evalkit.core.errors import InputError
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Completion, Message, Request, Sampling
from evalkit.engines.bos import CHAT_RULE, token_ids
from evalkit.engines.local.chat_template import render_chat, rendered
from evalkit.mtbench.fastchat import Question
from evalkit.mtbench.folder import turn_id
from evalkit.mtbench.presets import DEFAULT_PRESET, LengthRule, Preset, load_preset
from evalkit.records.run_folder import SampleRecord
from evalkit.tasks.thoughts import Thoughts, rule_for

T = TypeVar("T")

# Below this a temperature means greedy.
GREEDY_BELOW = 1e-4
# What transformers 4.36 samples with where neither the preset nor the model says otherwise.
TOP_K, TOP_P, REPETITION_PENALTY = 50, 1.0, 1.0
_MARK = "a system message nobody writes"


@dataclass(frozen=True)
class AnswerRules:
    """How answers are made: a preset's rules, completed where the protocol notes give none.

    `assumed` names the cells that come from the default preset because this one leaves them open;
    `from_model` what the model's generation_config sets.
    """

    temperature: dict[str, float]
    other: float
    top_k: int
    top_p: float
    repetition_penalty: float
    answers: int
    seed: int
    length: LengthRule
    tokens: int
    system_message: str | None
    assumed: tuple[str, ...]
    from_model: tuple[str, ...]

    def sampling(self, category: str) -> Sampling:
        """The sampling for a category's questions."""
        temperature = self.temperature.get(category, self.other)
        if temperature < GREEDY_BELOW:
            return Sampling(repetition_penalty=self.repetition_penalty)
        return Sampling(True, temperature, self.top_p, self.top_k, self.repetition_penalty)

    def new_tokens(self, prompt_tokens: int) -> int:
        """The token limit of an answer: at least 1, also where the prompt has used up everything."""
        left = self.tokens - prompt_tokens if self.length is LengthRule.total else self.tokens
        return max(1, left)


def answer_rules(preset: Preset, tokenizer: Any | None, generation_config: Mapping[str, Any]) -> AnswerRules:
    """A preset's rules for a model.

    Args:
        preset: what it leaves open is taken from the default preset and listed in `assumed`.
        tokenizer: its chat template decides whether a system message is sent. None: only the server
            has it; then one is sent, and a total length is that of the answer alone.
        generation_config: what the model itself sets.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    default = load_preset(DEFAULT_PRESET)
    own, usual = preset.sampling, default.sampling
    takes_system = tokenizer is None or takes_system_message(tokenizer)
    defaults = {"top_k": TOP_K, "top_p": TOP_P, "repetition_penalty": REPETITION_PENALTY}
    # What a preset names is what its original sends, whatever the model's own configuration says.
    named = {name: value for name, value in (("top_k", own.top_k), ("top_p", own.top_p)) if value is not None}
    chosen = {
        name: generation_config[name]
        for name in defaults
        if name not in named and generation_config.get(name) is not None
    }
    settings = defaults | chosen | named
    assumed = [name for name in preset.not_given() if name != "judge"]
    if own.temperature is not None and own.other is None:
        assumed.append("sampling.other")
    length = _first(preset.length.rule, default.length.rule)
    if tokenizer is None and length is LengthRule.total:
        length = LengthRule.new
        assumed.append("length.rule")
    return AnswerRules(
        temperature=dict(_first(own.temperature, usual.temperature)),
        other=_first(own.other, usual.other),
        top_k=int(settings["top_k"]),
        top_p=float(settings["top_p"]),
        repetition_penalty=float(settings["repetition_penalty"]),
        answers=own.answers,
        seed=_first(own.seed, usual.seed),
        length=length,
        tokens=_first(preset.length.tokens, default.length.tokens),
        system_message=preset.system_message if takes_system else None,
        assumed=tuple(assumed),
        from_model=tuple(chosen),
    )


def _first(*values: T | None) -> T:
    """The first value that is not null; the default preset leaves nothing open that is asked for here."""
    return next(value for value in values if value is not None)


@dataclass(frozen=True)
class TurnRequest:
    """One turn that is to be answered: its record without the completion, and the request.

    `opened`: the prompt ends inside a thought.
    """

    record: SampleRecord
    request: Request
    no_room: bool
    opened: bool = False


def choose_questions(questions: Sequence[Question], limit: int) -> list[Question]:
    """The first `limit` questions, one of each category in turn (0: all), in file order.

    A larger limit contains a smaller one.
    """
    if limit <= 0 or limit >= len(questions):
        return list(questions)
    places: dict[str, int] = {}
    rounds = []
    for question in questions:
        rounds.append((places.get(question.category, 0), question))
        places[question.category] = places.get(question.category, 0) + 1
    chosen = {question.id for _, question in sorted(rounds, key=lambda pair: pair[0])[:limit]}
    return [question for question in questions if question.id in chosen]


def requests_of_turn(
    turn: int,
    model: str,
    questions: Sequence[Question],
    rules: AnswerRules,
    tokenizer: Any | None,
    kept: Mapping[str, SampleRecord],
    thoughts: Thoughts | None = None,
) -> list[TurnRequest]:
    """The requests of one turn that have no record yet; a second turn needs the first one's.

    A model that thinks gets its thoughts' tokens beside those of the answer.
    """
    requests = []
    for question in questions:
        for answer in range(rules.answers):
            key = turn_id(model, question.id, turn, answer)
            before = kept.get(turn_id(model, question.id, 1, answer))
            if key in kept or len(question.turns) < turn or (turn == 2 and before is None):
                continue
            record = SampleRecord(
                id=key,
                model=model,
                question_id=question.id,
                category=question.category,
                turn=turn,
                answer=answer,
                completion="",
            )
            requests.append(_request(record, before, question, rules, tokenizer, thoughts))
    return requests


def _request(
    record: SampleRecord,
    before: SampleRecord | None,
    question: Question,
    rules: AnswerRules,
    tokenizer: Any | None,
    thoughts: Thoughts | None,
) -> TurnRequest:
    """The request of the turn that `record` names; `before` is the first turn, where this is the second."""
    messages = [Message("system", rules.system_message)] if rules.system_message is not None else []
    messages.append(Message("user", question.turns[0]))
    if before is not None:
        messages += [Message("assistant", before.completion), Message("user", question.turns[1])]
    if tokenizer is None:
        text, prompt_tokens = canonical_json([asdict(message) for message in messages]), 0
    else:
        text = render_chat(messages, tokenizer)
        prompt_tokens = len(token_ids(text, tokenizer, CHAT_RULE))
    most = rules.new_tokens(prompt_tokens)
    request = Request(
        id=record.id,
        prompt=tuple(messages),
        max_new_tokens=most if thoughts is None else thoughts.limit(most),
        sampling=rules.sampling(question.category),
        seed=rules.seed + record.answer,
        generator_state=before.generator_state if before else None,
        keep_special=thoughts is not None,
    )
    return TurnRequest(
        record=replace(record, prompt_sha256=text_sha256(text), max_new_tokens=most),
        request=request,
        no_room=rules.length is LengthRule.total and prompt_tokens >= rules.tokens,
        opened=tokenizer is not None and thoughts is not None and thoughts.opened(text),
    )


def answered(
    turn: TurnRequest,
    completion: Completion,
    special_tokens: Sequence[str],
    thoughts: Thoughts | None = None,
    tokenizer: Any | None = None,
    *,
    keeps_special: bool = False,
) -> SampleRecord:
    """The record of a turn with its completion; its `completion` is the answer without the thought.

    `special_tokens` are removed from the answer. `thoughts` None: all is answer; `tokenizer` None: only
    the server has it; `keeps_special`: the completion has all special tokens that the model wrote.

    Raises:
        InputError: the special tokens that the rule reads are lost.
    """
    split, answer, error = None, completion.raw_text, completion.error
    thoughts = rule_for(completion, thoughts)
    if thoughts is not None and completion.finish_reason != "error":
        try:
            split = thoughts.reply(
                completion,
                opened=turn.opened,
                output_length=turn.record.max_new_tokens or 0,
                tokenizer=tokenizer,
                ends=(),
                keeps_special=keeps_special,
            )
            answer = split.answer
        except InputError as failed:
            # The others are worth keeping where a pattern takes too long on one.
            if thoughts.pattern is None:
                raise
            answer, error = "", failed.what
    return replace(
        turn.record,
        completion=clean_answer(answer, special_tokens),
        raw_text=completion.raw_text,
        finish_reason=completion.finish_reason,
        truncated=turn.no_room
        or (completion.finish_reason == "length" if split is None else split.status == "cut_off"),
        prompt_tokens=completion.prompt_tokens,
        new_tokens=completion.new_tokens,
        # Only the second turn continues with the generator.
        generator_state=completion.generator_state if turn.record.turn == 1 else None,
        over_context=completion.over_context,
        error=error,
        split=split,
    )


def clean_answer(text: str, special_tokens: Sequence[str]) -> str:
    """An answer as the judge sees it: special tokens that are spelled out removed, then stripped."""
    for token in special_tokens:
        text = text.replace(token, "")
    return text.strip()


def special_tokens_of(tokenizer: Any | None) -> list[str]:
    """The texts of the tokenizer's named special tokens (`special_tokens_map`); none without one."""
    texts: list[str] = []
    for value in tokenizer.special_tokens_map.values() if tokenizer is not None else ():
        texts += [str(token) for token in (value if isinstance(value, list) else [value])]
    return texts


def takes_system_message(tokenizer: Any) -> bool:
    """Whether the chat template does anything with a system message (its text may be ignored).

    Raises:
        InputError: there is no chat template, or it may not be used (`render_chat`).
    """
    from jinja2 import TemplateError

    user = Message("user", "?")
    without = rendered([user], tokenizer)
    try:
        return rendered([Message("system", _MARK), user], tokenizer) != without
    except InputError as error:
        # So templates refuse a role; any other failure is one.
        if type(error.__cause__) is TemplateError:
            return False
        raise


def with_system(messages: tuple[Message, ...], takes: bool) -> tuple[Message, ...]:
    """The messages for a template that takes no system message: its text goes before the user's."""
    if takes or not messages or messages[0].role != "system":
        return messages
    system, user, *rest = messages
    joined = f"{system.content.rstrip()}\n\n{user.content}"
    return (Message("user", joined), *rest)
