"""python benchmarks/engine.py [--full] [--rounds 3] [--vllm ENV]: evalkit's engine beside others.

Real 4-shot prompts of the mirror, SmolLM2-135M and a random model of the llm-jp-3 1.8b shape with
fewer layers, fp32. The engines take turns, three rounds; a figure is the median over the rounds of
the ratio to one-prompt-at-a-time `generate` in the same round. evalkit answers all prompts of a
dataset in every round; the slower engines answer a share of them (all with --full), and their time
is scaled by the number of prompt tokens. Writes the table into docs/performance.md.

With --vllm it is vLLM on the CPU that takes turns with evalkit, from an environment of its own
(rivals/vllm_process.py says how it is made): both answer all prompts, and start-up is a row apart. One
workload more, in one round: a trial of pfgen, whose 50 prompts share from 0 to 20 examples.

--rows NAME... measures these workloads only, and writes no page.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rivals import harness, transformers_engines
from rivals.vllm_process import Vllm

from evalkit.core.config import Config, given_suite
from evalkit.core.options import load_config, parse
from evalkit.core.types import Request
from evalkit.engines import build_engine
from evalkit.engines.local import linears
from evalkit.engines.local.engine import LocalEngine
from evalkit.engines.local.tokens import EndIds
from evalkit.engines.models import resolve
from evalkit.runs.suite import load_suite
from evalkit.sources.pfgen import read_pool
from evalkit.sources.prepare import prepare
from evalkit.tasks import pfgen
from evalkit.tasks.load import Task, load_task
from evalkit.tasks.prompts import Asking
from evalkit.tasks.spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
MIRROR = ROOT.parent / "shared" / "sources"
PAGE = ROOT / "docs" / "performance.md"
TABLES = ("engine table", "vllm table")
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
NAMES = [one.dataset for one in WORKLOADS]
# One trial, beside vLLM, with the first model.
PFGEN = Workload("pfgen", 16, 50, 0.0, forced=True)
# Most new tokens of the bundled items of all nine categories, beside vLLM.
CATEGORIES_NEW = 64


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
        start = time.perf_counter()
        self.config: Config = load_config(parse([*words, "dtype=float32", "engine.device=cpu"], {"run"}))
        assert self.config.model is not None
        self.resolved = resolve(self.config.model, offline=False)
        engine = build_engine(self.resolved, self.config.engine, self.config.dtype)
        assert isinstance(engine, LocalEngine)
        self.engine = engine
        self.loaded = engine._model()
        self.start_up = time.perf_counter() - start
        self.data = data
        self.full = full

    def requests(self, workload: Workload) -> list[Request]:
        """The workload's prompts as requests."""
        asking = Asking(seed=0)
        if workload.dataset == PFGEN.dataset:
            pool = read_pool(MIRROR / "pfgen" / "data" / "questions.jsonl")
            task, asking = Task(pfgen.SPEC, pool, pool, {}), pfgen.PfgenAsking(seed=0)
        else:
            task = load_task(load_spec(workload.dataset), self.data, limit=workload.samples)
        asked = list(asking.requests(task))[: workload.samples]
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

    def against_vllm(
        self,
        python: Path,
        workloads: Sequence[Workload],
        samples: int | None,
        rounds: int,
        folder: Path,
        *,
        categories: bool,
    ) -> list[list[str]]:
        """Rows of the table of seconds: each workload, start-up, and start-up with nine categories."""
        if self.resolved.path is None:
            with linears.plain(self.loaded.model):
                self.loaded.model.save_pretrained(folder)
            self.loaded.tokenizer.save_pretrained(folder)
        model = self.resolved.path or folder
        rows, ratios = [], []

        def row(what: str, theirs: float, ours: float, note: str = "") -> None:
            rows.append(
                [self.resolved.name, what, f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.2f}", note]
            )

        with Vllm(python, model, folder.with_suffix(".log")) as vllm:
            for workload in workloads:
                few = replace(workload, samples=min(workload.samples, samples or workload.samples))
                turns = 1 if few.dataset == PFGEN.dataset else rounds
                theirs, ours, same = self._turns(vllm, self.requests(few), turns, forced=few.forced)
                length = f"{few.new}{' forced' if few.forced else ''}"
                row(f"{few.dataset}, {few.samples} x {length}", theirs, ours, same)
                ratios.append(theirs / ours)
            figure = f"{statistics.geometric_mean(ratios):.2f}"
            rows.append([self.resolved.name, "geometric mean", "", "", figure, ""])
            row("start-up", vllm.start_up, self.start_up)
            if not categories:
                return rows
            asked = self._nine_categories(samples)
            theirs, ours, same = self._turns(vllm, asked, 1, forced=False)
            what = f"start-up and {len(asked)} prompts of nine categories"
            row(what, vllm.start_up + theirs, self.start_up + ours, same)
        return rows

    def _turns(
        self, vllm: Vllm, asked: list[Request], rounds: int, *, forced: bool
    ) -> tuple[float, float, str]:
        """The median seconds of vLLM and of evalkit, and how many of their texts are the same."""
        ids = [self.loaded.tokenizer(str(one.prompt))["input_ids"] for one in asked]
        theirs, ours = [], []
        for turn in range(rounds):
            seconds, texts = vllm.generate(ids, [one.max_new_tokens for one in asked], forced=forced)
            theirs.append(seconds)
            seconds, own = self.evalkit(asked, forced)
            ours.append(seconds)
            print(f"round {turn + 1}: vLLM {theirs[-1]:.1f} s, evalkit {ours[-1]:.1f} s", file=sys.stderr)
        same = sum(own[one.id] == text for one, text in zip(asked, texts, strict=True))
        return statistics.median(theirs), statistics.median(ours), f"{same} of {len(asked)}"

    def _nine_categories(self, samples: int | None) -> list[Request]:
        """The bundled items in the format of the 23 datasets, or fewer of each dataset."""
        limit = [f"limit={samples}"] if samples else []
        config = load_config(parse(["suite=sample", *limit], {"run"}))
        suite = load_suite(given_suite(config.suite), config.data, say=print)
        asked = [one for task in suite.tasks for one in Asking(seed=0).requests(task)]
        return [replace(one, max_new_tokens=min(one.max_new_tokens, CATEGORIES_NEW)) for one in asked]

    def _timed(self, engine: Callable[..., Any], prompts: list[list[int]], workload: Workload) -> Any:
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        with self.engine.usual_attention(), linears.plain(model):
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


def vllm_table(rows: list[list[str]]) -> str:
    """The Markdown table of seconds beside vLLM's."""
    head = ["model", "work", "vLLM (s)", "evalkit (s)", "times as fast", "same texts"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def write_page(name: str, text: str) -> None:
    """Puts a table into docs/performance.md, between its marks."""
    begin, end = f"<!-- {name}: written by benchmarks/engine.py -->", f"<!-- end of the {name} -->"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"# Performance\n\n{begin}\n{end}\n"
    before, rest = page.split(begin, 1)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


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
    parser.add_argument("--vllm", type=Path, metavar="ENV", help="an environment with vLLM for the CPU")
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=[*NAMES, PFGEN.dataset])
    parser.add_argument("--samples", type=int, help="with --vllm: fewer prompts, to try it; writes no page")
    given = parser.parse_args()
    chosen = given.rows or [*NAMES, PFGEN.dataset]
    if not MIRROR.is_dir():
        print(f"engine: skipped, there is no mirror at {MIRROR}")
        return 0
    start = time.perf_counter()
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        prepare([load_spec(name) for name in NAMES if name in chosen], data, mirror=MIRROR)
        python = None if given.vllm else harness.environment()
        for index, words in enumerate(models()):
            more = (PFGEN,) if given.vllm and not index else ()
            workloads = [one for one in (*WORKLOADS, *more) if one.dataset in chosen]
            if not workloads:
                continue
            bench = Bench(words, data, given.full)
            if given.vllm:
                folder = Path(temporary) / f"model-{index}"
                rows += bench.against_vllm(
                    given.vllm, workloads, given.samples, given.rounds, folder, categories=not given.rows
                )
            else:
                rows += [bench.measure(workload, given.rounds, python) for workload in workloads]
            bench.engine.close()
    text = vllm_table(rows) if given.vllm else table(rows)
    print(text)
    print(f"engine: {time.perf_counter() - start:.0f} s in all")
    if not (given.samples or given.rows):
        write_page(TABLES[bool(given.vllm)], text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
