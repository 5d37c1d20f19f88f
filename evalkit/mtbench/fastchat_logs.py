"""FastChat's judgment logs (model_judgment/*.jsonl): single ratings and pairwise games.

Source: sections 4 and 9 of the MT-Bench protocol notes.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evalkit.core.errors import InputError
from evalkit.core.files import Row, int_field, read_rows, text_field
from evalkit.mtbench.questions import ModelAnswer, answers_from
from evalkit.mtbench.ratings import Side

# The answers of each model by question.
Answers = Mapping[str, Mapping[int, ModelAnswer]]
SIDES: tuple[Side, ...] = ("model_1", "model_2", "tie", "error")


@dataclass(frozen=True, slots=True)
class LoggedSingle:
    """One logged rating; `score` is what the log says, -1 for a failed judgment."""

    question_id: int
    turn: int
    model: str
    judge: str
    prompt_name: str
    user_prompt: str | None
    judgment: str | None
    score: float


@dataclass(frozen=True, slots=True)
class LoggedPair:
    """One logged match: what each game showed, answered and was counted as."""

    question_id: int
    turn: int
    model_1: str
    model_2: str
    judge: str
    prompt_name: str
    user_prompts: tuple[str | None, str | None]
    judgments: tuple[str | None, str | None]
    winners: tuple[Side, Side]


@dataclass(frozen=True)
class JudgmentLog:
    """The rows of one or more log files, in order."""

    singles: tuple[LoggedSingle, ...]
    pairs: tuple[LoggedPair, ...]


def read_judgments(path: Path) -> JudgmentLog:
    """Reads a log file, or every *.jsonl of a folder.

    Raises:
        InputError: nothing there, or a row that is neither a rating nor a match.
    """
    singles, pairs = [], []
    for file in jsonl_files(path):
        for place, row in read_rows(file, mend=True):
            if "g1_winner" in row:
                pairs.append(pair_of(row, place))
            else:
                singles.append(_single(row, place))
    if not singles and not pairs:
        raise InputError("there is no judgment in the file", where=path)
    return JudgmentLog(tuple(singles), tuple(pairs))


def read_answers(path: Path) -> list[ModelAnswer]:
    """The answers of a FastChat answer file, or of every *.jsonl of a folder, in order."""
    return [answer for file in jsonl_files(path) for answer in answers_from(read_rows(file, mend=True))]


def jsonl_files(path: Path) -> list[Path]:
    """The file itself, or the *.jsonl files of a folder.

    Raises:
        InputError: no such file or folder, or a folder without any.
    """
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise InputError("no *.jsonl file in the folder", where=path)
    return files


def answers_by_model(answers: Iterable[ModelAnswer]) -> dict[str, dict[int, ModelAnswer]]:
    """The first choice of every answer by model and question; the last row of a question counts."""
    found: dict[str, dict[int, ModelAnswer]] = {}
    for answer in answers:
        if answer.choice == 0:
            found.setdefault(answer.model, {})[answer.question_id] = answer
    return found


def _single(row: Row, place: str) -> LoggedSingle:
    judge, prompt_name = _judge(row, place)
    return LoggedSingle(
        question_id=int_field(row, "question_id", place),
        turn=_turn(row, place),
        model=text_field(row, "model", place),
        judge=judge,
        prompt_name=prompt_name,
        user_prompt=_optional_text(row, "user_prompt", place),
        judgment=_optional_text(row, "judgment", place),
        score=_score(row, place),
    )


def pair_of(row: Row, place: str) -> LoggedPair:
    """One row of a pairwise log.

    Raises:
        InputError: a field is missing or has another type.
    """
    judge, prompt_name = _judge(row, place)
    return LoggedPair(
        question_id=int_field(row, "question_id", place),
        turn=_turn(row, place),
        model_1=text_field(row, "model_1", place),
        model_2=text_field(row, "model_2", place),
        judge=judge,
        prompt_name=prompt_name,
        user_prompts=(
            _optional_text(row, "g1_user_prompt", place),
            _optional_text(row, "g2_user_prompt", place),
        ),
        judgments=(_optional_text(row, "g1_judgment", place), _optional_text(row, "g2_judgment", place)),
        winners=(_side(row, "g1_winner", place), _side(row, "g2_winner", place)),
    )


def _judge(row: Row, place: str) -> tuple[str, str]:
    value = row.get("judge")
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return value[0], value[1]
    raise InputError("[judge model, prompt name] was expected", where=f"{place}, field judge")


def _turn(row: Row, place: str) -> int:
    turn = int_field(row, "turn", place)
    if turn not in (1, 2):
        raise InputError(f"turn {turn} is neither 1 nor 2", where=f"{place}, field turn")
    return turn


def _score(row: Row, place: str) -> float:
    value = row.get("score")
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise InputError("a number was expected", where=f"{place}, field score")


def _side(row: Row, key: str, place: str) -> Side:
    value = row.get(key)
    for side in SIDES:
        if value == side:
            return side
    raise InputError(f"{value!r} is none of {', '.join(SIDES)}", where=f"{place}, field {key}")


def _optional_text(row: Row, key: str, place: str) -> str | None:
    return text_field(row, key, place) if row.get(key) is not None else None
