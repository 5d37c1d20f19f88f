"""A configuration -> the estimate of a run, and of many checkpoints on many cards."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evalkit.core.config import Config, JudgeConfig, given_model, given_suite
from evalkit.core.errors import InputError
from evalkit.engines.local.memory import CACHE_SHARE, MOST_ROWS, MOST_TOKENS, SLOT_STEP
from evalkit.engines.local.tokenizer import tokenizer_here
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS
from evalkit.mtbench.judge.judges import resolve_judge
from evalkit.mtbench.presets import DEFAULT_PRESET, Preset, load_preset
from evalkit.runs.plan.counting import ChatTokenizer, token_counter
from evalkit.runs.plan.shapes import Hardware, ModelShape, hardware_of, shape_of
from evalkit.runs.plan.workload import (
    MT_BENCH,
    DatasetCount,
    PlannedAnswer,
    PlannedGroup,
    Workload,
    suite_workload,
    turns_of,
)
from evalkit.runs.suite import asking_of
from evalkit.tasks.prompts import Asking

_LLM_JP_VOCABULARY = 99584
# How many datasets a note names.
_FEW = 5
_MOST_CARDS = 1024
# Tokens of the 160 judge prompts of a run: answers of ELYZA-7b, and the long ones of gpt-4o.
JUDGE_INPUT_TYPICAL, JUDGE_INPUT_LONG = 177_057, 225_339
_JUDGED = 160


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
class Memory:
    """What one copy of a model takes, in bytes.

    Attributes:
        cards: cards that one copy needs (1 on a CPU).
        fits: whether it fits at all; on a CPU there is nothing to add.
        card_bytes: of one card, or of the machine.
        weights: the weights.
        free: what is left on the copy's cards.
        cache: what the rows' cache may take of that.
        token: one token in the cache.
        slot: the longest slot.
        rows: rows of the longest slot that run at once.
        prefix: the longest shared prefix.
        activations: of the largest pass, with the logits of its rows.
    """

    cards: int
    fits: bool
    card_bytes: float
    weights: int
    free: float
    cache: float
    token: int
    slot: int
    rows: int
    prefix: float
    activations: float


@dataclass(frozen=True)
class JudgeCost:
    """The cost of judging one run; dollars None: no price is known for `model`."""

    judge: str
    model: str
    calls: int
    input_tokens_typical: int
    input_tokens_long: int
    output_tokens: int
    dollars_typical: float | None
    dollars_long: float | None


@dataclass(frozen=True)
class Estimate:
    """Everything `plan` prints; `notes` are its limitations."""

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
        usual = [row.new_tokens_typical for row in self.datasets]
        totals = {
            "samples": sum(row.samples for row in self.datasets),
            "prompt_tokens": sum(row.prompt_tokens for row in self.datasets),
            "computed_tokens": sum(row.computed_tokens for row in self.datasets),
            "new_tokens_most": sum(row.new_tokens_most for row in self.datasets),
            "new_tokens_typical": None if None in usual else sum(one for one in usual if one is not None),
            "parameters": self.shape.parameters,
        }
        return {**asdict(self), "totals": totals}


def estimate(config: Config) -> Estimate:
    """The estimate; nothing is fetched, loaded or started.

    Raises:
        InputError: no model or suite, a model whose shape is not known here, bad options or data.
    """
    model, suite = given_model(config.model), given_suite(config.suite)
    shape, shape_source = shape_of(model)
    hardware = hardware_of(config.gpus, config.gpu_memory, config.dtype, config.plan)
    tokenizer = tokenizer_here(model) if suite.chat else None
    counter = token_counter(model, config.protocol.bos)
    if tokenizer is not None:
        counter = ChatTokenizer(f"{counter.how}, chat template included", tokenizer)
    notes: list[str] = []
    if suite.mt_bench is not None:
        preset = load_preset(config.preset or suite.preset or DEFAULT_PRESET)
        turns, row = turns_of(preset, config.limit)
        work, how = Workload(tuple(turns[-1]), (row,), {}), "the protocol's figures, llm-jp-3 tokenizer"
        judge = judge_cost(config.judge, preset, row.samples)
    else:
        asking = asking_of(config, tokenizer)
        work = suite_workload(suite, config.data, asking, counter, tokenizer=tokenizer, context=shape.context)
        notes = list(_asking_notes(asking, shape, work, renders=tokenizer is not None))
        how, judge = counter.how, None
        turns = [list(work.groups)]
        if all(row.source == "kept counts" for row in work.datasets):
            how = "kept counts of the llm-jp-3 tokenizer"
    batch_size = config.engine.batch_size
    memory = memory_of([group for turn in turns for group in turn], shape, hardware, batch_size=batch_size)
    campaign = _campaign(config.gpus, config.checkpoints, memory, datasets=len(work.datasets))
    usual, most = (
        _bound(turns, shape, hardware, workers=campaign.workers, batch_size=batch_size, typical=expected)
        for expected in (True, False)
    )
    return Estimate(
        model=model.name or model.path or "model",
        suite=suite.name,
        shape=shape,
        shape_source=shape_source,
        counted_by=how,
        datasets=work.datasets,
        left_out=work.left_out,
        hardware=hardware,
        memory=memory,
        bound_typical=usual,
        bound_most=most,
        campaign=campaign,
        judge=judge,
        notes=(*notes, *_notes(shape, memory, work, config.gpus)),
    )


def places(item: PlannedAnswer) -> int:
    """Tokens an item's slot must hold."""
    return math.ceil(item.cached + item.own) + item.most - 1


def memory_of(
    groups: Sequence[PlannedGroup], shape: ModelShape, hardware: Hardware, *, batch_size: int | None = None
) -> Memory:
    """The memory one copy of the model needs for this work, on as few cards as hold it.

    Args:
        groups: what is to be answered.
        shape: the model.
        hardware: its card.
        batch_size: most rows at once; None: what the hardware gains from.
    """
    token = shape.token_bytes(hardware.width)
    weights = shape.parameters * hardware.width
    longest = max(1, *(places(item) for group in groups for item in group.items))
    slot = -(-longest // SLOT_STEP) * SLOT_STEP * token
    prefix = max(group.prefix for group in groups) * token
    share = CACHE_SHARE[hardware.kind]
    # Of the widest place of a layer: the gated MLP's three vectors, and the residual's own.
    wide = 3 * shape.intermediate * shape.active + 4 * shape.hidden
    activations = MOST_TOKENS[hardware.kind] * wide * hardware.width + 64 * shape.vocab * 4

    def left(cards: int) -> float:
        return cards * (hardware.memory - hardware.context) - weights

    def fits(cards: int) -> bool:
        free = left(cards)
        return free * share >= slot and free * (1 - share) >= prefix + activations

    allowed = range(1, 2 if hardware.kind == "cpu" else _MOST_CARDS + 1)
    cards = next((count for count in allowed if fits(count)), allowed[-1])
    free = max(0.0, left(cards))
    return Memory(
        cards=cards,
        fits=fits(cards),
        card_bytes=hardware.memory,
        weights=weights,
        free=free,
        cache=free * share,
        token=token,
        slot=slot,
        rows=min(int(free * share // slot), batch_size or MOST_ROWS[hardware.kind]),
        prefix=prefix,
        activations=activations,
    )


def _bound(
    turns: Sequence[Sequence[PlannedGroup]],
    shape: ModelShape,
    hardware: Hardware,
    *,
    workers: int,
    batch_size: int | None,
    typical: bool,
) -> Bound:
    """The bound for evenly shared work; for answers of typical length or of the maximum length."""
    flops, read = 0.0, 0.0
    rows = batch_size or MOST_ROWS[hardware.kind]
    # A pass reads the weights that one token goes through, and those of the logits.
    pass_bytes = (shape.token_flops + shape.logit_flops) / 2 * hardware.width
    for turn in turns:
        longest, answered = 0.0, 0.0
        for group in turn:
            before = group.prefix + group.above
            flops += (group.prefix - group.above) * (shape.token_flops + shape.pair_flops * before / 2)
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


def _campaign(gpus: int, checkpoints: int, memory: Memory, *, datasets: int) -> Campaign:
    copies = max(1, gpus // memory.cards)
    workers = max(1, copies // checkpoints)
    side_by_side = max(1, copies // workers)
    return Campaign(
        checkpoints=checkpoints,
        side_by_side=side_by_side,
        workers=workers,
        rounds=math.ceil(checkpoints / side_by_side),
        read_bytes=float(memory.weights) * checkpoints * workers,
        # Completions and scores of every dataset, and the six files of a run.
        files=checkpoints * (2 * datasets + 6),
        idle_gpus=gpus - memory.cards * copies if gpus >= memory.cards else 0,
    )


def _asking_notes(asking: Asking, shape: ModelShape, work: Workload, *, renders: bool) -> Iterator[str]:
    """What is not known of chats and thoughts."""
    if asking.chat is not None and not renders:
        yield "the model's tokenizer is not here: what its chat template adds to the prompts is not counted"
        if asking.thoughts is None:
            yield "whether it thinks is not known either: name the rule, such as reasoning.parser=think"
    elif asking.chat is not None and any(row.source == "kept counts" for row in work.datasets):
        yield "kept counts leave out what the chat template adds to the prompts"
    if (thoughts := asking.thoughts) is None:
        return
    yield f"the model thinks first (rule {thoughts.rule}); how long is not known: only the most is counted"
    if thoughts.thought_length is not None:
        return
    if shape.context is None:
        yield "the context is not known, so thoughts are not counted: reasoning.thought_length=N"
    else:
        yield f"without reasoning.thought_length the most is the rest of the context ({shape.context})"


def _notes(shape: ModelShape, memory: Memory, work: Workload, gpus: int) -> list[str]:
    notes = []
    kept = [row.name for row in work.datasets if row.source == "kept counts"]
    if kept and kept != [MT_BENCH]:
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
    if gpus and gpus < memory.cards:
        notes.append(f"gpus={gpus} are too few: one copy needs {memory.cards}")
    longest = max(group.prefix + places(item) for group in work.groups for item in group.items)
    if shape.context and longest > shape.context:
        beyond = f"the longest prompt with its answer ({longest:.0f} tokens) is beyond the context"
        notes.append(f"{beyond} of {shape.context}")
    return notes


def judge_cost(chosen: JudgeConfig | None, preset: Preset, answered: int) -> JudgeCost | None:
    """What judging `answered` turns costs; None: no judge is chosen and the preset names none.

    Raises:
        InputError: an incomplete judge, or a price file that is none.
    """
    try:
        judge = resolve_judge(chosen, preset)
    except InputError:
        if chosen is not None:
            raise
        return None
    model = judge.config.model or judge.model
    price = judge.price
    calls = answered * judge.config.repeats
    share = calls / _JUDGED
    output = round(EXPLANATION_TOKENS * calls)
    usual, long = round(JUDGE_INPUT_TYPICAL * share), round(JUDGE_INPUT_LONG * share)
    return JudgeCost(
        judge=judge.label,
        model=model,
        calls=calls,
        input_tokens_typical=usual,
        input_tokens_long=long,
        output_tokens=output,
        dollars_typical=price.of(usual, output) if price else None,
        dollars_long=price.of(long, output) if price else None,
    )
