"""Logged judgments -> a run: parsed again, prompts rendered again and compared byte for byte.

The tables use the scores as they were logged, every row by itself, as the originals count them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from evalkit.core.errors import InputError
from evalkit.core.types import Judgment, JudgmentStatus, Message
from evalkit.mtbench.folder import logged_label
from evalkit.mtbench.judge_prompts import PromptBook
from evalkit.mtbench.logs import LoggedPair, LoggedSingle
from evalkit.mtbench.pairwise import Match, game_sides
from evalkit.mtbench.questions import Answer
from evalkit.mtbench.ratings import (
    HIGHEST,
    LOWEST,
    VERDICT_FORMAT,
    Rating,
    parse_pair,
    parse_rating,
    parse_strict,
)
from evalkit.mtbench.rules import MINUS_ONE, Scored

# What FastChat writes where the judge could not be asked.
API_ERROR_TEXT = "$ERROR$"

Answers = Mapping[str, Mapping[int, Answer]]
BookOf = Callable[[int], PromptBook]


@dataclass(frozen=True)
class Fidelity:
    """How much of a log comes out again.

    `scores_*`: logged scores against the text read anew (for pairwise logs: winners of games).
    `prompts_*`: logged prompts against prompts rendered anew, out of those whose answers are there;
    None when no answers were given. `not_rendered`: the reasons of the others, with their numbers.
    """

    rows: int
    duplicates: int
    scores_compared: int
    scores_equal: int
    prompts_compared: int | None
    prompts_equal: int | None
    not_rendered: dict[str, int]


@dataclass(frozen=True)
class Replayed:
    """One model's part of a replayed log.

    `scores` are the logged ones, `reparsed` those read anew from the judgments.
    """

    model: str
    judges: tuple[str, ...]
    scores: tuple[Scored, ...]
    reparsed: tuple[Scored, ...]
    judgments: tuple[Judgment, ...]
    fidelity: Fidelity


def replay_singles(rows: Sequence[LoggedSingle], book_of: BookOf, answers: Answers | None) -> list[Replayed]:
    """The single ratings of a log, one result per model in order of appearance.

    Raises:
        InputError: a question that is in none of the preset's question files.
    """
    by_model: dict[str, list[LoggedSingle]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    return [_replay_model(model, part, book_of, answers) for model, part in by_model.items()]


def _replay_model(model: str, rows: list[LoggedSingle], book_of: BookOf, answers: Answers | None) -> Replayed:
    judgments, scores, reparsed = [], [], []
    compared, equal = 0, 0
    renderings = _Renderings()
    seen: Counter[tuple[int, int]] = Counter()
    for row in rows:
        key = (row.question_id, row.turn)
        category = _category(book_of, row.question_id)
        judgment = _read_anew(row, category, seen[key])
        seen[key] += 1
        judgments.append(judgment)
        value = MINUS_ONE if judgment.rating is None else judgment.rating
        scores.append(Scored(row.question_id, category, row.turn, row.score))
        reparsed.append(Scored(row.question_id, category, row.turn, value))
        if row.judgment is not None:
            compared += 1
            equal += value == row.score
        if answers is not None:
            renderings.compare(row.user_prompt, partial(_render, row, book_of, answers))
    return Replayed(
        model=model,
        judges=tuple(dict.fromkeys(row.judge for row in rows)),
        scores=tuple(scores),
        reparsed=tuple(reparsed),
        judgments=tuple(judgments),
        fidelity=renderings.fidelity(len(rows), len(rows) - len(seen), compared, equal, answers is not None),
    )


@dataclass(frozen=True)
class ReplayedPairs:
    """The pairwise part of a replayed log: matches as logged, and as read anew."""

    judges: tuple[str, ...]
    matches: tuple[Match, ...]
    reparsed: tuple[Match, ...]
    fidelity: Fidelity


def replay_pairs(rows: Sequence[LoggedPair], book_of: BookOf, answers: Answers | None) -> ReplayedPairs:
    """The pairwise matches of a log; two games each.

    Raises:
        InputError: a question that is in none of the preset's question files.
    """
    matches, reparsed = [], []
    compared, equal = 0, 0
    renderings = _Renderings()
    for row in rows:
        _category(book_of, row.question_id)
        prompt = book_of(row.question_id).prompts.get(row.prompt_name)
        form = prompt.output_format if prompt else VERDICT_FORMAT
        read = game_sides(*(parse_pair(text, form) for text in row.judgments))
        lengths = _lengths(row, answers)
        names = (row.question_id, row.turn, row.model_1, row.model_2)
        matches.append(Match(*names, *row.winners, lengths))
        reparsed.append(Match(*names, *read, lengths))
        for game in (0, 1):
            if row.judgments[game] is not None:
                compared += 1
                equal += read[game] == row.winners[game]
            if answers is not None:
                renderings.compare(row.user_prompts[game], partial(_render_game, row, game, book_of, answers))
    keys = {(row.question_id, row.turn, row.model_1, row.model_2) for row in rows}
    return ReplayedPairs(
        judges=tuple(dict.fromkeys(row.judge for row in rows)),
        matches=tuple(matches),
        reparsed=tuple(reparsed),
        fidelity=renderings.fidelity(len(rows), len(rows) - len(keys), compared, equal, answers is not None),
    )


class _Renderings:
    """Counts prompts that come out again, and why others could not be rendered."""

    def __init__(self) -> None:
        self.compared = 0
        self.equal = 0
        self.failures: Counter[str] = Counter()

    def compare(self, logged: str | None, render: Callable[[], tuple[Message, ...]]) -> None:
        if logged is None:
            self.failures["the log has no prompt"] += 1
            return
        try:
            rendered = render()
        except InputError as error:
            self.failures[error.what] += 1
            return
        self.compared += 1
        self.equal += rendered[-1].content == logged

    def fidelity(self, rows: int, duplicates: int, compared: int, equal: int, rendered: bool) -> Fidelity:
        return Fidelity(
            rows=rows,
            duplicates=duplicates,
            scores_compared=compared,
            scores_equal=equal,
            prompts_compared=self.compared if rendered else None,
            prompts_equal=self.equal if rendered else None,
            not_rendered=dict(self.failures),
        )


def _read_anew(row: LoggedSingle, category: str, occurrence: int) -> Judgment:
    rating = parse_rating(row.judgment) if row.judgment is not None else _of_score(row.score)
    status: JudgmentStatus = "api_error" if row.judgment == API_ERROR_TEXT else rating.status
    return Judgment(
        id=f"{row.model}/{row.question_id}/{row.turn}/{occurrence}",
        model=row.model,
        question_id=row.question_id,
        category=category,
        turn=row.turn,
        judge=logged_label(row.judge),
        prompt=row.prompt_name,
        text=row.judgment,
        status=status,
        rating=rating.value,
        rule=rating.rule,
        strict=parse_strict(row.judgment).value,
    )


def _of_score(score: float) -> Rating:
    if score == MINUS_ONE:
        return Rating(None, "unparsed", "none")
    return Rating(score, "ok" if LOWEST <= score <= HIGHEST else "out_of_range", "none")


def _category(book_of: BookOf, question_id: int) -> str:
    question = book_of(question_id).questions.get(question_id)
    if question is None:
        raise InputError(
            f"question {question_id} is not in the preset's question file",
            where="field question_id",
            fix="preset= or language= another one",
        )
    return question.category


def _turns(answers: Answers, model: str, question_id: int) -> tuple[str, ...]:
    answer = answers.get(model, {}).get(question_id)
    if answer is None:
        raise InputError(
            f"no answers of {model}" if model not in answers else f"an answer of {model} is missing"
        )
    return answer.turns


def _render(row: LoggedSingle, book_of: BookOf, answers: Answers) -> tuple[Message, ...]:
    turns = _turns(answers, row.model, row.question_id)
    return book_of(row.question_id).single(row.question_id, row.turn, turns)[1]


def _render_game(row: LoggedPair, game: int, book_of: BookOf, answers: Answers) -> tuple[Message, ...]:
    sides = [_turns(answers, model, row.question_id) for model in (row.model_1, row.model_2)]
    first, second = sides if game == 0 else reversed(sides)
    return book_of(row.question_id).pair(row.question_id, row.turn, first, second)[1]


def _lengths(row: LoggedPair, answers: Answers | None) -> tuple[int, int] | None:
    try:
        sides = [_turns(answers or {}, model, row.question_id) for model in (row.model_1, row.model_2)]
    except InputError:
        return None
    if any(len(turns) < row.turn for turns in sides):
        return None
    return len(sides[0][row.turn - 1]), len(sides[1][row.turn - 1])
