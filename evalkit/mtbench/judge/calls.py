"""What a judge is asked about a run: one Ask per turn and repeat, and what its answers amount to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evalkit.core.errors import InputError
from evalkit.core.types import Judgment, JudgmentStatus, Message
from evalkit.mtbench.data import Books
from evalkit.mtbench.judge.judges import Judge
from evalkit.mtbench.judge.store import JudgmentStore, Stored, judgment_key
from evalkit.mtbench.presets import Preset
from evalkit.mtbench.questions import Answer
from evalkit.mtbench.ratings import HIGHEST, LOWEST, parse_rating, parse_strict


@dataclass(frozen=True)
class Ask:
    """One judgment that is wanted. `keys` address it and its re-asks, in order."""

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


@dataclass(frozen=True)
class Plan:
    """Everything a judge is asked about a run. `missing` says what cannot be asked, and why."""

    asks: tuple[Ask, ...]
    missing: tuple[str, ...]


def plan_asks(answers: Sequence[Answer], books: Books, preset: Preset, judge: Judge, repeats: int) -> Plan:
    """The asks of every answer in question order, first turns before second ones.

    Raises:
        InputError: an answer to a question the preset does not have.
    """
    asks, missing = [], []
    for answer in sorted(answers, key=lambda answer: (answer.model, answer.choice, answer.question_id)):
        book = books.of(answer.question_id)
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
            for repeat in range(repeats):
                asks.append(
                    Ask(
                        id=f"{answer.question_id}/{turn}/{answer.choice}/{repeat}/{answer.model}",
                        model=answer.model,
                        question_id=answer.question_id,
                        category=question.category,
                        turn=turn,
                        answer=answer.choice,
                        repeat=repeat,
                        prompt=prompt,
                        messages=messages,
                        keys=keys_of(judge, messages, repeat, preset.reasks),
                    )
                )
    asks.sort(key=lambda ask: (ask.model, ask.repeat, ask.answer, ask.turn))
    return Plan(tuple(asks), tuple(missing))


def keys_of(judge: Judge, messages: Sequence[Message], repeat: int, reasks: int = 0) -> tuple[str, ...]:
    """The addresses of a judgment and of its re-asks."""
    return tuple(
        judgment_key(judge.identity, judge.parameters, messages, repeat, reask) for reask in range(reasks + 1)
    )


def open_key(ask: Ask, store: JudgmentStore) -> str | None:
    """The address that must still be asked; None when the ask is answered.

    A preset that re-asks goes on while the rating is no whole number from 1 to 10.
    """
    for key in ask.keys:
        stored = store.get(key)
        if stored is None:
            return key
        if not _ask_again(stored):
            return None
    return None


def _ask_again(stored: Stored) -> bool:
    if stored.status != "ok":
        return False
    value = parse_rating(stored.text).value
    return value is None or value != int(value) or not LOWEST <= value <= HIGHEST


def final(ask: Ask, store: JudgmentStore) -> Stored | None:
    """The answer that counts: the last one that was given."""
    given = [stored for key in ask.keys if (stored := store.get(key)) is not None]
    return given[-1] if given else None


def judgment_of(ask: Ask, judge: Judge, stored: Stored) -> Judgment:
    """The answer of the service as a judgment with both ratings."""
    rating = parse_rating(stored.text) if stored.status == "ok" else None
    status: JudgmentStatus
    if rating is not None:
        status = rating.status
    elif stored.status == "filtered":
        status = "filtered"
    elif stored.status == "overflow":
        status = "overflow"
    else:
        status = "api_error"
    return Judgment(
        id=ask.id,
        model=ask.model,
        question_id=ask.question_id,
        category=ask.category,
        turn=ask.turn,
        judge=judge.label,
        prompt=ask.prompt,
        text=stored.text,
        status=status,
        rating=rating.value if rating else None,
        rule=rating.rule if rating else "none",
        strict=parse_strict(stored.text).value if rating else None,
        answer=ask.answer,
        repeat=ask.repeat,
        key=stored.id,
        served_model=stored.served_model,
        input_tokens=stored.input_tokens,
        output_tokens=stored.output_tokens,
        error=stored.error,
    )


def stored_of(judgment: Judgment) -> Stored | None:
    """The answer behind a judgment a run folder kept; None when it must be asked (again)."""
    if not judgment.key or judgment.status == "api_error":
        return None
    refused = judgment.status in ("filtered", "overflow")
    return Stored(
        id=judgment.key,
        status=judgment.status if refused else "ok",
        text=judgment.text,
        finish_reason=None,
        served_model=judgment.served_model,
        input_tokens=judgment.input_tokens,
        output_tokens=judgment.output_tokens,
        error=judgment.error,
    )


def unanswered(asks: Iterable[Ask], store: JudgmentStore) -> list[Ask]:
    """The asks that need a call; asks with the same content need one together."""
    seen: set[str] = set()
    waiting = []
    for ask in asks:
        key = open_key(ask, store)
        if key is not None and key not in seen:
            seen.add(key)
            waiting.append(ask)
    return waiting
