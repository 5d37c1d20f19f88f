"""python benchmarks/plan.py [--rounds 3]: what `plan` says beside what the engine takes, on this CPU.

SmolLM2-135M in float32 with one thread. Each round measures the machine (a matrix product, reading
memory) and then answers all prompts; both in CPU seconds of this process, so that other work on the
machine disturbs little. The prediction is given the lengths the answers had, so that what is compared
is the model of cost, not a guess of lengths. Figures are medians. Writes the table into docs/scaling.md.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Before torch and numpy are there: their threads are counted once.
os.environ["OMP_NUM_THREADS"] = "1"

from evalkit.cli.options import load_config, parse
from evalkit.config import Config
from evalkit.engines import build_engine
from evalkit.loading import load_suite
from evalkit.models import resolve
from evalkit.planning.counting import token_counter
from evalkit.planning.hardware import Hardware, hardware_of, measured_bandwidth, measured_tflops
from evalkit.planning.memory import memory_of
from evalkit.planning.passes import Work, go_through
from evalkit.planning.shapes import shape_of
from evalkit.planning.workload import suite_workload
from evalkit.prompts import PromptTemplate, requests
from evalkit.types import Completion, Request, Sampling

ROOT = Path(__file__).resolve().parents[1]
MIRROR = ROOT.parent / "shared" / "sources"
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- plan table: written by benchmarks/plan.py -->", "<!-- end of the plan table -->"
DATASETS = ("jcommonsenseqa", "jemhopqa")
TABLE = """\
| prompts | prompt tokens: plan / engine | new tokens | CPU seconds: plan | measured | plan / measured |
|---|---:|---:|---:|---:|---:|
"""


@dataclass(frozen=True)
class Round:
    """One measurement: the machine, the engine's seconds, its completions and the prediction."""

    hardware: Hardware
    seconds: float
    completions: tuple[Completion, ...]
    predicted: Work


def measure(config: Config, rounds: int) -> Iterator[Round]:
    """Rounds of measuring the machine and answering all prompts of a suite."""
    assert config.model is not None
    suite = load_suite(config, say=print)
    template = PromptTemplate.of(config.protocol)
    asked: list[Request] = []
    for task in suite.tasks:
        asked += requests(task, template, sampling=Sampling(), seed=config.seed)
    with build_engine(config, resolve(config.model, offline=True)) as engine:
        # The first call warms up what later ones find ready.
        list(engine.generate(asked[:2]))
        for _ in range(rounds):
            config.plan.tflops = measured_tflops(time.process_time)
            config.plan.bandwidth = measured_bandwidth(time.process_time)
            begin = time.process_time()
            completions = tuple(engine.generate(asked))
            seconds = time.process_time() - begin
            hardware = hardware_of(config)
            yield Round(hardware, seconds, completions, predict(config, hardware, asked, completions))


def predict(
    config: Config, hardware: Hardware, asked: Sequence[Request], completions: Sequence[Completion]
) -> Work:
    """The plan for these prompts with the lengths the answers had."""
    assert config.model is not None
    shape, _ = shape_of(config.model)
    lengths = {done.id: done.new_tokens for done in completions}
    counted = suite_workload(config, token_counter(config.model, config.protocol.bos), lengths)
    memory = memory_of(counted.groups, shape, hardware)
    return go_through(counted.groups, shape, hardware, cache_bytes=memory.cache, typical=True)


def line(name: str, config: Config, done: Sequence[Round]) -> str:
    """One line of the table."""
    assert config.model is not None
    counted = suite_workload(config, token_counter(config.model, config.protocol.bos))
    planned = sum(row.prompt_tokens for row in counted.datasets)
    real = sum(completion.prompt_tokens for completion in done[0].completions)
    new = sum(completion.new_tokens for completion in done[0].completions)
    predicted = statistics.median(one.predicted.seconds for one in done)
    measured = statistics.median(one.seconds for one in done)
    ratio = statistics.median(one.predicted.seconds / one.seconds for one in done)
    spread = f"{min(one.seconds for one in done):.0f} to {max(one.seconds for one in done):.0f}"
    cells = (
        name,
        f"{planned:,.0f} / {real:,}",
        f"{new:,}",
        f"{predicted:.0f}",
        f"{measured:.0f} ({spread})",
        f"{ratio:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def write_page(text: str) -> None:
    """Puts the table between its marks."""
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    words = ["model=smollm2-135m", "gpus=0", "engine.threads=1", "dtype=float32", "engine.device=cpu"]
    with tempfile.TemporaryDirectory() as data:
        suites = {"23 datasets, 2 bundled samples of each": ["suite=sample", "limit=2"]}
        if MIRROR.is_dir():
            own = ["offline=false", f"mirror={MIRROR}", f"data_dir={data}"]
            prepare(data, DATASETS)
            for name in DATASETS:
                suites[f"{name}, 100 prompts"] = ["suite=task", f"suite.tasks=[{name}]", *own]
        lines, speeds = [], []
        for name, suite in suites.items():
            config = load_config(parse([*words, *suite], ()))
            done = list(measure(config, rounds))
            lines.append(line(name, config, done))
            speeds += [one.hardware for one in done]
            print(lines[-1], flush=True)
    gflops = statistics.median(one.flops for one in speeds) / config.plan.efficiency / 1e9
    reading = statistics.median(one.bandwidth for one in speeds) / config.plan.bandwidth_efficiency / 1e9
    text = TABLE + "\n".join(lines)
    text += f"\n\nOne thread did {gflops:.0f} GFLOPS in a matrix product and read {reading:.1f} GB/s."
    print(text)
    write_page(text)
    return 0


def prepare(folder: str, names: Sequence[str]) -> None:
    """Prepares datasets from the mirror."""
    from evalkit.sources.prepare import prepare as prepare_all
    from evalkit.tasks import load_spec

    prepare_all([load_spec(name) for name in names], Path(folder), mirror=MIRROR)


if __name__ == "__main__":
    sys.exit(main())
