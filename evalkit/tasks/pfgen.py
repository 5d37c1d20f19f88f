"""The prompts of pfgen-bench: 20 example answers drawn anew in each trial, then the question.

Source: docs/protocol/pfgen.md, sections 2 and 3. BOS and chat templates belong to the engine.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha1
from typing import Literal

from evalkit.core.types import Message, Request, Sample, Sampling

Mode = Literal["completion", "qa", "chat"]
MODES: tuple[Mode, ...] = ("completion", "qa", "chat")
SHOTS = 20
MAX_NEW_TOKENS = 300
SAMPLING = Sampling(do_sample=True, temperature=1.0, top_p=0.98)
EXAMPLES = "## 回答例\n"
# What comes before the examples; a base model is told nothing.
INSTRUCTIONS: dict[Mode, str] = {
    "completion": "",
    "qa": "例と同様の文体及び文字数で、質問に1行で答えてください。\n\n",
    "chat": "例と同様の文体及び文字数で、ユーザの質問に1行で答えてください。\n\n",
}


def few_shots(pool: Sequence[Sample], asked: str, trial: int, seed: str = "") -> list[Sample]:
    """The examples of one question in one trial: its own pair is never among them.

    Args:
        pool: pairs of question (`input`) and answer (`gold`).
        asked: the question.
        trial: from 1.
        seed: the seed text.
    """

    def rank(pair: Sample) -> str:
        return sha1(f"{seed}::{trial}::{pair.input}".encode()).hexdigest()

    return sorted((pair for pair in pool if pair.input != asked), key=rank)[:SHOTS]


def render(mode: Mode, examples: Sequence[Sample], asked: str, prefix: str = "") -> str | tuple[Message, ...]:
    """The prompt: text in mode `completion`, else chat messages. `prefix` stands before everything."""
    shown = "".join(f"Q: {pair.input}\nA: {pair.gold}\n\n" for pair in examples).strip()
    head = prefix + (INSTRUCTIONS[mode] + EXAMPLES + shown).strip()
    if mode == "completion":
        return f"{head}\n\nQ: {asked}\nA:"
    if mode == "qa":
        return (Message("user", f"{head}\n\n## 質問\nQ: {asked}"),)
    return Message("system", head), Message("user", f"Q: {asked}")


def trial_seed(trial: int, seed: str = "") -> int:
    """The seed of the random draws of a trial, 0 to 2^31 - 1: the same for its 50 questions."""
    return int(sha1(f"{seed}::{trial}".encode()).hexdigest(), 16) % 2**31


def stop_strings(mode: Mode, special: Sequence[str] = ()) -> tuple[str, ...]:
    """What ends an answer; `special` are the texts of the tokenizer's EOS and BOS."""
    return ("Q:", *(("\n\n",) if mode == "completion" else ()), *special)


def requests(
    samples: Sequence[Sample],
    pool: Sequence[Sample],
    mode: Mode,
    trials: int,
    *,
    seed: str = "",
    prefix: str = "",
    special: Sequence[str] = (),
) -> Iterator[Request]:
    """The requests of trials 1 to `trials`, trial by trial: the prompts of one share their examples.

    The id is `Q01/1` for the first trial of Q01, so that more trials continue fewer. For the other arguments
    see `few_shots`, `render` and `stop_strings`.
    """
    for trial in range(1, trials + 1):
        for sample in samples:
            yield Request(
                id=f"{sample.id}/{trial}",
                prompt=render(mode, few_shots(pool, sample.input, trial, seed), sample.input, prefix),
                max_new_tokens=MAX_NEW_TOKENS,
                stop=stop_strings(mode, special),
                sampling=SAMPLING,
                seed=trial_seed(trial, seed),
            )
