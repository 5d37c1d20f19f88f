"""Goes through the passes of the local engine on paper: what each computes, reads and takes.

The rules are those of `evalkit.engines.pool`: groups with the longest answers first, each pass one
token of every running row and all tokens of the rows that are new.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from evalkit.engines.capacity import MOST_ROWS, MOST_TOKENS, SLOT_STEP
from evalkit.planning.hardware import Hardware
from evalkit.planning.shapes import ModelShape
from evalkit.planning.workload import Group, Item


@dataclass
class Work:
    """What one worker does.

    `prefill_seconds` is the prompts' share of `seconds`. `prefix_tokens` is the most that lie in
    memory at a time, `rows` the most rows that ran at once.
    """

    passes: int = 0
    prompt_tokens: float = 0.0
    new_tokens: float = 0.0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    prefix_tokens: float = 0.0
    rows: int = 0


@dataclass
class _Open:
    """A group under way: its prefix is held until the last of its `left` items has ended."""

    prefix: float
    left: int
    computed: bool = False


@dataclass
class _Running:
    """Sums over the running rows, kept from pass to pass.

    `ends`: for each row its last pass, the own tokens it then has, its group, and its slot's tokens.
    """

    ends: list[tuple[int, float, int, int]] = field(default_factory=list)
    own_tokens: float = 0.0
    prefix_reads: float = 0.0
    prefixes: float = 0.0


def places(item: Item) -> int:
    """Tokens an item's slot must hold."""
    return math.ceil(item.cached + item.own) + item.most - 1


def slot_tokens(items: Sequence[Item]) -> int:
    """Tokens of a slot that holds any of these items."""
    return -(-max(1, *map(places, items)) // SLOT_STEP) * SLOT_STEP


def go_through(
    groups: Sequence[Group],
    shape: ModelShape,
    hardware: Hardware,
    *,
    cache_bytes: float,
    typical: bool,
    batch_size: int | None = None,
) -> Work:
    """All passes over `groups`, answers of typical length or (False) as long as they may be.

    Args:
        groups: what one worker is given.
        shape: the model.
        hardware: its card.
        cache_bytes: what the rows' cache may take.
        batch_size: most rows at a time; None: what the hardware gains from.
    """
    return _Passes(groups, shape, hardware, cache_bytes, typical, batch_size).run()


class _Passes:
    def __init__(
        self,
        groups: Sequence[Group],
        shape: ModelShape,
        hardware: Hardware,
        cache_bytes: float,
        typical: bool,
        batch_size: int | None,
    ) -> None:
        self.shape, self.hardware, self.typical = shape, hardware, typical
        ordered = sorted(groups, key=lambda group: -max(item.most for item in group.items))
        self.groups = [_Open(group.prefix, len(group.items)) for group in ordered]
        self.queue = deque(
            (item, place)
            for place, group in enumerate(ordered)
            for item in sorted(group.items, key=lambda item: -places(item))
        )
        self.cache_tokens = cache_bytes / shape.token_bytes(hardware.width)
        self.most_rows = batch_size or MOST_ROWS[hardware.kind]
        self.weights = shape.parameters * hardware.width
        self.now = _Running()
        self.work = Work()

    def run(self) -> Work:
        self.capacity = slot_tokens([item for item, _ in self.queue])
        self.rows = self._rows_of(self.capacity)
        # From here on the longest of what waits: more, shorter slots once only short rows are left.
        longest = [slot_tokens([item]) for item, _ in self.queue]
        for place in range(len(longest) - 2, -1, -1):
            longest[place] = max(longest[place], longest[place + 1])
        waiting = deque(longest)
        while self.queue or self.now.ends:
            if waiting and waiting[0] <= self.capacity // 2:
                self._make_more_slots(waiting[0])
            admitted = self._admit()
            for _ in admitted:
                waiting.popleft()
            self._step(admitted)
        return self.work

    def _make_more_slots(self, waiting: int) -> None:
        """More and shorter slots, once only short rows are left; `waiting` is the longest of the queue."""
        needed = max([waiting, *(slot for *_, slot in self.now.ends)])
        if needed <= self.capacity // 2 and self._rows_of(needed) > self.rows:
            self.capacity, self.rows = needed, self._rows_of(needed)

    def _rows_of(self, capacity: int) -> int:
        return max(1, min(self.most_rows, int(self.cache_tokens // capacity)))

    def _admit(self) -> list[tuple[Item, int]]:
        admitted: list[tuple[Item, int]] = []
        tokens = float(len(self.now.ends))
        coming: set[int] = set()
        while self.queue and len(self.now.ends) + len(admitted) < self.rows:
            item, place = self.queue[0]
            tokens += item.own
            if not self.groups[place].computed and place not in coming:
                tokens += self.groups[place].prefix
                coming.add(place)
            if (self.now.ends or admitted) and tokens > MOST_TOKENS[self.hardware.kind]:
                break
            admitted.append(self.queue.popleft())
        return admitted

    def _step(self, admitted: Sequence[tuple[Item, int]]) -> None:
        shape, now, work = self.shape, self.now, self.work
        running = len(now.ends)
        # Each running row reads its own tokens and its prefix; a prefix is read once for all its rows.
        decode = running * shape.token_flops + shape.pair_flops * (now.own_tokens + now.prefix_reads)
        read = self.weights + shape.token_bytes(self.hardware.width) * (now.own_tokens + now.prefixes)
        prompt_tokens, pairs = 0.0, 0.0
        now.own_tokens += running
        for item, place in admitted:
            group = self.groups[place]
            if not group.computed:
                group.computed = True
                now.prefixes += group.prefix
                prompt_tokens += group.prefix
                pairs += group.prefix**2 / 2
            prompt_tokens += item.own
            pairs += item.own * (group.prefix + item.cached + item.own / 2)
            own = item.cached + item.own
            now.own_tokens += own
            now.prefix_reads += group.prefix
            new = max(1, round(item.typical) if self.typical else item.most)
            work.new_tokens += new
            heapq.heappush(now.ends, (work.passes + new - 1, own + new - 1, place, slot_tokens([item])))
        prefill = prompt_tokens * shape.token_flops + pairs * shape.pair_flops
        flops = decode + prefill + len(now.ends) * shape.logit_flops
        hardware = self.hardware
        seconds = (
            max(flops / hardware.flops, read / hardware.bandwidth) + shape.layers * hardware.layer_seconds
        )
        work.seconds += seconds
        work.prefill_seconds += seconds * prefill / flops
        work.prompt_tokens += prompt_tokens
        work.rows = max(work.rows, len(now.ends))
        work.prefix_tokens = max(work.prefix_tokens, now.prefixes)
        self._end_rows()
        work.passes += 1

    def _end_rows(self) -> None:
        now = self.now
        while now.ends and now.ends[0][0] <= self.work.passes:
            _, own, place, _ = heapq.heappop(now.ends)
            group = self.groups[place]
            now.own_tokens -= own
            now.prefix_reads -= group.prefix
            group.left -= 1
            if not group.left:
                now.prefixes -= group.prefix
