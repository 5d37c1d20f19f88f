"""evalkit plan model=NAME suite=NAME [gpus=8] [key=value ...]

Says what a run takes before anything starts: tokens, memory, and for MT-Bench the judge's cost.
Needs neither the model's weights nor the data; nothing is fetched, loaded or started.

    evalkit plan model=13b suite=jaster gpus=8
    evalkit plan model=13b suite=jaster data_dir=DATA model.tokenizer=FOLDER    (exact counts)
    evalkit plan model=1.8b suite=jaster gpus=64 checkpoints=1000
    evalkit plan model=1.8b-instruct suite=mt-bench-ja judge=gpt-4o-2024-08-06
    evalkit plan model=smollm2-135m suite=sample gpus=0                (this machine's CPU)
    evalkit plan model=13b suite=jaster plan.tflops=989 plan.bandwidth=3350      (an H100)

Prompts are the suite's own where its data is here, else kept counts (marked *). The time is a bound:
what must be computed and read, at the peaks of the card. Real runs take longer. docs/scaling.md
"""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.cli.command import ANSWERS, MODEL, SAMPLES, SUITE, path_of
from evalkit.cli.printing import print_line, report_console
from evalkit.core.config import Config
from evalkit.core.durable import write_json_atomic
from evalkit.runs.plan.estimate import Estimate, estimate

OPTIONS = (
    *MODEL,
    *SUITE,
    "data_dir",
    "split",
    *SAMPLES,
    *ANSWERS,
    "gpus",
    "gpu_memory",
    "checkpoints",
    "dtype",
    "engine.batch_size",
    "plan.",
    "judge",
    "judge.model",
    "judge.deployment",
    "judge.parameters",
    "judge.repeats",
    "judge.prices",
    "preset",
    "out",
)


def run(config: Config) -> int:
    """Prints the estimate and, with `out=`, writes it; exit code 0."""
    made = estimate(config)
    _print_estimate(made, report_console())
    if (out := path_of(config.out)) is not None:
        write_json_atomic(out, made.as_json())
        print(f"written: {out}")
    return 0


def _print_estimate(estimate: Estimate, console: Console) -> None:
    """Prints tokens, memory, the bound of the time, what many checkpoints take and the judge's cost."""
    console.print(_dataset_table(estimate))
    for line in (
        *_token_lines(estimate),
        *_memory_lines(estimate),
        _time_line(estimate),
        *_campaign_lines(estimate),
        *_judge_lines(estimate),
        *(f"note    {note}" for note in estimate.notes),
    ):
        print_line(console, line)


def _dataset_table(estimate: Estimate) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("dataset", no_wrap=True)
    for name in ("n", "prompts", "computed", "new, max", "typical", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in estimate.datasets:
        figures = (row.prompt_tokens, row.computed_tokens, row.new_tokens_most, row.new_tokens_typical)
        cells = ("unknown" if value is None else f"{value:,.0f}" for value in figures)
        mark = "*" if row.source == "kept counts" else ""
        table.add_row(escape(row.name), str(row.samples), *cells, mark)
    return table


def _token_lines(estimate: Estimate) -> Iterator[str]:
    totals = estimate.as_json()["totals"]
    whole, computed = totals["prompt_tokens"], totals["computed_tokens"]
    yield f"model   {estimate.model}: {totals['parameters']:,} parameters (shape: {estimate.shape_source})"
    yield (
        f"tokens  {whole:,.0f} of prompts, {computed:,.0f} computed when shared prefixes are computed once "
        f"({whole / computed:.1f} times less)"
    )
    usual = totals["new_tokens_typical"]
    known = "" if usual is None else f"{usual:,.0f} new ones for answers of typical length, "
    yield f"        {known}{totals['new_tokens_most']:,} {'at most' if known else 'new ones at most'}"
    yield f"        counted by {estimate.counted_by}"


def _memory_lines(estimate: Estimate) -> Iterator[str]:
    memory = estimate.memory
    place = "this machine" if estimate.hardware.kind == "cpu" else f"a card of {memory.card_bytes / 1e9:g} GB"
    fit = "fits" if memory.fits and memory.cards == 1 else "does not fit"
    more = f": one copy needs {memory.cards}" if memory.cards > 1 else ""
    yield f"memory  {_gb(memory.weights)} weights; {fit} on {place}{more}"
    yield (
        f"        {_gb(memory.free)} free after loading, {_gb(memory.cache)} for rows: "
        f"{memory.rows:,} of the longest at once ({memory.slot / 1e6:,.0f} MB)"
    )
    yield (
        f"        {memory.token:,} bytes per token; the longest shared prefix {_gb(memory.prefix)}, "
        f"activations {_gb(memory.activations)}"
    )


def _time_line(estimate: Estimate) -> str:
    hardware, many = estimate.hardware, estimate.campaign
    usual, most = estimate.bound_typical.seconds, estimate.bound_most.seconds
    if usual is None or most is None:
        return "time    no bound without the peaks of this machine: plan.tflops= plan.bandwidth="
    assert hardware.flops is not None and hardware.bandwidth is not None
    on = "this CPU" if hardware.kind == "cpu" else _count(many.workers * estimate.memory.cards, "GPU")
    rounds = f", {duration(usual * many.rounds)} for {many.rounds:,} rounds" if many.rounds > 1 else ""
    thinks = any(row.new_tokens_typical is None for row in estimate.datasets)
    without = " without a thought" if thinks else ""
    return (
        f"time    a bound: no run is quicker than {duration(usual)}{without} on {on} "
        f"({duration(most)} for the longest answers){rounds}, "
        f"at {hardware.flops / 1e12:,.4g} TFLOPS and {hardware.bandwidth / 1e9:,.4g} GB/s of each"
    )


def _campaign_lines(estimate: Estimate) -> Iterator[str]:
    many = estimate.campaign
    if many.checkpoints > 1:
        yield (
            f"many    {many.checkpoints:,} checkpoints, {many.side_by_side:,} at a time: "
            f"{many.rounds:,} rounds, {many.read_bytes / 1e12:,.1f} TB of weights are read, "
            f"{many.files:,} files are written"
        )
    if many.idle_gpus:
        yield f"        {many.idle_gpus} GPUs stay idle: they are no whole copy"


def _judge_lines(estimate: Estimate) -> Iterator[str]:
    cost = estimate.judge
    if cost is None:
        return
    dollars = "no price is known"
    if cost.dollars_typical is not None and cost.dollars_long is not None:
        dollars = f"${cost.dollars_typical:.2f} (${cost.dollars_long:.2f} for long answers)"
    yield (
        f"judge   {cost.judge}: {cost.calls:,} calls, {cost.input_tokens_typical:,} tokens in, "
        f"{cost.output_tokens:,} out: {dollars} each run"
    )
    runs = estimate.campaign.checkpoints
    if runs > 1 and cost.dollars_typical is not None:
        yield f"        ${cost.dollars_typical * runs:,.0f} for {runs:,} checkpoints"
    yield "        exact, for answers that are there: evalkit judge run=DIR --dry-run"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size < 1e10 else f"{size / 1e9:,.1f} GB"


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
