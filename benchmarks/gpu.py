"""python benchmarks/gpu.py [--dry-run] [--vllm ENV]: what the local engine does on this machine's GPU.

Needs a GPU and the package, no data and no network. Exactness in float32 on three architectures, what
bfloat16 changes, and generation of 23 x 100 prompts of the datasets' real lengths (conf/counts.csv) by a
random model of the llm-jp-3 1.8b shape, beside the loop over `generate` (measured on one prompt of each
dataset) and vLLM where it is. A step that fails is a line of the table, and the next one runs.
--dry-run runs every step on the CPU with tiny shapes.
"""

import argparse
import csv
import importlib.util
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rivals.vllm_process import Vllm

from evalkit.core.config import Config, given_model, given_suite
from evalkit.core.options import load_config, parse
from evalkit.core.progress import say
from evalkit.core.types import Request
from evalkit.engines import build_engine
from evalkit.engines.local import linears
from evalkit.engines.local.engine import LocalEngine
from evalkit.engines.models import resolve
from evalkit.runs.certify import certify
from evalkit.runs.suite import load_suite
from evalkit.tasks.prompts import Asking

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("llama-gqa", "gemma3", "qwen3")
FULL = {"layers": 24, "hidden": 2048, "heads": 16, "kv_heads": 16, "intermediate": 7168, "vocab": 99584}
TINY = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 96, "vocab": 512}
BARS = "bars for an H200: under 30 s, 100 times the loop"


@dataclass(frozen=True)
class Setting:
    """What is run, and where.

    Attributes:
        device: torch device.
        shape: of the random model.
        limit: prompts of each task that are certified.
        samples: prompts of each dataset that are timed.
        shorter: their lengths are divided by this.
        folder: for models and logs.
    """

    device: str
    shape: dict[str, int]
    limit: int
    samples: int
    shorter: int
    folder: Path

    @property
    def random_model(self) -> list[str]:
        """The options of the random model, in bfloat16."""
        shape = [f"model.random.{name}={value}" for name, value in self.shape.items()]
        return ["model=random", "model.random.context=4096", *shape, "dtype=bfloat16"]

    def config(self, words: list[str]) -> Config:
        """These options, on the device."""
        return load_config(parse([*words, f"engine.device={self.device}", "offline=true"], {"run"}))

    def engine(self, words: list[str]) -> LocalEngine:
        """The local engine for these options."""
        config = self.config(words)
        model = resolve(given_model(config.model), offline=True)
        engine = build_engine(model, config.engine, config.dtype)
        assert isinstance(engine, LocalEngine)
        return engine

    def certified(self, words: list[str], tasks: str) -> str:
        """What batch sizes and orders change, in words."""
        config = self.config([*words, "suite=sample", f"suite.tasks=[{tasks}]", f"limit={self.limit}"])
        suite = load_suite(given_suite(config.suite), config.data, say=say)
        with self.engine(words) as engine:
            found = certify(suite, engine, config.protocol, config.metrics, Asking(seed=0), say=say)
            way = engine.way.name
        total, changed = sum(one.requests for one in found), sum(len(one.changed) for one in found)
        ties = sum(len(one.ties) for one in found)
        largest = max(one.largest_margin for one in found)
        return f"{changed} of {total} changed, {ties} ties, largest margin {largest:.2g} ({way})"

    def exactness(self, architecture: str) -> list[tuple[str, str]]:
        """An architecture with random weights against `generate`, in float32."""
        sys.path.insert(0, str(ROOT))
        models: Any = importlib.import_module("tests.engines.models")
        folder = models.save_model(architecture, self.folder / architecture)
        words = ["model=hf", f"model.path={folder}", "dtype=float32"]
        return [(f"float32, {architecture}", self.certified(words, "jamp,jemhopqa"))]

    def precision(self) -> list[tuple[str, str]]:
        """What bfloat16 changes in the random model."""
        found = self.certified(self.random_model, "jcommonsenseqa,jamp,jemhopqa,mawps")
        return [("bfloat16, 1.8b shape", found)]

    def requests(self) -> list[Request]:
        """Prompts of the datasets' lengths: tokens of the byte tokenizer are letters."""
        chance = random.Random(0)

        def text(tokens: str) -> str:
            return "".join(chance.choices("abcdefghij", k=max(1, round(float(tokens)) // self.shorter)))

        asked = []
        with (ROOT / "conf" / "counts.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                shared = text(row["instruction_tokens"]) + text(row["shots_tokens"])
                new = max(1, round(float(row["gold_tokens"])) // self.shorter)
                asked += [
                    Request(f"{row['dataset']}/{index}", shared + text(row["input_tokens"]), new)
                    for index in range(self.samples)
                ]
        return asked

    def throughput(self, vllm: Path | None) -> list[tuple[str, str]]:
        """Seconds of evalkit, of the loop and of vLLM, and the peak memory."""
        asked = self.requests()
        lines = []
        with self.engine(self.random_model) as engine:
            self._reset_peak()
            start = time.perf_counter()
            made = sum(done.new_tokens for done in engine.generate(asked))
            own = time.perf_counter() - start
            lines.append(
                (f"evalkit, {len(asked)} prompts", f"{own:.1f} s, {made} new tokens ({engine.way.name})")
            )
            lines.append(("peak memory", f"{self._peak() / 1e9:.2f} GB"))
            some = asked[:: self.samples]
            start = time.perf_counter()
            for _ in engine.one_at_a_time(some):
                pass
            loop = (time.perf_counter() - start) * len(asked) / len(some)
            lines.append(("loop over generate", f"{loop:.0f} s, from {len(some)} prompts"))
            lines.append(("times as fast as the loop", f"{loop / own:.0f}   ({BARS})"))
            if vllm is not None:
                folder = self.folder / "random"
                loaded = engine._model()
                with linears.plain(loaded.model):
                    loaded.model.save_pretrained(folder)
                loaded.tokenizer.save_pretrained(folder)
                ids = [loaded.tokenizer(str(one.prompt))["input_ids"] for one in asked]
        if vllm is not None:
            with Vllm(vllm, folder, self.folder / "vllm.log", dtype="bfloat16") as other:
                seconds, _ = other.generate(ids, [one.max_new_tokens for one in asked], forced=True)
            lines.append(("vLLM", f"{seconds:.1f} s, and {other.start_up:.0f} s of start-up"))
        return lines

    def _reset_peak(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> float:
        if self.device == "cuda":
            return float(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def attempt(what: str, run: Callable[[], list[tuple[str, str]]]) -> tuple[list[tuple[str, str]], bool]:
    """The lines of a step, and whether it failed: then its one line says why."""
    start = time.perf_counter()
    try:
        lines, failed = run(), False
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        lines, failed = [(what, f"FAILED: {type(error).__name__}: {first}")], True
    print(f"{what}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return lines, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--vllm", type=Path, metavar="ENV", help="an environment with vLLM")
    given = parser.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        print("gpu: skipped, there is no GPU (--dry-run runs every step on the CPU)")
        return 0
    vllm = given.vllm
    if vllm is None and importlib.util.find_spec("vllm") is not None:
        vllm = Path(sys.executable)
    device = "cpu" if given.dry_run else "cuda"
    name = "CPU, tiny shapes" if given.dry_run else torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        shape, limit, samples, shorter = (TINY, 1, 2, 8) if given.dry_run else (FULL, 8, 100, 1)
        setting = Setting(device, shape, limit, samples, shorter, Path(folder))
        steps: list[tuple[str, Callable[[], list[tuple[str, str]]]]] = [
            (f"float32, {one}", partial(setting.exactness, one)) for one in ARCHITECTURES
        ]
        steps.append(("bfloat16, 1.8b shape", setting.precision))
        steps.append(("throughput", partial(setting.throughput, vllm)))
        done = [attempt(*step) for step in steps]
    print(f"| {name} | torch {torch.__version__} |\n| --- | --- |")
    for lines, _ in done:
        for what, found in lines:
            print(f"| {what} | {found} |")
    if vllm is None:
        print("| vLLM | not installed |")
    return int(any(failed for _, failed in done))


if __name__ == "__main__":
    sys.exit(main())
