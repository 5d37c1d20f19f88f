"""python benchmarks/engine.py [--full] [--rounds 3]: evalkit's engine beside others, in one run.

Real 4-shot prompts of the mirror, SmolLM2-135M and a random model of the llm-jp-3 1.8b shape with
fewer layers, fp32. The engines take turns, three rounds; a figure is the median over the rounds of
the ratio to one-prompt-at-a-time `generate` in the same round. evalkit answers all prompts of a
dataset in every round; the slower engines answer a share of them (all with --full), and their time
is scaled by the number of prompt tokens. Writes the table into docs/performance.md.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rivals import harness, transformers_engines

from evalkit.core.config import Config
from evalkit.core.options import load_config, parse
from evalkit.core.types import Request
from evalkit.engines import build_engine
from evalkit.engines.local.engine import LocalEngine
from evalkit.engines.local.tokens import EndIds
from evalkit.engines.models import resolve
from evalkit.sources.prepare import prepare
from evalkit.tasks.load import load_task
from evalkit.tasks.prompts import Asking
from evalkit.tasks.spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
MIRROR = ROOT.parent / "shared" / "sources"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- engine table: written by benchmarks/engine.py -->", "<!-- end of the engine table -->"
# Prompts a slower engine answers per round without --full.
SHARE = 8
RIVALS: dict[str, Callable[..., list[list[int]]]] = {
    "batches of 16": transformers_engines.batches_of_16,
    "continuous batching": transformers_engines.continuous,
}


@dataclass(frozen=True)
class Workload:
    """Prompts of one dataset; `forced`: exactly `new` tokens each, whatever they are."""

    dataset: str
    new: int
    samples: int
    target: float
    forced: bool = False


WORKLOADS = (
    Workload("jcommonsenseqa", 1, 100, 5.0),
    Workload("jamp", 3, 100, 6.0),
    Workload("jemhopqa", 15, 100, 4.5),
    Workload("wiki_reading", 64, 16, 4.5, forced=True),
)


@dataclass
class Row:
    """A line of the table: ratios by engine, one per round."""

    model: str
    workload: Workload
    bound: float
    ratios: dict[str, list[float]] = field(default_factory=dict)
    compared: int = 0
    mismatches: int = 0

    def median(self, engine: str) -> float | None:
        """The median ratio of an engine over the rounds; None when it was not run."""
        return statistics.median(self.ratios[engine]) if self.ratios.get(engine) else None


class Bench:
    """One model with its prompts, ready to be asked by every engine."""

    def __init__(self, words: list[str], data: Path, full: bool) -> None:
        self.config: Config = load_config(parse([*words, "dtype=float32", "engine.device=cpu"], {"run"}))
        assert self.config.model is not None
        self.resolved = resolve(self.config.model, offline=False)
        engine = build_engine(self.resolved, self.config.engine, self.config.dtype)
        assert isinstance(engine, LocalEngine)
        self.engine = engine
        self.loaded = engine._model()
        self.data = data
        self.full = full

    def requests(self, workload: Workload) -> list[Request]:
        """The workload's prompts as requests."""
        task = load_task(load_spec(workload.dataset), self.data, limit=workload.samples)
        asked = Asking(seed=0).requests(task)
        stop = () if workload.forced else ("\n\n",)
        return [replace(one, max_new_tokens=workload.new, stop=stop) for one in asked]

    def evalkit(self, asked: list[Request], forced: bool) -> tuple[float, dict[str, str]]:
        """Seconds for all requests, and the raw texts by id."""
        ends = self.loaded.ends
        self.loaded.ends = EndIds(frozenset(), frozenset()) if forced else ends
        start = time.perf_counter()
        texts = {done.id: done.raw_text for done in self.engine.generate(asked)}
        taken = time.perf_counter() - start
        self.loaded.ends = ends
        return taken, texts

    def measure(self, workload: Workload, rounds: int, lm_eval_python: Path | None) -> Row:
        """Runs every engine in turn, `rounds` times."""
        asked = self.requests(workload)
        ids = [self.loaded.tokenizer(str(one.prompt))["input_ids"] for one in asked]
        row = Row(self.resolved.name, workload, _prefill_bound(ids))
        share = len(asked) if self.full else SHARE
        for turn in range(rounds):
            part = [index % len(asked) for index in range(turn * share, (turn + 1) * share)]
            scale = sum(map(len, ids)) / sum(len(ids[index]) for index in part)
            prompts = [ids[index] for index in part]
            base, answers = self._timed(transformers_engines.sequential, prompts, workload)
            base *= scale
            taken, texts = self.evalkit(asked, workload.forced)
            row.ratios.setdefault("evalkit", []).append(base / taken)
            row.compared += len(part)
            row.mismatches += sum(
                texts[asked[index].id] != self._text(answer, workload)
                for index, answer in zip(part, answers, strict=True)
            )
            for name, engine in RIVALS.items():
                other, _ = self._timed(engine, prompts, workload)
                row.ratios.setdefault(name, []).append(base / (other * scale))
            if lm_eval_python and self.resolved.path and not workload.forced:
                texts_in = [str(asked[index].prompt) for index in part]
                other = harness.seconds(lm_eval_python, self.resolved.path, texts_in, workload.new)
                row.ratios.setdefault("lm-eval HF", []).append(base / (other * scale))
            print(f"{row.model} {workload.dataset}: round {turn + 1} of {rounds}", file=sys.stderr)
        return row

    def _timed(self, engine: Callable[..., Any], prompts: list[list[int]], workload: Workload) -> Any:
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        with self.engine.usual_attention():
            start = time.perf_counter()
            answers = engine(model, tokenizer, prompts, workload.new, workload.forced)
            return time.perf_counter() - start, answers

    def _text(self, answer: list[int], workload: Workload) -> str:
        kept: list[int] = []
        for token in answer:
            if not workload.forced and token in self.loaded.ends.text:
                break
            kept.append(token)
            if not workload.forced and "\n\n" in self.loaded.tokenizer.decode(kept[-4:]):
                break
        text: str = self.loaded.tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _prefill_bound(ids: list[list[int]]) -> float:
    """Prompt tokens over the tokens left when what all prompts share is computed once."""
    first, last = min(ids), max(ids)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = min(shared, min(map(len, ids)) - 1)
    return sum(map(len, ids)) / (shared + sum(len(one) - shared for one in ids))


def table(rows: list[Row]) -> str:
    """The Markdown table."""
    engines = ["evalkit", *RIVALS, "lm-eval HF"]
    head = ["model", "dataset", "new tokens", "prompts", *engines, "prefill bound", "target", "mismatches"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        figures = [row.median(engine) for engine in engines]
        cells = [
            row.model,
            row.workload.dataset,
            f"{row.workload.new}{' (forced)' if row.workload.forced else ''}",
            str(row.workload.samples),
            *("-" if figure is None else f"{figure:.2f}" for figure in figures),
            f"{row.bound:.1f}",
            f"{row.workload.target:.1f}",
            f"{row.mismatches} of {row.compared}",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def write_page(text: str) -> None:
    """Puts the table into docs/performance.md, between its marks."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, rest = page.split(BEGIN, 1)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def models() -> list[list[str]]:
    """The models measured: a real one, and one of the 1.8b shape with two of its layers."""
    shape = ("layers=2", "hidden=2048", "heads=16", "kv_heads=16", "intermediate=7168", "vocab=99584")
    random = ["model=random", *(f"model.random.{word}" for word in shape)]
    tokenizer = MIRROR / "llm-jp-tokenizer-v3.0"
    name = "model.name=llm-jp-3-1.8b shape, 2 layers"
    return [["model=smollm2-135m"], [*random, name, f"model.tokenizer={tokenizer}"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every engine answers every prompt")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if not MIRROR.is_dir():
        print(f"engine: skipped, there is no mirror at {MIRROR}")
        return 0
    python = harness.environment()
    start = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        prepare([load_spec(one.dataset) for one in WORKLOADS], data, mirror=MIRROR)
        for words in models():
            bench = Bench(words, data, given.full)
            rows += [bench.measure(workload, given.rounds, python) for workload in WORKLOADS]
            bench.engine.close()
    text = table(rows)
    print(text)
    print(f"engine: {time.perf_counter() - start:.0f} s in all; ratios over sequential generate, same round")
    write_page(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
