"""The prompts of pfgen-bench: few-shots by trial, the three modes, seeds, stop strings and answers."""

import json
from dataclasses import replace
from hashlib import sha1
from itertools import pairwise, takewhile
from pathlib import Path

import pytest

from evalkit.core.assets import cache_dir
from evalkit.core.config import PfgenMode
from evalkit.core.options import load_config, parse
from evalkit.core.text import text_sha256
from evalkit.core.types import Message, Request, Sample
from evalkit.runs.suite import asking_of
from evalkit.sources.pfgen import read_pool
from evalkit.tasks import pfgen
from evalkit.tasks.load import Task

POOL = tuple(Sample(f"Q{n:02}", f"質問{n}？", f"答え{n}。") for n in range(1, 51))
COMPLETION, QA, CHAT = PfgenMode
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1-b179c9523d0e"


def asked(*words: str, pool: tuple[Sample, ...] = POOL) -> list[Request]:
    config = load_config(parse(["suite=pfgen", *words], ()))
    return list(asking_of(config, None).requests(Task(pfgen.SPEC, pool, pool, {})))


def order(trial: int, seed: str = "") -> list[str]:
    return sorted(
        (pair.input for pair in POOL), key=lambda text: sha1(f"{seed}::{trial}::{text}".encode()).hexdigest()
    )


def test_few_shots_are_the_first_twenty_by_hash_without_the_asked_pair() -> None:
    ranked = order(3, "s")
    for question in (ranked[0], ranked[19], ranked[20], ranked[49]):
        shots = [pair.input for pair in pfgen.few_shots(POOL, question, 3, "s")]
        assert shots == [text for text in ranked if text != question][:20]
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
    assert pfgen.render(COMPLETION, examples, "何？") == f"{shown}\n\nQ: 何？\nA:"
    assert pfgen.render(QA, examples, "何？") == (
        Message(
            "user", f"例と同様の文体及び文字数で、質問に1行で答えてください。\n\n{shown}\n\n## 質問\nQ: 何？"
        ),
    )
    assert pfgen.render(CHAT, examples, "何？") == (
        Message("system", f"例と同様の文体及び文字数で、ユーザの質問に1行で答えてください。\n\n{shown}"),
        Message("user", "Q: 何？"),
    )


def test_requests_of_a_trial_share_seed_and_settings_and_more_trials_continue_fewer() -> None:
    one, two = asked("samples=1"), asked("samples=2")
    assert len(asked()) == 500
    assert two[:50] == one and [request.id for request in two[49:51]] == ["Q50/1", "Q01/2"]
    assert {request.seed for request in one} == {int(sha1(b"::1").hexdigest(), 16) % 2**31}
    assert two[50].seed != one[0].seed and two[50].prompt != one[0].prompt
    assert one[0].stop == ("Q:", "\n\n") and one[0].max_new_tokens == 300
    seeded = asked("pfgen.mode=chat", "samples=1", "seed=7")[0]
    assert seeded.stop == ("Q:",) and seeded.seed == pfgen.trial_seed(1, "7") != pfgen.trial_seed(1)
    assert pfgen.stop_strings(COMPLETION, ["</s>", "<s>", "</s>"]) == ("Q:", "\n\n", "</s>", "<s>")


def test_an_empty_answer_is_asked_again_with_another_seed() -> None:
    config = load_config(parse(["suite=pfgen", "samples=2"], ()))
    asking = asking_of(config, None)
    request = asked("samples=2")[51]
    again = asking.again(request, " \n\n", 1)
    assert again == replace(request, seed=pfgen.trial_seed(2, "", 2)) and again.seed != request.seed
    assert asking.again(request, "答え", 1) is None and asking.again(request, "", pfgen.ATTEMPTS) is None


def test_the_answer_in_a_completion() -> None:
    stop = ("Q:", "\n\n")
    assert pfgen.answer_of(" 答え。\n\n", COMPLETION, stop) == "答え。"
    assert pfgen.answer_of("答え。\nQ:", COMPLETION, stop) == "答え。"
    # An engine may stop a little later than at the string.
    assert pfgen.answer_of("答え。\n\nQ: 次", COMPLETION, stop) == "答え。"
    assert pfgen.answer_of("A: 答え", COMPLETION, stop) == "A: 答え"
    assert pfgen.answer_of("はい。\nA: 一つ A: 二つ\nQ:", QA, ("Q:",)) == "一つ A: 二つ"
    assert pfgen.answer_of("A:\nQ:", CHAT, ("Q:",)) == ""


@pytest.mark.sources
def test_the_settings_are_those_of_the_published_sets(mirror: Path) -> None:
    for path in (mirror / "pfgen" / "published").glob("*/*/config.json"):
        config = json.loads(path.read_text())
        mode = PfgenMode(config["mode"])
        request = asked(f"pfgen.mode={mode.value}", "samples=1")[0]
        assert config["stop"] == list(request.stop)
        sampling = request.sampling
        assert (config["temperature"], config["top_p"]) == (sampling.temperature, sampling.top_p)
        assert (sampling.do_sample, sampling.top_k) == (True, 0)
        assert (config["max_tokens"], config["num_examples"]) == (request.max_new_tokens, pfgen.SHOTS)


@pytest.mark.sources
@pytest.mark.parametrize(
    ("mode", "digest"),
    [
        (COMPLETION, "8123fe8325d71ac46eb0420fad79dc332b282996874231b1d2a7af758ada4f59"),
        (QA, "4b519c3aaca899860da29bfe750a8a50445f68067d3e1da91717f72b8aea5062"),
        (CHAT, "97cbd5fbc673032aae8db74a4c79050341d5458a64c568aadb7cb0e999123e30"),
    ],
)
def test_the_prompts_are_byte_for_byte_those_whose_tokens_were_counted(
    mirror: Path, mode: PfgenMode, digest: str
) -> None:
    prompts = asked(f"pfgen.mode={mode.value}", "samples=2", pool=read_pool(_pool(mirror)))
    assert text_sha256("\0".join(str(request.prompt) for request in prompts)) == digest


@pytest.mark.sources
@pytest.mark.campaign
def test_ten_trials_have_the_tokens_of_the_protocol_notes(mirror: Path) -> None:
    """docs/protocol/pfgen.md, section 2: counted there from prompts of another implementation."""
    from tokenizers import Tokenizer

    path = cache_dir() / "models" / SMOLLM2 / "tokenizer.json"
    if not path.is_file():
        pytest.skip("SmolLM2 is not in the cache: evalkit prepare model=smollm2-135m")
    texts = [str(request.prompt) for request in asked(pool=read_pool(_pool(mirror)))]
    ids = sorted(one.ids for one in Tokenizer.from_file(str(path)).encode_batch(texts))
    shared = sum(
        len(list(takewhile(lambda two: two[0] == two[1], zip(a, b, strict=False)))) for a, b in pairwise(ids)
    )
    assert (whole := sum(map(len, ids))) == 2_164_051 and whole - shared == 505_331


def _pool(mirror: Path) -> Path:
    return mirror / "pfgen" / "data" / "questions.jsonl"
