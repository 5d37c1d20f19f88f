"""The prompts of pfgen-bench: few-shots by trial, the three modes, seeds and stop strings."""

import json
from hashlib import sha1
from pathlib import Path

import pytest

from evalkit.core.types import Message, Sample
from evalkit.tasks import pfgen

POOL = [Sample(f"Q{n:02}", f"質問{n}？", f"答え{n}。") for n in range(1, 51)]


def order(trial: int, seed: str = "") -> list[str]:
    return sorted(
        (pair.input for pair in POOL), key=lambda text: sha1(f"{seed}::{trial}::{text}".encode()).hexdigest()
    )


def test_few_shots_are_the_first_twenty_by_hash_without_the_asked_pair() -> None:
    ranked = order(3, "s")
    for asked in (ranked[0], ranked[19], ranked[20], ranked[49]):
        shots = [pair.input for pair in pfgen.few_shots(POOL, asked, 3, "s")]
        assert shots == [text for text in ranked if text != asked][:20]
    # 30 of 50 questions share all twenty.
    shared = [
        pair.input
        for pair in POOL
        if [s.input for s in pfgen.few_shots(POOL, pair.input, 1)] == order(1)[:20]
    ]
    assert len(shared) == 30


def test_the_prompts_of_the_three_modes() -> None:
    examples = POOL[:2]
    shown = "## 回答例\nQ: 質問1？\nA: 答え1。\n\nQ: 質問2？\nA: 答え2。"
    assert pfgen.render("completion", examples, "何？") == f"{shown}\n\nQ: 何？\nA:"
    assert pfgen.render("qa", examples, "何？") == (
        Message(
            "user", f"例と同様の文体及び文字数で、質問に1行で答えてください。\n\n{shown}\n\n## 質問\nQ: 何？"
        ),
    )
    assert pfgen.render("chat", examples, "何？") == (
        Message("system", f"例と同様の文体及び文字数で、ユーザの質問に1行で答えてください。\n\n{shown}"),
        Message("user", "Q: 何？"),
    )
    assert str(pfgen.render("completion", examples, "何？", "前。\n")).startswith("前。\n## 回答例\n")
    assert pfgen.render("chat", examples, "何？", "前。")[0].content.startswith("前。例と")  # type: ignore[union-attr]


def test_requests_of_a_trial_share_seed_and_settings_and_more_trials_continue_fewer() -> None:
    one, two = (list(pfgen.requests(POOL, POOL, "completion", n, special=("</s>",))) for n in (1, 2))
    assert two[:50] == one and [request.id for request in two[49:51]] == ["Q50/1", "Q01/2"]
    assert {request.seed for request in one} == {int(sha1(b"::1").hexdigest(), 16) % 2**31}
    assert two[50].seed != one[0].seed and two[50].prompt != one[0].prompt
    assert one[0].stop == ("Q:", "\n\n", "</s>") and one[0].max_new_tokens == 300
    chat = next(pfgen.requests(POOL, POOL, "chat", 1, seed="s"))
    assert chat.stop == ("Q:",) and chat.seed == pfgen.trial_seed(1, "s") != pfgen.trial_seed(1)


@pytest.mark.sources
def test_the_settings_are_those_of_the_published_sets(mirror: Path) -> None:
    for path in (mirror / "pfgen" / "published").glob("*/*/config.json"):
        config = json.loads(path.read_text())
        assert config["stop"] == list(pfgen.stop_strings(config["mode"]))
        assert (config["temperature"], config["top_p"]) == (pfgen.SAMPLING.temperature, pfgen.SAMPLING.top_p)
        assert (config["max_tokens"], config["num_examples"]) == (pfgen.MAX_NEW_TOKENS, pfgen.SHOTS)
