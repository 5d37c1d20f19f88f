"""What a judge is asked about a run: one call per turn and repeat, and the judgment each reply gives."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evalkit.core.errors import InputError
from evalkit.core.types import Judgment, JudgmentStatus, Message
from evalkit.mtbench.data import Books
from evalkit.mtbench.judge.judges import Judge
from evalkit.mtbench.judge.store import CachedReply, JudgmentStore, judgment_key
from evalkit.mtbench.judge_prompts import Kind, PromptBook, prompt_names
from evalkit.mtbench.presets import Preset
from evalkit.mtbench.questions import ModelAnswer
from evalkit.mtbench.ratings import HIGHEST, LOWEST, parse_rating, parse_strict
from evalkit.services.replies import Reply


@dataclass(frozen=True)
class JudgeCall:
    """One judgment that is wanted. `keys` are its cache key and those of its re-asks, in order."""

    id: str
    model: str
    question_id: int
    category: str
    turn: int
    answer: int
    repeat: int
    prompt: str
    messages: tuple[Message, ...]
    keys: tuple[str, ...]


def plan_calls(
    answers: Sequence[ModelAnswer], books: Books, preset: Preset, judge: Judge
) -> tuple[list[JudgeCall], list[str]]:
    """The calls for every answer in question order, first turns before second ones.

    Also what cannot be asked, and why.

    Raises:
        InputError: an answer to a question the preset does not have, or a local judge prompt file
            that lacks a prompt.
    """
    calls, missing = [], []
    for answer in sorted(answers, key=lambda answer: (answer.model, answer.choice, answer.question_id)):
        book = books.of(answer.question_id)
        check_own_prompts(book, preset, "single")
        question = book.questions.get(answer.question_id)
        if question is None:
            raise InputError(
                f"question {answer.question_id} is not in the question file of the preset {preset.name}",
                fix="preset= the one the answers were made for",
            )
        for turn in preset.turns:
            try:
                prompt, messages = book.single(answer.question_id, turn, answer.turns)
            except InputError as error:
                missing.append(f"{answer.model}: {error.what}")
                continue
            for repeat in range(judge.config.repeats):
                calls.append(
                    JudgeCall(
                        id=f"{answer.question_id}/{turn}/{answer.choice}/{repeat}/{answer.model}",
                        model=answer.model,
                        question_id=answer.question_id,
                        category=question.category,
                        turn=turn,
                        answer=answer.choice,
                        repeat=repeat,
                        prompt=prompt,
                        messages=messages,
                        keys=keys_of(judge, messages, repeat, preset.own_prompts, preset.reasks),
                    )
                )
    calls.sort(key=lambda call: (call.model, call.repeat, call.answer, call.turn))
    return calls, missing


def check_own_prompts(book: PromptBook, preset: Preset, kind: Kind) -> None:
    """Refuses a local judge prompt file that lacks a prompt; an upstream one may lack some.

    Raises:
        InputError: names the file and the missing prompts.
    """
    names = prompt_names(kind, preset.turns)
    missing = [name for name in names if name not in book.prompts]
    if preset.own_prompts and missing:
        raise InputError(
            f"the judge prompts lack {', '.join(missing)}",
            where=preset.prompts.file,
            fix=f"one row for each of {', '.join(names)}",
        )


def keys_of(
    judge: Judge, messages: Sequence[Message], repeat: int, prompts: str | None = None, reasks: int = 0
) -> tuple[str, ...]:
    """The cache keys of a judgment and of its re-asks."""
    return tuple(
        judgment_key(judge.identity, judge.parameters, messages, repeat, reask, prompts)
        for reask in range(reasks + 1)
    )


def open_key(call: JudgeCall, store: JudgmentStore) -> str | None:
    """The key that has no reply yet; None when the call is answered.

    A preset that re-asks goes on while the rating is no whole number from 1 to 10.
    """
    for key in call.keys:
        reply = store.get(key)
        if reply is None:
            return key
        if not _ask_again(reply):
            return None
    return None


def _ask_again(reply: CachedReply) -> bool:
    if reply.status != "ok":
        return False
    value = parse_rating(reply.text).value
    return value is None or value != int(value) or not LOWEST <= value <= HIGHEST


def last_reply(call: JudgeCall, store: JudgmentStore, failed: Mapping[str, Reply]) -> CachedReply:
    """The reply that counts: the last one to a call and its re-asks, or how the call failed."""
    if (reply := failed.get(call.id)) is not None:
        return CachedReply.of("", reply)
    for key in reversed(call.keys):
        if (cached := store.get(key)) is not None:
            return cached
    return CachedReply.of("", Reply("api_error", error="not asked yet"))


def judgment_of(call: JudgeCall, judge: str, reply: CachedReply) -> Judgment:
    """The reply of the judge with this label, read by both parsers."""
    rating = parse_rating(reply.text) if reply.status == "ok" else None
    status: JudgmentStatus
    if rating is not None:
        status = rating.status
    elif reply.status == "filtered":
        status = "filtered"
    elif reply.status == "overflow":
        status = "overflow"
    else:
        status = "api_error"
    return Judgment(
        id=call.id,
        model=call.model,
        question_id=call.question_id,
        category=call.category,
        turn=call.turn,
        judge=judge,
        prompt=call.prompt,
        text=reply.text,
        status=status,
        rating=rating.value if rating else None,
        rule=rating.rule if rating else "none",
        strict=parse_strict(reply.text).value if rating else None,
        answer=call.answer,
        repeat=call.repeat,
        key=reply.id,
        served_model=reply.served_model,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        error=reply.error,
    )


def cached_reply_of(judgment: Judgment) -> CachedReply | None:
    """The reply behind a judgment of a run folder; None when it must be asked (again)."""
    if not judgment.key or judgment.status == "api_error":
        return None
    refused = judgment.status in ("filtered", "overflow")
    return CachedReply(
        id=judgment.key,
        status=judgment.status if refused else "ok",
        text=judgment.text,
        finish_reason=None,
        served_model=judgment.served_model,
        input_tokens=judgment.input_tokens,
        output_tokens=judgment.output_tokens,
        error=judgment.error,
    )


def unanswered(calls: Iterable[JudgeCall], store: JudgmentStore) -> list[JudgeCall]:
    """The calls that must be made; of several with the same content only the first."""
    seen: set[str] = set()
    waiting = []
    for call in calls:
        key = open_key(call, store)
        if key is not None and key not in seen:
            seen.add(key)
            waiting.append(call)
    return waiting
