"""Who is asked with which parameters."""

import pytest

from evalkit.core.config import JudgeConfig, JudgeKind
from evalkit.core.types import Message
from evalkit.mtbench.judge.judges import resolve_judge, template_args
from evalkit.mtbench.presets import load_preset

PRESET = load_preset("fastchat")
GIVEN = {"temperature": 0, "max_tokens": 2048, "top_p": 0.9, "n": 1, "seed": None}


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("gpt-5.2", {"temperature": 0, "max_completion_tokens": 2048, "n": 1}),
        ("gpt-4o-2024-08-06", {"temperature": 0, "max_tokens": 2048, "top_p": 0.9, "n": 1}),
        ("gpt-oss-20b", {"temperature": 0, "max_tokens": 2048, "top_p": 0.9, "n": 1}),
    ],
)
def test_names_that_begin_with_gpt_5_take_other_parameters(
    model: str, sent: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 14."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    chosen = JudgeConfig(name="openai", model=model, parameters=GIVEN)
    assert resolve_judge(chosen, PRESET).parameters == sent
    azure = JudgeConfig(name="azure", kind=JudgeKind.azure, deployment=model, parameters=GIVEN)
    assert resolve_judge(azure, PRESET).parameters == sent


def test_the_effort_is_sent_only_when_it_is_set_and_is_part_of_the_key() -> None:
    messages = [Message("user", "?")]

    def keys(**parameters: object) -> tuple[str, ...]:
        judge = resolve_judge(JudgeConfig(name="openai", model="gpt-5.2", parameters=parameters), PRESET)
        return judge.keys(messages, 0)

    assert keys() == keys(reasoning_effort=None)
    assert len({keys(), keys(reasoning_effort="low"), keys(reasoning_effort="high")}) == 3


def test_what_a_local_judge_hands_to_its_template() -> None:
    given = {"temperature": 0, "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True}}
    assert template_args(given) == {"enable_thinking": True, "reasoning_effort": "low"}
