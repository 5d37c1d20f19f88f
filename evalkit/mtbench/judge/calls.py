"""What a judge is asked about a run: one call per turn and repeat, and the judgment each reply gives."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evalkit.core.errors import InputError
from evalkit.core.types import Judgment, JudgmentStatus, Message
from evalkit.mtbench.books import Books, PromptBook, PromptKind, prompt_names
from evalkit.mtbench.fastchat import ModelAnswer
from evalkit.mtbench.judge.judges import Judge
from evalkit.mtbench.judge.store import CachedReply, JudgmentStore
from evalkit.mtbench.presets import Preset
from evalkit.mtbench.ratings import parse_strict
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


@dataclass
class AskingResult:
    """What asking took: the requests, the tokens they used, and the failed calls by their id."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    failed: dict[str, Reply] = field(default_factory=dict)

    def add(self, input_tokens: int, output_tokens: int) -> None:
        """Counts a request that was answered."""
        self.calls += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens


@dataclass(frozen=True)
class JudgeReplies:
    """The reply to every call by its id, and what asking took."""

    by_id: dict[str, CachedReply]
    asked: AskingResult

    @property
    def failed(self) -> int:
        """How many calls failed at the service; the same command makes them again."""
        return sum(reply.status == "api_error" for reply in self.by_id.values())


def plan_calls(
    answers: Sequence[ModelAnswer], books: Books, judge: Judge
) -> tuple[list[JudgeCall], list[str]]:
    """The calls for every answer in question order, first turns before second ones.

    The second list says what cannot be asked, and why.

    Raises:
        InputError: an answer to a question the preset does not have, or a local judge prompt file
            that lacks a prompt.
        FetchError: a file of the preset cannot be fetched.
    """
    calls, missing, preset = [], [], books.preset
    for answer in sorted(answers, key=lambda answer: (answer.model, answer.choice, answer.question_id)):
        book = books.of(answer.question_id)
        check_own_prompts(book, preset, "single")
        category = books.question(answer.question_id).category
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
                        category=category,
                        turn=turn,
                        answer=answer.choice,
                        repeat=repeat,
                        prompt=prompt,
                        messages=messages,
                        keys=judge.keys(messages, repeat, preset.reasks),
                    )
                )
    calls.sort(key=lambda call: (call.model, call.repeat, call.answer, call.turn))
    return calls, missing


def check_own_prompts(book: PromptBook, preset: Preset, kind: PromptKind) -> None:
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


def open_key(judge: Judge, call: JudgeCall, store: JudgmentStore) -> str | None:
    """The key that is to be asked next; None when the call is answered or was asked often enough.

    A folder from another machine holds only the last reply to a call.
    """
    last = -1
    for place, key in enumerate(call.keys):
        if (reply := store.get(key)) is not None:
            if not judge.asks_again(reply):
                return None
            last = place
    return call.keys[last + 1] if last + 1 < len(call.keys) else None


def unanswered(judge: Judge, calls: Iterable[JudgeCall], store: JudgmentStore) -> dict[str, JudgeCall]:
    """The calls that must be made, by the key to ask; of several with the same content only the first."""
    waiting: dict[str, JudgeCall] = {}
    for call in calls:
        if (key := open_key(judge, call, store)) is not None:
            waiting.setdefault(key, call)
    return waiting


def replies_to(
    judge: Judge, calls: Sequence[JudgeCall], store: JudgmentStore, asked: AskingResult
) -> JudgeReplies:
    """The reply to each call that counts: the first that needs no re-ask, else the last, or how it failed."""
    not_asked = Reply("api_error", error="not asked yet")
    replies = {}
    for call in calls:
        stored = [reply for key in call.keys if (reply := store.get(key)) is not None]
        if call.id in asked.failed or not stored:
            replies[call.id] = CachedReply.of("", asked.failed.get(call.id, not_asked))
        else:
            good = (reply for reply in stored if not judge.asks_again(reply))
            replies[call.id] = next(good, stored[-1])
    return JudgeReplies(replies, asked)


def judgment_of(judge: Judge, call: JudgeCall, reply: CachedReply) -> Judgment:
    """The reply to a call, read by the preset's parser and the strict one."""
    answer = judge.answer_in(reply)
    answerless = reply.status == "ok" and not (answer or "").strip() and reply.has_words()
    rating = judge.preset.rating(answer) if reply.status == "ok" and not answerless else None
    status: JudgmentStatus = "answerless" if answerless else "api_error"
    if rating is not None:
        status = rating.status
    elif reply.status in ("filtered", "overflow"):
        status = "filtered" if reply.status == "filtered" else "overflow"
    return Judgment(
        id=call.id,
        model=call.model,
        question_id=call.question_id,
        category=call.category,
        turn=call.turn,
        judge=judge.label,
        prompt=call.prompt,
        text=reply.text if answer is None else answer,
        status=status,
        rating=rating.value if rating else None,
        rule=rating.rule if rating else "none",
        strict=parse_strict(answer).value if rating else None,
        answer=call.answer,
        repeat=call.repeat,
        key=reply.id,
        served_model=reply.served_model,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        error=reply.error,
        raw_text=reply.text if answer != reply.text else None,
        thought=reply.thought,
        finish_reason=reply.finish_reason,
    )


def cached_reply_of(judgment: Judgment) -> CachedReply | None:
    """The reply behind a judgment of a run folder; None when it must be asked (again)."""
    if not judgment.key or judgment.status == "api_error":
        return None
    refused = judgment.status in ("filtered", "overflow")
    return CachedReply(
        id=judgment.key,
        status=judgment.status if refused else "ok",
        text=judgment.text if judgment.raw_text is None else judgment.raw_text,
        finish_reason=judgment.finish_reason,
        served_model=judgment.served_model,
        input_tokens=judgment.input_tokens,
        output_tokens=judgment.output_tokens,
        error=judgment.error,
        thought=judgment.thought,
    )
