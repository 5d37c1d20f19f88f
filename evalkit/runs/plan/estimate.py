"""A configuration -> the estimate of a run, and of many checkpoints on many cards."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.engines.local.memory import MOST_ROWS
from evalkit.runs.plan.counting import token_counter
from evalkit.runs.plan.hardware import Hardware, hardware_of
from evalkit.runs.plan.memory import Memory, memory_of, places
from evalkit.runs.plan.mt_bench import JudgeCost, judge_cost, turns_of
from evalkit.runs.plan.shapes import ModelShape, shape_of
from evalkit.runs.plan.workload import DatasetCount, Group, Workload, suite_workload

_LLM_JP_VOCABULARY = 99584
# How many datasets a note names.
_FEW = 5


@dataclass(frozen=True)
class Bound:
    """What each worker must compute (operations) and read (bytes) at least in one run.

    `seconds` is what that takes at the peaks; None: no peak is given. A real run takes longer.
    """

    flops: float
    bytes: float
    seconds: float | None


@dataclass(frozen=True)
class Campaign:
    """Many checkpoints on all cards: `side_by_side` at a time, each on `workers` copies of the model.

    `idle_gpus` are left over when cards do not divide evenly. `read_bytes` is what all runs read of
    weights, `files` how many files they leave.
    """

    checkpoints: int
    side_by_side: int
    workers: int
    rounds: int
    read_bytes: float
    files: int
    idle_gpus: int


@dataclass(frozen=True)
class Estimate:
    """Everything `plan` says; `notes` are what a reader must know to trust it."""

    model: str
    suite: str
    shape: ModelShape
    shape_source: str
    counted_by: str
    datasets: tuple[DatasetCount, ...]
    left_out: dict[str, str]
    hardware: Hardware
    memory: Memory
    bound_typical: Bound
    bound_most: Bound
    campaign: Campaign
    judge: JudgeCost | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The estimate as plain JSON values, with the parameters and the sums."""
        totals = {
            "samples": sum(row.samples for row in self.datasets),
            "prompt_tokens": sum(row.prompt_tokens for row in self.datasets),
            "computed_tokens": sum(row.computed_tokens for row in self.datasets),
            "new_tokens_most": sum(row.new_tokens_most for row in self.datasets),
            "new_tokens_typical": sum(row.new_tokens_typical for row in self.datasets),
            "parameters": self.shape.parameters,
        }
        return {**asdict(self), "totals": totals}


def estimate(config: Config) -> Estimate:
    """The estimate; nothing is fetched, loaded or started.

    Raises:
        InputError: no model or suite, a model whose shape is not known here, bad options or data.
    """
    if config.model is None:
        raise InputError("no model is given", fix="model=13b   (python -m evalkit list models)")
    if config.suite is None:
        raise InputError("no suite is given", fix="suite=jaster   (python -m evalkit list suites)")
    shape, shape_source = shape_of(config.model)
    hardware = hardware_of(config)
    counter = token_counter(config.model, config.protocol.bos)
    if config.suite.mt_bench is not None:
        turns, row = turns_of(config)
        work, how = Workload(tuple(turns[-1]), (row,), {}), "the protocol's figures, llm-jp-3 tokenizer"
        judge = judge_cost(config, row.samples)
    else:
        work, how, judge = suite_workload(config, counter), counter.how, None
        turns = [list(work.groups)]
        if all(row.source == "kept counts" for row in work.datasets):
            how = "kept counts of the llm-jp-3 tokenizer"
    batch_size = config.engine.batch_size
    memory = memory_of([group for turn in turns for group in turn], shape, hardware, batch_size=batch_size)
    copies = max(1, config.gpus // memory.cards)
    workers = max(1, copies // config.checkpoints)
    usual, most = (
        _bound(turns, shape, hardware, workers=workers, batch_size=batch_size, typical=expected)
        for expected in (True, False)
    )
    return Estimate(
        model=config.model.name or config.model.path or "model",
        suite=config.suite.name,
        shape=shape,
        shape_source=shape_source,
        counted_by=how,
        datasets=work.datasets,
        left_out=work.left_out,
        hardware=hardware,
        memory=memory,
        bound_typical=usual,
        bound_most=most,
        campaign=_campaign(config, work.datasets, memory, copies, workers),
        judge=judge,
        notes=tuple(_notes(config, shape, memory, work)),
    )


def _bound(
    turns: Sequence[Sequence[Group]],
    shape: ModelShape,
    hardware: Hardware,
    *,
    workers: int,
    batch_size: int | None,
    typical: bool,
) -> Bound:
    """The bound when the work is shared evenly; answers of typical length or as long as they may be."""
    flops, read = 0.0, 0.0
    rows = batch_size or MOST_ROWS[hardware.kind]
    # A pass reads the weights that one token goes through, and those of the logits.
    pass_bytes = (shape.token_flops + shape.logit_flops) / 2 * hardware.width
    for turn in turns:
        longest, answered = 0.0, 0.0
        for group in turn:
            flops += group.prefix * (shape.token_flops + shape.pair_flops * group.prefix / 2)
            for item in group.items:
                new = max(1.0, item.typical if typical else item.most)
                # The last new token is not read again.
                own, before = item.own + new - 1, group.prefix + item.cached
                flops += own * (shape.token_flops + shape.pair_flops * (before + own / 2))
                flops += new * shape.logit_flops
                read += (new - 1) * (item.cached + item.own + new / 2) * shape.token_bytes(hardware.width)
                longest, answered = max(longest, new), answered + new
        # A pass gives each row one token, and an answer's tokens come one after another.
        read += workers * max(longest, answered / workers / rows) * pass_bytes
    flops, read = flops / workers, read / workers
    seconds = None
    if hardware.flops and hardware.bandwidth:
        seconds = max(flops / hardware.flops, read / hardware.bandwidth)
    return Bound(flops, read, seconds)


def _campaign(
    config: Config,
    rows: Sequence[DatasetCount],
    memory: Memory,
    copies: int,
    workers: int,
) -> Campaign:
    side_by_side = max(1, copies // workers)
    return Campaign(
        checkpoints=config.checkpoints,
        side_by_side=side_by_side,
        workers=workers,
        rounds=math.ceil(config.checkpoints / side_by_side),
        read_bytes=float(memory.weights) * config.checkpoints * workers,
        # Completions and scores of every dataset, and the six files of a run.
        files=config.checkpoints * (2 * len(rows) + 6),
        idle_gpus=config.gpus - memory.cards * copies if config.gpus >= memory.cards else 0,
    )


def _notes(config: Config, shape: ModelShape, memory: Memory, work: Workload) -> list[str]:
    notes = []
    kept = [row.name for row in work.datasets if row.source == "kept counts"]
    if kept and not (config.suite and config.suite.mt_bench):
        named = ", ".join(kept) if len(kept) <= _FEW else f"{len(kept)} datasets"
        notes.append(f"the data is not here, kept counts (*) are used: {named}")
    if kept and shape.vocab != _LLM_JP_VOCABULARY:
        notes.append("kept counts are those of the llm-jp-3 tokenizer; this model's differ")
    notes += [f"left out: {name} ({why})" for name, why in work.left_out.items()]
    if not memory.fits:
        notes.append("one copy does not fit: a smaller dtype or more memory is needed")
    if memory.cards > 1:
        notes.append(
            "a model on several cards (engine.device_map=auto) uses one of them at a time: "
            "memory grows with the cards, speed does not"
        )
    if config.gpus and config.gpus < memory.cards:
        notes.append(f"gpus={config.gpus} are too few: one copy needs {memory.cards}")
    longest = max(group.prefix + places(item) for group in work.groups for item in group.items)
    if shape.context and longest > shape.context:
        beyond = f"the longest prompt with its answer ({longest:.0f} tokens) is beyond the context"
        notes.append(f"{beyond} of {shape.context}")
    return notes
