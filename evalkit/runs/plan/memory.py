"""Whether a model fits on a card, and how many cards one copy needs otherwise.

The arithmetic of `evalkit.engines.local.memory`, before the model is there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evalkit.engines.local.memory import CACHE_SHARE, MOST_ROWS, MOST_TOKENS, SLOT_STEP
from evalkit.runs.plan.hardware import Hardware
from evalkit.runs.plan.shapes import ModelShape
from evalkit.runs.plan.workload import Group, Item

_MOST_CARDS = 1024


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
        activations: a pass of the most tokens, with the logits of its rows.
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


def places(item: Item) -> int:
    """Tokens an item's slot must hold."""
    return math.ceil(item.cached + item.own) + item.most - 1


def memory_of(
    groups: Sequence[Group], shape: ModelShape, hardware: Hardware, *, batch_size: int | None = None
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
