"""Judge prompts: which one, filled with what, and what is refused."""

from typing import Any

import pytest

from evalkit.core.errors import InputError
from evalkit.mtbench.books import JudgePrompt, PromptBook, prompts_from
from evalkit.mtbench.fastchat import Question, answers_from, questions_from

QUESTIONS = {
    1: Question(1, "coding", ("q1 {answer}", "q2")),
    2: Question(2, "stem", ("s1", "s2")),
}


def book(**templates: str) -> PromptBook:
    prompts = {name: JudgePrompt(name, f"system of {name}", template) for name, template in templates.items()}
    return PromptBook(prompts, QUESTIONS, {1: ("r1", "r2")})


def test_braces_in_data_are_never_expanded() -> None:
    prompts = book(**{"single-math-v1": "{question}|{answer}|{ref_answer_1}|{{kept}}"})
    name, messages = prompts.single(1, 1, ("{ref_answer_1} {question}",))
    assert name == "single-math-v1"
    assert messages[0].content == "system of single-math-v1"
    assert messages[1].content == "q1 {answer}|{ref_answer_1} {question}|r1|{kept}"


def test_pairs_show_both_turns_of_both() -> None:
    template = "{question_1}{question_2} {answer_a_1}{answer_a_2} {answer_b_1}{answer_b_2}"
    prompts = book(**{"pair-v2-multi-turn": template})
    name, messages = prompts.pair(2, 2, ("a", "b"), ("c", "d"))
    assert name == "pair-v2-multi-turn"
    assert messages[1].content == "s1s2 ab cd"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda b: b.single(9, 1, ("a",)), "question 9"),
        (lambda b: b.single(2, 1, ("a",)), "no 'single-v1'"),
        (lambda b: b.single(1, 2, ("a", "b")), "no 'single-math-v1-multi-turn'"),
        (lambda b: b.single(1, 1, ()), "has 0 turn"),
    ],
)
def test_what_cannot_be_rendered(call: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        call(book(**{"single-math-v1": "{question}"}))


def test_a_reference_that_is_missing() -> None:
    prompts = PromptBook(
        {"single-math-v1": JudgePrompt("single-math-v1", "", "{ref_answer_1}")}, QUESTIONS, {}
    )
    with pytest.raises(InputError, match="no reference answer"):
        prompts.single(1, 1, ("a",))


@pytest.mark.parametrize(
    "template", ["{answer.__class__}", "{answer!r}", "{answer:>9}", "{}", "{0}", "{x}", "{"]
)
def test_templates_are_checked(template: str) -> None:
    row = {"name": "single-v1", "system_prompt": "", "prompt_template": template}
    with pytest.raises(InputError, match="field prompt_template"):
        prompts_from([("file, line 1", row)])


def test_question_files_are_checked() -> None:
    good = {"question_id": "7", "category": "math", "turns": ["a", "b"]}
    assert questions_from([("line 1", good)])[7].turns == ("a", "b")
    for change in (
        {"question_id": "seven"},
        {"question_id": True},
        {"category": 1},
        {"turns": []},
        {"turns": "a"},
    ):
        with pytest.raises(InputError, match="line 1, field"):
            questions_from([("line 1", good | change)])
    with pytest.raises(InputError, match="appears twice"):
        questions_from([("line 1", good), ("line 2", good)])


def test_answers_keep_every_choice() -> None:
    row = {
        "question_id": 1,
        "model_id": "m",
        "choices": [{"index": 0, "turns": ["a", "b"]}, {"index": 1, "turns": ["c", "d"]}],
    }
    assert [(answer.choice, answer.turns) for answer in answers_from([("line 1", row)])] == [
        (0, ("a", "b")),
        (1, ("c", "d")),
    ]
    with pytest.raises(InputError, match=r"field choices\[0\]"):
        answers_from([("line 1", row | {"choices": ["a"]})])
