"""The verb ask: the prompt as the model sees it, and the card's sampling."""

from pathlib import Path

import pytest

from evalkit.__main__ import main
from evalkit.core.config import AskConfig
from tests.engines.models import template, tokenizer_with
from tests.thinking import END, START, save_thinking_model
from tests.tiny import save_tiny_model


def test_the_sampling_of_the_card() -> None:
    ask = AskConfig()
    assert (ask.max_new_tokens, ask.top_p, ask.temperature, ask.repetition_penalty) == (100, 0.95, 0.7, 1.05)


def test_prompt_and_answer(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", "model=random", "engine.threads=1", "ask.max_new_tokens=5"]
    assert main([*words, "自然言語処理とは何か"]) == 0
    shown = capsys.readouterr().out
    system = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
    assert f"<s>{system}\n\n### 指示:\n自然言語処理とは何か\n\n### 応答:\n" in shown
    assert "answer, 5 tokens" in shown
    assert main([*words, "自然言語処理とは何か"]) == 0
    assert capsys.readouterr().out == shown
    assert main([*words, "seed=7", "自然言語処理とは何か"]) == 0
    assert capsys.readouterr().out != shown
    assert main([*words, "ask.system=別の指示", "二つの", "言葉"]) == 0
    assert "<s>別の指示\n\n### 指示:\n二つの 言葉" in capsys.readouterr().out


def test_a_chat_template_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}")
    assert main(["ask", "model=random", f"model.chat_template={path}", "ask.max_new_tokens=2", "x"]) == 0
    assert "[user] x" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["ask", "x"], ["ask", "model=random"], ["ask", "model=random", " "]])
def test_nothing_to_ask(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "自然言語処理とは何か" in capsys.readouterr().err


def test_a_prompt_without_a_template_is_shown_as_it_is_fed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BOS by the rule and once, no EOS behind."""
    model = save_tiny_model(tmp_path / "model")
    tokenizer_with(template("<s> $A </s>")).save_pretrained(model)
    (model / "chat_template.jinja").unlink()
    words = ["ask", "model=hf", f"model.path={model}", "ask.max_new_tokens=1"]
    for question, options, shown in (("問い", [], "<s>問い"), ("<s>問い", [], "<s>問い")):
        assert main([*words, *options, question]) == 0
        assert f"\n{shown}\n" in capsys.readouterr().out
    assert main([*words, "protocol.bos=none", "問い"]) == 0
    assert "\n問い\n" in capsys.readouterr().out


def test_a_system_message_the_template_drops_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[-1]['content'] }}")
    words = ["ask", "model=random", f"model.chat_template={path}", "ask.max_new_tokens=2"]
    assert main([*words, "x"]) == 0 and not caplog.records
    assert main([*words, "ask.system=規則", "x"]) == 0
    assert "ask.system is left out" in caplog.text


def test_a_broken_template_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[0]['content'] + 1 }}")
    assert main(["ask", "model=random", f"model.chat_template={path}", "x"]) == 2
    error = capsys.readouterr().err
    assert "the chat template fails" in error and str(path) in error and "Traceback" not in error


def test_a_thought_is_shown_apart_and_has_its_own_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (START, "長い思案。" * 100, END, *(f"答{number}" for number in range(8)))
    model = save_thinking_model(tmp_path / "model", script)
    words = ["ask", "model=hf", f"model.path={model}", "engine.threads=1", "ask.temperature=0", "問い"]
    assert main([*words, "ask.max_new_tokens=3", "reasoning.thought_length=20"]) == 0
    said = capsys.readouterr().out
    assert "--- thought, 1 tokens, rule think\n長い思案。" in said and "200 characters more (--long" in said
    assert said.endswith("--- answer, 3 tokens, stop, cut_off, rule think\n答0答1答2\n")
    # The template opens the thought; --long shows it whole.
    opened = ["model.chat_template_args.open_thought=true", "--long", "ask.max_new_tokens=9"]
    assert main([*words, *opened]) == 0
    said = capsys.readouterr().out
    assert f"<think>\n--- thought, 1 tokens, rule think\n{script[1]}\n" in said
    assert main([*words, "reasoning.parser=none", "ask.max_new_tokens=4"]) == 0
    said = capsys.readouterr().out
    assert "--- thought" not in said and f"{START}{script[1]}{END}答0" in said
