"""Answers for tests of scoring: every shipped dataset with plain golds and answers spoiled at random."""

import random
from collections.abc import Sequence

from evalkit.core import assets
from evalkit.core.config import Config, MetricsConfig, ProtocolConfig
from evalkit.core.files import read_yaml
from evalkit.core.types import Sample
from evalkit.records.results import ProtocolRecord
from evalkit.runs.identity import protocol_record
from evalkit.scoring.scores import GivenAnswer, TaskAnswers, TaskScores, score_tasks
from evalkit.tasks.spec import AnswerKind, TaskSpec, load_spec

TEXTS = ("東京都 positive\n大阪府 neutral", "猫が寝ている。", "The cat sleeps.", "トヨタ自動車 negative")

# The datasets of llm-jp-eval.
JASTER: list[str] = sorted(read_yaml(assets.CONF / "suite" / "jaster.yaml")["tasks"])


def golds(spec: TaskSpec, n: int, rng: random.Random) -> list[str]:
    if spec.answer.kind is AnswerKind.label:
        return [rng.choice(spec.answer.labels) for _ in range(n)]
    if spec.answer.kind is AnswerKind.number:
        return [str(rng.randrange(51) / 10) for _ in range(n)]
    return [rng.choice(TEXTS) for _ in range(n)]


def answers(names: Sequence[str] | None = None, n: int = 20, wrong: float = 0.3) -> list[TaskAnswers]:
    tasks = []
    for name in JASTER if names is None else names:
        rng = random.Random(name)
        spec = load_spec(name)
        gold = golds(spec, n, rng)
        samples = [Sample(f"{name}/dev/{i}", f"入力{i}", text) for i, text in enumerate(gold)]
        completions = {
            s.id: GivenAnswer(rng.choice(gold) if rng.random() < wrong else s.gold, "stop") for s in samples
        }
        tasks.append(TaskAnswers(spec, samples, completions))
    return tasks


def score(tasks: Sequence[TaskAnswers], resamples: int = 200) -> list[TaskScores]:
    return score_tasks(tasks, ProtocolConfig(), MetricsConfig(resamples=resamples), offline=True)


def record_of(config: Config, dtype: str | None = None) -> ProtocolRecord:
    """The protocol of a configuration with its deviations, as a run records it."""
    return protocol_record(config, {"dtype": dtype})
