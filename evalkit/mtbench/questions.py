"""Question, reference and answer files in FastChat's JSONL form.

Source: sections 1, 2 and 6 of the MT-Bench protocol notes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from evalkit.core.errors import InputError
from evalkit.core.files import Row, int_field, text_field, texts_field

Language = Literal["ja", "en"]

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


def questions_from(rows: Iterable[tuple[str, Row]]) -> dict[int, Question]:
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


def answers_from(rows: Iterable[tuple[str, Row]]) -> list[ModelAnswer]:
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


def references_from(rows: Iterable[tuple[str, Row]]) -> dict[int, tuple[str, ...]]:
    """The reference answers of both turns by question id; the last row of an id counts."""
    return {answer.question_id: answer.turns for answer in answers_from(rows) if answer.choice == 0}
