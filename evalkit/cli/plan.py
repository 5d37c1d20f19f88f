"""python -m evalkit plan model=NAME suite=NAME [gpus=8] [key=value ...]

Says what a run takes before anything starts: tokens, memory, and for MT-Bench the judge's cost.
Needs neither the model's weights nor the data; nothing is fetched, loaded or started.

    python -m evalkit plan model=13b suite=jaster gpus=8
    python -m evalkit plan model=13b suite=jaster data_dir=DATA model.tokenizer=FOLDER    (exact counts)
    python -m evalkit plan model=1.8b suite=jaster gpus=64 checkpoints=1000
    python -m evalkit plan model=1.8b-instruct suite=mt-bench-ja judge=gpt-4o-2024-08-06
    python -m evalkit plan model=smollm2-135m suite=sample gpus=0                (this machine's CPU)
    python -m evalkit plan model=13b suite=jaster plan.tflops=989 plan.bandwidth=3350      (an H100)

Prompts are the suite's own where its data is here, else kept counts (marked *). The time is a bound:
what must be computed and read, at the peaks of the card. Real runs take longer. docs/scaling.md
"""

from pathlib import Path

from evalkit.core.config import Config
from evalkit.runs.plan.estimate import estimate

OPTIONS = (
    "model",
    "model.",
    "suite",
    "suite.tasks",
    "data_dir",
    "split",
    "limit",
    "num_few_shots",
    "suite.num_few_shots",
    "protocol.bos",
    "protocol.custom_prompt_template",
    "protocol.custom_fewshots_template",
    "gpus",
    "gpu_memory",
    "checkpoints",
    "dtype",
    "engine.batch_size",
    "plan.",
    "judge",
    "judge.repeats",
    "judge.prices",
    "preset",
    "out",
)


def run(config: Config) -> int:
    """Prints the estimate and, with `out=`, writes it; exit code 0."""
    from rich.console import Console

    from evalkit.cli.plan_report import print_estimate
    from evalkit.core.durable import write_json_atomic

    made = estimate(config)
    print_estimate(made, Console())
    if config.out is not None:
        out = Path(config.out).expanduser()
        write_json_atomic(out, made.as_json())
        print(f"written: {out}")
    return 0
