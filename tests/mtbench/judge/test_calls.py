"""How a judge's replies are read: thoughts, answerless judgments, re-asks."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, rating_of
from little_bench import Bench, make_bench
from test_judging import judge, results, stored

from evalkit.__main__ import main
from evalkit.mtbench.folder import MtBenchFolder
from tests.thinking import END, START, save_thinking_model

DROP = dict.fromkeys(("out_of_range", "unparsed", "malformed", "filtered", "overflow", "api_error"), "drop")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


class Thinker(FaultServer):
    """A service with a reasoning parser, whose first replies to everything are thoughts alone."""

    thoughts_alone = 1

    def completion(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
        completion = super().completion(text, body)
        message = completion["choices"][0]["message"]
        message["reasoning_content"] = "Perhaps [[2]]."
        if self.attempts[text] <= self.thoughts_alone:
            message["content"] = None
        return completion


def test_a_rule_splits_the_judges_text_before_the_rating_is_read(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench, out = make_bench(tmp_path, 1), tmp_path / "run"
    with FaultServer() as server:
        server.text_of = lambda rating: f"{START}Perhaps [[1]].{END}\nRating: [[{rating}]]"
        assert judge(bench, out, server, "judge.parser=think") == 0
        expected = sorted(rating_of(text) for text in server.calls)
        judgments = MtBenchFolder(out).judgments("gpt-4")
        assert sorted(one.rating or 0 for one in judgments) == expected
        assert all(one.text == f"Rating: [[{one.rating}]]" and one.strict == one.rating for one in judgments)
        assert all((one.raw_text or "").startswith(START) for one in judgments)
        assert results(out)["judge"]["parser"]["rule"] == "think"
        # The replies are kept whole: another rule asks nothing.
        assert judge(bench, out, server) == 0
        assert {one.rating for one in MtBenchFolder(out).judgments("gpt-4")} == {1}
        assert "parser" not in results(out)["judge"]
        assert "16 judgments have the marks of a thought" in caplog.text
        assert judge(bench, out, server, "judge.parser=regex", "judge.pattern=Rating: (.*)") == 0
        assert sorted(one.rating or 0 for one in MtBenchFolder(out).judgments("gpt-4")) == expected
        assert len(server.calls) == 16


def test_a_thought_without_an_answer_is_asked_again_within_the_presets_re_asks(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, out = make_bench(tmp_path, 1, reasks=1), tmp_path / "run"
    with Thinker() as server:
        assert judge(bench, out, server) == 0
        assert len(server.calls) == 32
        assert results(out)["tables"]["m"]["statuses"] == {"ok": 16}
        # The thought is kept, and no rating is read from it.
        first, *_ = MtBenchFolder(out).judgments("gpt-4")
        assert first.thought == "Perhaps [[2]]." and first.text == f"説明です。\n\nRating: [[{first.rating}]]"
        assert sorted(row["text"] == "" for row in stored()) == [False] * 16 + [True] * 16
        assert judge(bench, out, server) == 0
        assert len(server.calls) == 32
    capsys.readouterr()
    shutil.rmtree(cache)
    with Thinker() as server:
        server.thoughts_alone = 2
        assert judge(bench, out.with_name("never"), server) == 0
        never = results(out.with_name("never"))
        assert never["tables"]["m"]["statuses"] == {"answerless": 16}
        assert "16 with a thought and no answer" in capsys.readouterr().out
        # Nor is it asked a third time, also by the run folder alone.
        shutil.rmtree(cache)
        before = len(server.calls)
        assert judge(bench, out.with_name("never"), server) == 0
        assert len(server.calls) == before


def test_a_thought_that_never_ends_is_answerless(tmp_path: Path, cache: Path) -> None:
    with FaultServer() as server:
        server.text_of = lambda rating: f"{START}Perhaps [[{rating}]]."
        assert judge(make_bench(tmp_path, 1), tmp_path / "run", server, "judge.parser=think") == 0
    content = results(tmp_path / "run")
    assert content["tables"]["m"]["statuses"] == {"answerless": 16}
    assert content["mt_bench"]["m"]["llm_leaderboard"]["average"] == -1


def test_re_asks_and_scores_of_llm_jp_judge(tmp_path: Path, cache: Path) -> None:
    """Section 14: at most 4 calls, a bad request is one of them, no rating is in no mean."""
    statuses = {"ok": "value", "answerless": "drop"} | DROP
    rule = {"parser": "llm_jp_judge", "aggregation": "llm_jp_judge", "reasks": 3, "reask_refused": True}
    bench, out = make_bench(tmp_path, 1, statuses=statuses, **rule), tmp_path / "run"
    texts = {"coding": "[[0]] [5], so [[8]]", "math": "[5], 5/10", "writing": "[[10]]", "stem": "[[9]]"}

    class Service(FaultServer):
        def completion(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
            completion = super().completion(text, body)
            said = next((words for category, words in texts.items() if category in text), "[[4]]")
            completion["choices"][0]["message"]["content"] = said
            return completion

    with Service() as server:
        server.plan = lambda text, attempt: (
            "filter" if "roleplay" in text or ("stem" in text and attempt < 2) else "ok"
        )
        assert judge(bench, out, server) == 0
        calls = {name: sum(name in text for text in server.calls) for name in (*texts, "roleplay")}
        assert calls == {"coding": 2, "math": 8, "writing": 2, "stem": 6, "roleplay": 8}
    content = results(out)
    assert content["tables"]["m"]["statuses"] == {"ok": 12, "unparsed": 2, "filtered": 2}
    scopes = {name: (cell["value"], cell["n"]) for name, cell in content["tables"]["m"]["scopes"].items()}
    # Twice each: coding 8, writing 10, stem 9; extraction, humanities and reasoning 4; nothing else.
    assert scopes["average"] == (pytest.approx((8 + 10 + 9 + 3 * 4) / 6), 12)
    assert scopes["turn_1"] == scopes["turn_2"] == (pytest.approx(6.5), 6)
    assert scopes["coding"] == (8, 2)
    assert "math" not in scopes or scopes["math"] == (None, 0)
    assert content["mt_bench"]["m"]["llm_jp_judge"]["average"] == pytest.approx(6.5)


def test_a_local_judge_that_thinks(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_thinking_model(tmp_path / "model", (START, "[[1]]か。", END, "[[7]]"))
    bench, out = make_bench(tmp_path, 1), tmp_path / "run"
    words = ["judge", f"preset={bench.preset}", f"mirror={bench.mirror}", "judge=local"]
    words += [
        f"judge.model={model}",
        "metrics.resamples=20",
        "engine.threads=1",
        "judge.parameters.max_tokens=9",
    ]
    answers = bench.answers(tmp_path / "answers.jsonl", "m")
    assert main([*words, f"answers={answers}", f"out={out}"]) == 0
    content = results(out)
    assert content["judge"]["parser"]["rule"] == "think"
    assert content["mt_bench"]["m"]["show_result"]["average"] == 7
    # The prompt ends inside the thought, and one token does not end it.
    short = ["judge.parameters.max_tokens=1", "judge.parameters.chat_template_kwargs.open_thought=true"]
    assert main([*words, f"run={out}", *short]) == 0
    assert results(out)["tables"]["m"]["statuses"] == {"answerless": 16}
    # Without a rule special tokens are left out: these are other replies.
    assert main([*words, f"run={out}", "judge.parser=none"]) == 0
    assert results(out)["mt_bench"]["m"]["show_result"]["average"] == 1
    capsys.readouterr()
    assert main([*words, f"run={out}", "judge.parser=regex"]) == 2
    assert "judge.pattern" in capsys.readouterr().err
    assert main([*words, f"run={out}", "judge.parameters.chat_template_kwargs=3"]) == 2
    assert "chat_template_kwargs" in capsys.readouterr().err


def test_a_pattern_without_its_rule(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(bench, tmp_path / "run", None, "judge.pattern=x") == 2
    assert "judge.pattern" in capsys.readouterr().err
