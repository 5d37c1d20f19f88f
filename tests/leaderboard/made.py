"""Whole runs without a model: the real `run`, its engine replaced by one that knows the answers.

Each dataset gets `n` items in its format; a made-up model answers right with a probability of its
own. COMET is replaced by an overlap of characters, so that all nine categories are there.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from evalkit.core.options import load_config, parse
from evalkit.core.types import Completion, Request
from evalkit.metrics import METRICS
from evalkit.metrics.match import char_f1
from evalkit.metrics.metric import SampleMetric
from evalkit.records.results import Results
from evalkit.runs.life import Outcome
from evalkit.runs.run import evaluate
from evalkit.tasks.load import load_bundled, prepared_path
from evalkit.tasks.spec import load_spec
from tests.scored import JASTER

SCRIPT = "<script>document.title='gone'</script></script><img src=x onerror=alert(1)>"


@dataclass
class Made:
    """A made-up model: its name, how often it is right, the seed of its mistakes, and its only thought."""

    name: str
    skill: float
    seed: int = 0
    also_wrong: str = SCRIPT
    thought: str = ""


def write_data(folder: Path, n: int, names: Sequence[str] | None = None) -> Path:
    """Prepared files for every dataset: `n` items of dev, made from the bundled ones."""
    for name in JASTER if names is None else names:
        task = load_bundled(load_spec(name))
        for split, samples, count in (("train", task.few_shots, 4), ("dev", task.samples, n)):
            rows = [samples[index % len(samples)] for index in range(count)]
            content = {
                "samples": [
                    {"input": f"{row.input}（{index}）" if split == "dev" else row.input, "output": row.gold}
                    for index, row in enumerate(rows)
                ]
            }
            path = prepared_path(folder, split, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


class KnowingEngine:
    """Answers with the gold of the prepared file, or with something wrong."""

    def __init__(self, model: Made, data: Path) -> None:
        self.model, self.data = model, data
        self.golds: dict[str, list[str]] = {}

    def __enter__(self) -> "KnowingEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"engine": "made"}

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            text = self._answer(request.id)
            if self.model.thought:
                text = f"<think>{self.model.thought}</think>\n{text}"
            yield Completion(request.id, text, text, "stop", 100, len(text))

    def _answer(self, key: str) -> str:
        name, split, index, *_ = key.split("/")
        if name not in self.golds:
            content = json.loads(prepared_path(self.data, "dev", name).read_text(encoding="utf-8"))
            self.golds[name] = [row["output"] for row in content["samples"]]
        golds = self.golds[name]
        # Hard items are hard for every model: a paired test uses that.
        hard = random.Random(f"{name}/{split}/{index}").random()
        luck = random.Random(f"{self.model.seed}{key}").random()
        if 0.5 * hard + 0.5 * luck < self.model.skill:
            return golds[int(index)]
        return self.model.also_wrong if luck > 0.9 else golds[(int(index) + 1) % len(golds)]


def make_run(model: Made, data: Path, out: Path, *options: str) -> Outcome[Results]:
    """Runs `model` on the data and returns the outcome."""
    words = [
        "model=random",
        f"model.name={model.name}",
        f"model.random.seed={model.seed}",
        f"data_dir={data}",
        f"out={out}",
        "offline=true",
        *([] if any(option.startswith("suite=") for option in options) else ["suite=jaster"]),
        *options,
    ]
    config = load_config(parse(words, ["run"]))
    with pytest.MonkeyPatch.context() as patch:
        overlap = SampleMetric("comet_wmt22", "overlap", lambda p, g: char_f1(p, g))
        patch.setitem(METRICS, "comet_wmt22", overlap)
        patch.setattr("evalkit.engines.build_engine", lambda *_, **__: KnowingEngine(model, data))
        return evaluate(config, say=lambda line: None)
