"""A configuration -> the estimate of a run, and of many checkpoints on many cards."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evalkit.config import Config
from evalkit.errors import InputError
from evalkit.planning.counting import token_counter
from evalkit.planning.hardware import Hardware, hardware_of
from evalkit.planning.memory import Memory, memory_of
from evalkit.planning.mt_bench import JudgeCost, judge_cost, turns_of
from evalkit.planning.passes import Work, go_through, places
from evalkit.planning.shapes import ModelShape, shape_of
from evalkit.planning.workload import DatasetCount, Group, Workload, suite_workload

# XLM-RoBERTa large without its embeddings: COMET runs every text through it once.
_COMET_PARAMETERS = 303e6
_COMET_BYTES = 2.3e9
_LLM_JP_VOCABULARY = 99584
# How many datasets a note names.
_FEW = 5
# Texts of a batch are padded to its longest.
_COMET_PADDING = 1.5


@dataclass(frozen=True)
class Phases:
    """Seconds of one run's phases; `prefill` and `decode` are the model's work."""

    startup: float
    loading: float
    prefill: float
    decode: float
    scoring: float
    comet: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.startup + self.loading + self.prefill + self.decode + self.scoring + self.comet


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
    seconds_typical: float
    seconds_most: float
    gpu_hours_typical: float
    read_bytes: float
    read_bytes_per_second: float
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
    typical: Work
    most: Work
    phases_typical: Phases
    phases_most: Phases
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
            "seconds_typical": self.phases_typical.total,
            "seconds_most": self.phases_most.total,
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
    memory = memory_of([group for turn in turns for group in turn], shape, hardware)
    copies = max(1, config.gpus // memory.cards)
    workers = max(1, copies // config.checkpoints)
    typical, most = (
        _generate(config, turns, shape, hardware, memory, workers, typical=expected)
        for expected in (True, False)
    )
    busy = min(copies, workers * config.checkpoints)
    phases = [_phases(config, work.datasets, hardware, memory, done, busy) for done in (typical, most)]
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
        typical=typical,
        most=most,
        phases_typical=phases[0],
        phases_most=phases[1],
        campaign=_campaign(config, work.datasets, memory, copies, workers, phases),
        judge=judge,
        notes=tuple(_notes(config, shape, memory, work)),
    )


def _generate(
    config: Config,
    turns: Sequence[Sequence[Group]],
    shape: ModelShape,
    hardware: Hardware,
    memory: Memory,
    workers: int,
    *,
    typical: bool,
) -> Work:
    """What the busiest of `workers` does: its share of every group, one turn after the other."""
    total = Work()
    for turn in turns:
        shares = [Group(group.prefix, group.items[::workers]) for group in turn]
        work = go_through(
            shares,
            shape,
            hardware,
            cache_bytes=memory.cache,
            typical=typical,
            batch_size=config.engine.batch_size,
        )
        total = Work(
            passes=total.passes + work.passes,
            prompt_tokens=total.prompt_tokens + work.prompt_tokens,
            new_tokens=total.new_tokens + work.new_tokens,
            seconds=total.seconds + work.seconds,
            prefill_seconds=total.prefill_seconds + work.prefill_seconds,
            prefix_tokens=max(total.prefix_tokens, work.prefix_tokens),
            rows=max(total.rows, work.rows),
        )
    return total


def _phases(
    config: Config,
    rows: Sequence[DatasetCount],
    hardware: Hardware,
    memory: Memory,
    work: Work,
    copies: int,
) -> Phases:
    comet_tokens = sum(row.comet_tokens for row in rows) * _COMET_PADDING
    # Runs start together, and so read together.
    share = (config.plan.storage_total or math.inf) / copies
    storage = min(config.plan.storage, share) * 1e9
    comet = 2 * _COMET_PARAMETERS * comet_tokens / hardware.flops_float32 + _COMET_BYTES / storage
    samples = 0 if config.suite is not None and config.suite.mt_bench else sum(row.samples for row in rows)
    return Phases(
        startup=config.plan.startup,
        loading=memory.weights / storage,
        prefill=work.prefill_seconds,
        decode=work.seconds - work.prefill_seconds,
        scoring=samples * config.plan.scoring_ms / 1e3,
        comet=comet if comet_tokens else 0.0,
    )


def _campaign(
    config: Config,
    rows: Sequence[DatasetCount],
    memory: Memory,
    copies: int,
    workers: int,
    phases: Sequence[Phases],
) -> Campaign:
    side_by_side = max(1, copies // workers)
    rounds = math.ceil(config.checkpoints / side_by_side)
    seconds = [rounds * one.total for one in phases]
    read = float(memory.weights) * config.checkpoints * workers
    return Campaign(
        checkpoints=config.checkpoints,
        side_by_side=side_by_side,
        workers=workers,
        rounds=rounds,
        seconds_typical=seconds[0],
        seconds_most=seconds[1],
        gpu_hours_typical=seconds[0] * config.gpus / 3600,
        read_bytes=read,
        read_bytes_per_second=read / seconds[0],
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
    if shape.experts > 1:
        notes.append("a mixture of experts: every pass is taken to read all experts' weights")
    longest = max(group.prefix + places(item) for group in work.groups for item in group.items)
    if shape.context and longest > shape.context:
        beyond = f"the longest prompt with its answer ({longest:.0f} tokens) is beyond the context"
        notes.append(f"{beyond} of {shape.context}")
    return notes
