"""The certificate holds in float32, and notices an engine that does change outputs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from evalkit.__main__ import main
from evalkit.core.types import Completion
from evalkit.engines.local.engine import LocalEngine
from evalkit.engines.local.running_rows import RunningRow, failed, problem_of
from evalkit.engines.local.tokens import Encoded
from evalkit.runs import certify as runs_certify
from evalkit.scoring.scores import TaskAnswers
from tests.thinking import save_thinking_model

WORDS = ["certify", "model=random", "suite=sample", "suite.tasks=[jamp,mawps]", "limit=3", "offline=true"]


def test_float32_is_certified(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(WORDS) == 0
    printed = capsys.readouterr().out
    assert "certified: nothing changed" in printed and printed.count("batch ") == 8


def test_a_changed_output_is_not_certified(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a prompt that the model cannot answer: it is left out."""
    honest = LocalEngine.together

    def dishonest(self: LocalEngine, requests: Sequence[object]) -> Iterator[RunningRow]:
        for row in honest(self, requests):  # type: ignore[arg-type]
            if row.request.id == "mawps/bundled/0":
                row.new[0] += 1
            yield row

    def too_long(encoded: Encoded, *limits: int | None) -> Completion | None:
        whole = encoded.request.id != "mawps/bundled/1"
        return problem_of(encoded, *limits) if whole else failed(encoded, "too long", over_context=True)

    monkeypatch.setattr(LocalEngine, "together", dishonest)
    monkeypatch.setattr("evalkit.engines.local.engine.problem_of", too_long)
    assert main(WORDS) == 1
    captured = capsys.readouterr()
    assert "NOT exact: 8 outputs changed" in captured.out and "5 prompts" in captured.out
    assert "left out: 1 of 6 prompts" in captured.err


def test_bfloat16_is_measured(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "dtype=bfloat16"]) == 0
    assert "dtype bfloat16" in capsys.readouterr().out


def test_a_thinking_model_is_graded_by_its_answers(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graded = set()
    score = runs_certify.score_tasks

    def seen(tasks: Sequence[TaskAnswers], *rest: object, **options: object) -> object:
        graded.update(answer.text for task in tasks for answer in task.completions.values())
        return score(tasks, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runs_certify, "score_tasks", seen)
    model = save_thinking_model(tmp_path / "model")
    words = ["certify", "model=hf", f"model.path={model}", *WORDS[2:], "limit=1", "suite.chat=true"]
    assert main([*words, "reasoning.thought_length=50"]) == 0
    assert graded == {"3"}
