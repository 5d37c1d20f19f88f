"""The prompts of pfgen-bench: 20 example answers drawn anew in each trial, then the question.

Source: docs/protocol/pfgen.md, sections 2 and 3. BOS and chat templates belong to the engine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha1
from typing import Any

from evalkit.core.config import PfgenMode
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Message, Request, Sample
from evalkit.metrics.pfgen import FIGURES
from evalkit.tasks.load import Task
from evalkit.tasks.prompts import Asking
from evalkit.tasks.spec import TaskSpec

DATASET = "pfgen"
SHOTS = 20
MOST_TRIALS = 100
# An empty answer is asked again, this often in all.
ATTEMPTS = 10
# What the protocol sets that others leave alone, by option; the values are in conf/suite/pfgen.yaml too.
PRESET: dict[str, Any] = {"num_few_shots": SHOTS, "generation.do_sample": True, "generation.top_p": 0.98}
# What comes before the examples; a base model is told nothing.
INSTRUCTIONS = {
    PfgenMode.completion: "",
    PfgenMode.qa: "例と同様の文体及び文字数で、質問に1行で答えてください。\n\n",
    PfgenMode.chat: "例と同様の文体及び文字数で、ユーザの質問に1行で答えてください。\n\n",
}


class PfgenSpec(TaskSpec):
    """The dataset: the whole answer counts, and each has the number of its trial, also the only one."""

    verbatim = True

    def ids(self, sample_id: str, samples: int) -> list[str]:
        """`Q01/1`, `Q01/2` and so on."""
        return [f"{sample_id}/{trial}" for trial in range(1, samples + 1)]


SPEC = PfgenSpec(
    name=DATASET,
    instruction="",
    output_length=300,
    metrics=list(FIGURES),
    counts="score",
    license="Apache-2.0",
    citation="Imajo et al. (2025), arXiv 2502.09316",
)


def few_shots(pool: Sequence[Sample], asked: str, trial: int, seed: str = "") -> list[Sample]:
    """The examples of the asked question in one trial (from 1), by the seed text: its own is never one.

    `pool` has pairs of question (`input`) and answer (`gold`).
    """
    others = [pair for pair in pool if pair.input != asked]
    return sorted(others, key=lambda pair: _sha1(seed, trial, pair.input))[:SHOTS]


def _sha1(*parts: object) -> str:
    return sha1("::".join(map(str, parts)).encode()).hexdigest()


def render(mode: PfgenMode, examples: Sequence[Sample], asked: str) -> str | tuple[Message, ...]:
    """The prompt: text in mode `completion`, else chat messages."""
    shown = "".join(f"Q: {pair.input}\nA: {pair.gold}\n\n" for pair in examples).strip()
    head = (INSTRUCTIONS[mode] + "## 回答例\n" + shown).strip()
    if mode is PfgenMode.completion:
        return f"{head}\n\nQ: {asked}\nA:"
    if mode is PfgenMode.qa:
        return (Message("user", f"{head}\n\n## 質問\nQ: {asked}"),)
    return Message("system", head), Message("user", f"Q: {asked}")


def trial_seed(trial: int, seed: str = "", attempt: int = 1) -> int:
    """The seed of the random draws of a trial, 0 to 2^31 - 1: the same for its 50 questions.

    An answer that was empty is drawn with another; the protocol leaves open which.
    """
    return int(_sha1(seed, trial, *([attempt] if attempt > 1 else [])), 16) % 2**31


def stop_strings(mode: PfgenMode, special: Sequence[str] = ()) -> tuple[str, ...]:
    """What ends an answer; `special` are the texts of the tokenizer's EOS and BOS."""
    blank_line = ["\n\n"] if mode is PfgenMode.completion else []
    return tuple(dict.fromkeys(["Q:", *blank_line, *special]))


def answer_of(text: str, mode: PfgenMode, stop: Sequence[str]) -> str:
    """The answer in a completion, up to the first stop string; empty: the model gave none."""
    for end in stop:
        text = text.partition(end)[0]
    if mode is not PfgenMode.completion and "A:" in text:
        text = text.split("A:", 1)[1]
    return text.strip()


@dataclass(frozen=True)
class PfgenAsking(Asking):
    """How pfgen asks: trial by trial, for the prompts of one share their examples.

    `seed_text` is that of few-shots and random draws (the protocol's is empty), `stop` what ends an answer.
    """

    mode: PfgenMode = PfgenMode.completion
    seed_text: str = ""
    stop: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """Mode, seed text and stop strings; more trials continue fewer."""
        return {DATASET: {"mode": self.mode.value, "seed": self.seed_text, "stop": list(self.stop)}}

    def shots(self, task: Task) -> int:
        """Examples in each prompt; all pairs of the dataset are the pool they are drawn from."""
        return SHOTS

    def words_sha256(self, task: Task) -> str:
        """The hash of the prompt of no question, with the whole pool as its examples."""
        prompt = render(self.mode, task.few_shots, "")
        return text_sha256(
            prompt if isinstance(prompt, str) else canonical_json([asdict(one) for one in prompt])
        )

    def requests(self, task: Task) -> Iterator[Request]:
        """The requests of all trials, trial by trial."""
        for trial in range(1, self.samples + 1):
            seed = trial_seed(trial, self.seed_text)
            for sample in task.samples:
                examples = few_shots(task.few_shots, sample.input, trial, self.seed_text)
                prompt = render(self.mode, examples, sample.input)
                yield self.request(task.spec, f"{sample.id}/{trial}", prompt, self.stop, seed)

    def again(self, request: Request, answer: str, attempt: int) -> Request | None:
        """The request with the seed of the next attempt where the answer is empty."""
        if attempt == ATTEMPTS or answer_of(answer, self.mode, self.stop):
            return None
        trial = int(request.id.rpartition("/")[2])
        return replace(request, seed=trial_seed(trial, self.seed_text, attempt + 1))
