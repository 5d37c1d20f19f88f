"""Judge prompts: which one a match takes, and its messages as the judge sees them.

Source: sections 4, 5 and 9 of the MT-Bench protocol notes. Templates are filled in one pass, so
braces that come in with a question or an answer are never expanded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Literal

from evalkit.core.errors import InputError
from evalkit.core.files import Row, text_field
from evalkit.core.types import Message
from evalkit.mtbench.questions import Question
from evalkit.mtbench.ratings import VERDICT_FORMAT

# The prompts by name: the fields of a template, those it must have first.
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "single-v1": (("answer",), ("question",)),
    "single-math-v1": (("answer",), ("question", "ref_answer_1")),
    "single-v1-multi-turn": (("answer_2",), ("question_1", "answer_1", "question_2")),
    "single-math-v1-multi-turn": (
        ("answer_2",),
        ("question_1", "answer_1", "question_2", "ref_answer_1", "ref_answer_2"),
    ),
    "pair-v2": (("answer_a", "answer_b"), ("question",)),
    "pair-math-v1": (("answer_a", "answer_b"), ("question", "ref_answer_1")),
    "pair-v2-multi-turn": (
        ("answer_a_2", "answer_b_2"),
        ("question_1", "question_2", "answer_a_1", "answer_b_1"),
    ),
    "pair-math-v1-multi-turn": (
        ("answer_a_2", "answer_b_2"),
        ("question_1", "question_2", "answer_a_1", "answer_b_1", "ref_answer_1", "ref_answer_2"),
    ),
}
Kind = Literal["single", "pair"]


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One row of a judge prompt file; `output_format` is the form of the answer it asks for."""

    name: str
    system: str
    template: str
    output_format: str = VERDICT_FORMAT

    def messages(self, fields: Mapping[str, str]) -> tuple[Message, Message]:
        """The system and the user message with `fields` filled into the template."""
        return Message("system", self.system), Message("user", self.template.format_map(fields))


@dataclass(frozen=True)
class PromptBook:
    """The judge prompts of one file by name, with the questions and references they are filled with."""

    prompts: Mapping[str, JudgePrompt]
    questions: Mapping[int, Question]
    references: Mapping[int, tuple[str, ...]]

    def single(
        self, question_id: int, turn: int, answers: tuple[str, ...]
    ) -> tuple[str, tuple[Message, ...]]:
        """The prompt's name and messages that rate turn 1 or 2 of an answer.

        Raises:
            InputError: unknown question, no such prompt, or a turn or reference that is missing.
        """
        return self._filled("single-v1", "single-math-v1", question_id, turn, {"answer": answers})

    def pair(
        self, question_id: int, turn: int, first: tuple[str, ...], second: tuple[str, ...]
    ) -> tuple[str, tuple[Message, ...]]:
        """The prompt's name and messages that compare assistant A (`first`) with B (`second`).

        Raises:
            InputError: unknown question, no such prompt, or a turn or reference that is missing.
        """
        sides = {"answer_a": first, "answer_b": second}
        return self._filled("pair-v2", "pair-math-v1", question_id, turn, sides)

    def _filled(
        self,
        general: str,
        with_reference: str,
        question_id: int,
        turn: int,
        sides: Mapping[str, tuple[str, ...]],
    ) -> tuple[str, tuple[Message, ...]]:
        """The prompt's name and messages; `sides` are the answers by the name of their template field."""
        question = self._question(question_id)
        name = with_reference if question.needs_reference else general
        prompt = self._prompt(name if turn == 1 else f"{name}-multi-turn")
        for answers in sides.values():
            _need_turns(answers, turn, f"answer to question {question_id}")
        if turn == 1:
            fields = {"question": question.turns[0]} | {side: answers[0] for side, answers in sides.items()}
        else:
            fields = {f"question_{number}": question.turns[number - 1] for number in (1, 2)}
            for side, answers in sides.items():
                fields |= {f"{side}_{number}": answers[number - 1] for number in (1, 2)}
        return prompt.name, prompt.messages(fields | self._reference(question, turn))

    def _question(self, question_id: int) -> Question:
        try:
            return self.questions[question_id]
        except KeyError:
            raise InputError(f"question {question_id} is not in the preset's question file") from None

    def _prompt(self, name: str) -> JudgePrompt:
        try:
            return self.prompts[name]
        except KeyError:
            raise InputError(f"the preset's judge prompts have no {name!r}") from None

    def _reference(self, question: Question, turn: int) -> dict[str, str]:
        if not question.needs_reference:
            return {}
        reference = self.references.get(question.id)
        if reference is None:
            raise InputError(f"question {question.id} ({question.category}) has no reference answer")
        _need_turns(reference, turn, f"reference answer to question {question.id}")
        return {f"ref_answer_{index}": reference[index - 1] for index in range(1, turn + 1)}


def prompts_from(rows: Iterable[tuple[str, Row]]) -> dict[str, JudgePrompt]:
    """Judge prompt rows by name.

    Raises:
        InputError: a field is missing, or a template has an unknown field or lacks the answer.
    """
    prompts = {}
    for place, row in rows:
        prompt = JudgePrompt(
            name=text_field(row, "name", place),
            system=text_field(row, "system_prompt", place),
            template=text_field(row, "prompt_template", place),
            output_format=str(row.get("output_format", VERDICT_FORMAT)),
        )
        _check_template(prompt, place)
        prompts[prompt.name] = prompt
    return prompts


def _check_template(prompt: JudgePrompt, place: str) -> None:
    where = f"{place}, field prompt_template"
    try:
        parts = list(Formatter().parse(prompt.template))
    except ValueError as error:
        raise InputError(f"not a template: {error}", where=where) from None
    needed, more = _FIELDS.get(prompt.name, ((), tuple(_ALL_FIELDS)))
    for _, field, form, conversion in parts:
        # Plain names only: `{answer.x}` or `{answer!r}` would reach into the value.
        if field is not None and (field not in needed + more or form or conversion):
            raise InputError(
                f"unknown template field {{{field}}}",
                where=where,
                fix=f"known fields of {prompt.name}: {', '.join(sorted(needed + more))}",
            )
    used = {field for _, field, _, _ in parts}
    if missing := [field for field in needed if field not in used]:
        raise InputError(
            f"the template shows the judge no {{{missing[0]}}}", where=where, fix=f"add {{{missing[0]}}}"
        )


_ALL_FIELDS = frozenset(field for needed, more in _FIELDS.values() for field in needed + more)


def prompt_names(kind: Kind, turns: Sequence[int]) -> list[str]:
    """The names of the prompts that rate one answer or compare two, in these turns."""
    wanted = [name for name in _FIELDS if name.startswith(f"{kind}-")]
    return [name for name in wanted if 2 in turns or not name.endswith("-multi-turn")]


def _need_turns(turns: tuple[str, ...], turn: int, what: str) -> None:
    if len(turns) < turn:
        raise InputError(f"the {what} has {len(turns)} turn(s), turn {turn} is asked for")
