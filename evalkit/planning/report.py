"""The estimate in the terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.planning.estimate import Estimate, Phases


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Prints tokens, memory, time, what many checkpoints take, the judge's cost and the assumptions."""
    console.print(_dataset_table(estimate))
    for line in (
        *_token_lines(estimate),
        *_memory_lines(estimate),
        *_time_lines(estimate),
        *_campaign_lines(estimate),
        *_judge_lines(estimate),
        *_assumptions(estimate),
    ):
        console.print(escape(line), soft_wrap=True, highlight=False)


def _dataset_table(estimate: Estimate) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("dataset", no_wrap=True)
    for name in ("n", "prompts", "computed", "new, max", "typical", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in estimate.datasets:
        figures = (row.prompt_tokens, row.computed_tokens, row.new_tokens_most, row.new_tokens_typical)
        mark = "*" if row.source == "kept counts" else ""
        table.add_row(escape(row.name), str(row.samples), *(f"{value:,.0f}" for value in figures), mark)
    return table


def _token_lines(estimate: Estimate) -> Iterator[str]:
    totals = estimate.as_json()["totals"]
    whole, computed = totals["prompt_tokens"], totals["computed_tokens"]
    yield f"model   {estimate.model}: {totals['parameters']:,} parameters (shape: {estimate.shape_source})"
    yield (
        f"tokens  {whole:,.0f} of prompts, {computed:,.0f} computed when shared prefixes are computed once "
        f"({whole / computed:.1f} times less)"
    )
    yield (
        f"        {totals['new_tokens_typical']:,.0f} new ones for answers of typical length, "
        f"{totals['new_tokens_most']:,} at most"
    )
    yield f"        counted by {estimate.counted_by}"


def _memory_lines(estimate: Estimate) -> Iterator[str]:
    memory, work = estimate.memory, estimate.most
    place = "this machine" if estimate.hardware.kind == "cpu" else f"a card of {memory.card_bytes / 1e9:g} GB"
    fit = "fits" if memory.fits and memory.cards == 1 else "does not fit"
    more = f": one copy needs {memory.cards}" if memory.cards > 1 else ""
    yield f"memory  {_gb(memory.weights)} weights; {fit} on {place}{more}"
    yield (
        f"        {_gb(memory.free)} free after loading, {_gb(memory.cache)} for rows: "
        f"{memory.rows:,} of the longest ({memory.slot / 1e6:,.0f} MB), {work.rows:,} at once"
    )
    held = work.prefix_tokens * memory.token
    yield (
        f"        {memory.token:,} bytes per token; shared prefixes {_gb(held)}, "
        f"activations {_gb(memory.activations)}"
    )


def _time_lines(estimate: Estimate) -> Iterator[str]:
    usual, most = estimate.phases_typical, estimate.phases_most
    workers = estimate.campaign.workers
    copies = _count(workers, "worker")
    on = "this CPU" if estimate.hardware.kind == "cpu" else _count(workers * estimate.memory.cards, "GPU")
    yield f"time    {duration(usual.total)} on {on} ({copies}), at most {duration(most.total)}"
    yield f"        typical: {_phase_words(usual)}"
    yield f"        at most: {_phase_words(most)}"


def _phase_words(phases: Phases) -> str:
    parts = {
        "start": phases.startup,
        "weights": phases.loading,
        "prefill": phases.prefill,
        "decode": phases.decode,
        "scoring": phases.scoring,
        "COMET": phases.comet,
    }
    return ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())


def _campaign_lines(estimate: Estimate) -> Iterator[str]:
    many = estimate.campaign
    if many.checkpoints > 1:
        yield (
            f"many    {many.checkpoints:,} checkpoints, {many.side_by_side:,} at a time: "
            f"{many.rounds:,} rounds, {duration(many.seconds_typical)} "
            f"(at most {duration(many.seconds_most)}), {many.gpu_hours_typical:,.0f} GPU hours"
        )
        yield (
            f"        {many.read_bytes / 1e12:,.1f} TB of weights are read, "
            f"{many.read_bytes_per_second / 1e9:,.1f} GB/s on average; {many.files:,} files are written"
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
    yield "        exact, for answers that are there: python -m evalkit judge run=DIR --dry-run"


def _assumptions(estimate: Estimate) -> Iterator[str]:
    hardware = estimate.hardware
    yield (
        f"assumed {hardware.flops / 1e12:,.3g} TFLOPS and {hardware.bandwidth / 1e9:,.3g} GB/s reached, "
        f"{hardware.layer_seconds * 1e3:g} ms per layer and pass, {hardware.width} bytes per number"
    )
    yield f"        from {hardware.source}"
    for note in estimate.notes:
        yield f"note    {note}"


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
