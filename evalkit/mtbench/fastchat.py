"""FastChat's JSONL files: questions, answers (also reference answers), and judgment logs.

Source: sections 1, 2, 4, 6 and 9 of the MT-Bench protocol notes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evalkit.core.errors import InputError
from evalkit.core.files import JsonObject, int_field, read_rows, text_field, texts_field
from evalkit.mtbench.ratings import Side

Language = Literal["ja", "en"]
LANGUAGES: tuple[Language, ...] = ("ja", "en")
CATEGORIES = ("coding", "extraction", "humanities", "math", "reasoning", "roleplay", "stem", "writing")
# Only these are judged with a reference answer.
REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
ENGLISH_IDS = range(81, 161)


@dataclass(frozen=True, slots=True)
class Question:
    """One question of two turns."""

    id: int
    category: str
    turns: tuple[str, ...]

    @property
    def needs_reference(self) -> bool:
        """Whether the judge sees a reference answer."""
        return self.category in REFERENCE_CATEGORIES


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A model's answers to the turns of one question; `choice` numbers repeated answers from 0."""

    question_id: int
    model: str
    turns: tuple[str, ...]
    choice: int = 0


def language_of(question_id: int) -> Language:
    """The language of a question by its id: 1 to 80 Japanese, 81 to 160 English."""
    return "en" if question_id in ENGLISH_IDS else "ja"


def questions_from(rows: Iterable[tuple[str, JsonObject]]) -> dict[int, Question]:
    """Question rows by id, in file order.

    Raises:
        InputError: a field is missing or has another type, or an id appears twice.
    """
    questions: dict[int, Question] = {}
    for place, row in rows:
        question = Question(
            id=int_field(row, "question_id", place),
            category=text_field(row, "category", place),
            turns=texts_field(row, "turns", place),
        )
        if question.id in questions:
            raise InputError(f"question {question.id} appears twice", where=place)
        questions[question.id] = question
    return questions


def answers_from(rows: Iterable[tuple[str, JsonObject]]) -> list[ModelAnswer]:
    """Answer rows (also those of a reference file), one per choice.

    Raises:
        InputError: a field is missing or has another type.
    """
    answers = []
    for place, row in rows:
        question_id = int_field(row, "question_id", place)
        model = text_field(row, "model_id", place)
        choices = row.get("choices")
        if not isinstance(choices, list) or not choices:
            raise InputError("a list of choices was expected", where=f"{place}, field choices")
        for index, choice in enumerate(choices):
            inner = f"{place}, field choices[{index}]"
            if not isinstance(choice, dict):
                raise InputError("an object was expected", where=inner)
            turns = texts_field(choice, "turns", inner)
            number = int_field(choice, "index", inner) if "index" in choice else index
            answers.append(ModelAnswer(question_id, model, turns, number))
    return answers


def references_from(rows: Iterable[tuple[str, JsonObject]]) -> dict[int, tuple[str, ...]]:
    """The reference answers of both turns by question id; the last row of an id counts."""
    return {answer.question_id: answer.turns for answer in answers_from(rows) if answer.choice == 0}


# The answers of each model by question.
AnswersByQuestion = Mapping[str, Mapping[int, ModelAnswer]]
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
    for place, row in rows_of(path):
        if "g1_winner" in row:
            pairs.append(pair_of(row, place))
        else:
            singles.append(_single(row, place))
    if not singles and not pairs:
        raise InputError("there is no judgment in the file", where=path)
    return JudgmentLog(tuple(singles), tuple(pairs))


def read_answers(path: Path) -> list[ModelAnswer]:
    """The answers of a FastChat answer file, or of every *.jsonl of a folder, in order.

    Raises:
        InputError: a malformed row, or two files have the same answer.
    """
    files = [(file, answers_from(read_rows(file, mend=True))) for file in jsonl_files(path)]
    refuse_overlap((one.model, one.question_id, one.choice, file) for file, own in files for one in own)
    return [answer for _, own in files for answer in own]


def refuse_overlap(found: Iterable[tuple[str, int, int, Path]]) -> None:
    """Refuses two runs of one model, which would be mixed question by question.

    Args:
        found: model, question, number of the answer, and the file or folder that has it.

    Raises:
        InputError: two files or folders have the same answer; it names both.
    """
    places: dict[tuple[str, int, int], Path] = {}
    for model, question_id, choice, place in found:
        other = places.setdefault((model, question_id, choice), place)
        if other != place:
            raise InputError(
                f"two runs of {model}: question {question_id} is answered in {other} and in {place}",
                fix="give one of them; to compare both, make one under another name (model.name=, "
                "in an answer file model_id)",
            )


def rows_of(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """The rows of a file, or of every *.jsonl of a folder, each with its place for messages."""
    for file in jsonl_files(path):
        yield from read_rows(file, mend=True)


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


def _single(row: JsonObject, place: str) -> LoggedSingle:
    judge, prompt_name = _judge(row, place)
    return LoggedSingle(
        question_id=int_field(row, "question_id", place),
        turn=_turn(row, place),
        model=text_field(row, "model", place),
        judge=judge,
        prompt_name=prompt_name,
        user_prompt=_text(row, "user_prompt", place),
        judgment=_text(row, "judgment", place),
        score=_score(row, place),
    )


def pair_of(row: JsonObject, place: str) -> LoggedPair:
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
        user_prompts=(_text(row, "g1_user_prompt", place), _text(row, "g2_user_prompt", place)),
        judgments=(_text(row, "g1_judgment", place), _text(row, "g2_judgment", place)),
        winners=(_side(row, "g1_winner", place), _side(row, "g2_winner", place)),
    )


def _judge(row: JsonObject, place: str) -> tuple[str, str]:
    value = row.get("judge")
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return value[0], value[1]
    raise InputError("[judge model, prompt name] was expected", where=f"{place}, field judge")


def _turn(row: JsonObject, place: str) -> int:
    turn = int_field(row, "turn", place)
    if turn not in (1, 2):
        raise InputError(f"turn {turn} is neither 1 nor 2", where=f"{place}, field turn")
    return turn


def _score(row: JsonObject, place: str) -> float:
    value = row.get("score")
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise InputError("a number was expected", where=f"{place}, field score")


def _side(row: JsonObject, key: str, place: str) -> Side:
    for side in SIDES:
        if row.get(key) == side:
            return side
    raise InputError(f"{row.get(key)!r} is none of {', '.join(SIDES)}", where=f"{place}, field {key}")


def _text(row: JsonObject, key: str, place: str) -> str | None:
    return text_field(row, key, place) if row.get(key) is not None else None
