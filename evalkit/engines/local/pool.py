"""The pool of running rows: rows of all prompts and prefixes go through the model together.

Every pass takes one token of each running row and all tokens of the rows that are new. A row that
ends leaves at once, and the next request takes its slot. The states of a finished chat are kept for
its next turn.
"""

import heapq
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evalkit.core import progress
from evalkit.core.errors import is_out_of_memory
from evalkit.core.words import t
from evalkit.engines.local.attention import forward
from evalkit.engines.local.loading import LoadedModel
from evalkit.engines.local.memory import SLOT_STEP, Limits, no_room
from evalkit.engines.local.passes import Feed, LayerShape, RowSlots, Section, States
from evalkit.engines.local.prefixes import GROUP_COST, PrefixGroup, common, each, shared_prefixes
from evalkit.engines.local.running_rows import RunningRow, choose

log = logging.getLogger(__name__)

# New tokens that a slot has room for at first where whole answers would leave room for fewer rows, and how
# much more each time that only longer ones are left.
_RESERVE, _MORE = 512, 4


@dataclass
class History:
    """States of positions `first` to `length` (exclusive) of a sequence, in main memory."""

    states: States
    first: int
    length: int

    def put(self, slots: RowSlots, slot: int, begin: int, end: int) -> None:
        """Writes the states of positions `begin` to `end` (exclusive) to the beginning of a slot."""
        slots.write(slot, self.states, begin - self.first, end - self.first)


class Conversations:
    """The states of finished chats, so that the next turn computes only new tokens.

    They are kept in main memory; the oldest are dropped above `most_bytes`.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: list[tuple[npt.NDArray[np.int64], States]] = []

    def keep(self, ids: Sequence[int], prefix: States | None, own: States) -> None:
        """Keeps the states of a finished chat.

        Args:
            ids: the tokens of the states.
            prefix: states of a shared prefix; None without one.
            own: states of the tokens after it.
        """
        states = own if prefix is None else prefix.followed_by(own)
        self._kept.append((np.asarray(ids, dtype=np.int64), states.to_cpu()))
        while self._kept and sum(states.bytes for _, states in self._kept) > self._most_bytes:
            self._kept.pop(0)

    def take(self, row: RunningRow) -> History | None:
        """Removes and returns the kept states that cover most of a chat's prompt."""
        if isinstance(row.request.prompt, str) or not self._kept:
            return None
        prompt = np.asarray(row.ids, dtype=np.int64)
        lengths = [common(ids, prompt) for ids, _ in self._kept]
        best = max(range(len(lengths)), key=lengths.__getitem__)
        if not lengths[best]:
            return None
        _, states = self._kept.pop(best)
        return History(states, 0, lengths[best])


@dataclass(eq=False)
class SharedPrefix:
    """The tokens that prompts begin with; some share only a part of them.

    Attributes:
        ids: the tokens.
        parent: the prefix whose states it begins with, until it is computed.
        begin: how many of them it takes from there.
        users: rows, and prefixes to be computed from it, that still need it.
        states: its keys and values, allocated for the pass that computes them.
        computed: whether that pass is done.
    """

    ids: Sequence[int]
    parent: "SharedPrefix | None" = None
    begin: int = 0
    users: int = 0
    states: States | None = None
    computed: bool = False

    @property
    def missing(self) -> list["SharedPrefix"]:
        """What is to be computed before its rows can run, in this order."""
        return [] if self.computed else [*(self.parent.missing if self.parent else []), self]

    def done(self) -> None:
        """Called when it is computed."""
        self.computed = True
        if self.parent is not None:
            self.parent.leave()
            self.parent = None

    def leave(self) -> None:
        """Called when a user ends; the last one frees the states."""
        self.users -= 1
        if not self.users:
            self.states = None


@dataclass(eq=False)
class Waiting:
    """A row without a slot, which begins with `shared` tokens of a prefix.

    `history` holds states computed before.
    """

    row: RunningRow
    prefix: SharedPrefix
    shared: int
    history: History | None = None

    @property
    def slot_tokens(self) -> int:
        """Tokens its slot must hold: all but those of the prefix and the last one."""
        return len(self.row.ids) - self.shared + self.row.request.max_new_tokens - 1

    def tokens_within(self, reserve: int) -> int:
        """As `slot_tokens`, for at most `reserve` tokens more than it has."""
        known = len(self.row.ids) + len(self.row.new) - self.shared
        return min(self.slot_tokens, known + reserve)

    @property
    def reused(self) -> int:
        """Tokens that are not computed again: those of the prefix, or more with a history."""
        known = len(self.row.ids) + len(self.row.new)
        covered = self.history.length if self.history else 0
        return max(self.shared, min(covered, known - 1))


@dataclass(eq=False)
class Running:
    """A row in a slot: `cached` tokens of its own are there, `pending` go into the next pass."""

    waiting: Waiting
    slot: int
    cached: int
    pending: list[int]
    fed: bool = field(default=False)

    @property
    def row(self) -> RunningRow:
        """The row."""
        return self.waiting.row

    @property
    def prefix(self) -> SharedPrefix:
        """The prefix it shares."""
        return self.waiting.prefix


def in_order(
    rows: Sequence[RunningRow], conversations: Conversations, group_cost: int = GROUP_COST
) -> list[Waiting]:
    """The rows in the order in which they start.

    Groups stay together with those inside them, so that few prefixes are in memory at a time. Groups with the
    longest completions come first, so that short ones fill the slots that become free at the end.
    """
    groups = shared_prefixes([row.ids for row in rows], cost=group_cost)
    return _longest_first([_in_group(group, rows, conversations) for group in groups])


def _longest_first(groups: list[list[Waiting]]) -> list[Waiting]:
    groups.sort(key=lambda group: -max(one.row.request.max_new_tokens for one in group))
    return [waiting for group in groups for waiting in group]


def _in_group(
    group: PrefixGroup,
    rows: Sequence[RunningRow],
    conversations: Conversations,
    parent: SharedPrefix | None = None,
    begin: int = 0,
    *,
    in_place: bool = False,
) -> list[Waiting]:
    """The rows of a group and of those inside it, which begin with the tokens of its prefix.

    Args:
        group: the group.
        rows: all rows.
        conversations: where their histories are.
        parent: the prefix it continues.
        begin: how many tokens of it.
        in_place: its prefix is a further part of `parent`, not one of its own.
    """
    if in_place and parent is not None:
        prefix = parent
    else:
        deepest = group
        while deepest.members and deepest.groups:
            deepest = deepest.groups[0]
        ids = rows[next(some.members for some in each([deepest]) if some.members)[0]].ids
        prefix = SharedPrefix(ids[: deepest.length], parent, begin)
        if parent is not None:
            parent.users += 1
    members = [rows[index] for index in group.members]
    prefix.users += len(members)
    waiting = [Waiting(row, prefix, group.length, conversations.take(row)) for row in members]
    waiting.sort(key=lambda one: -one.slot_tokens)
    inside = [
        _in_group(one, rows, conversations, prefix, group.length, in_place=bool(members) and not place)
        for place, one in enumerate(group.groups)
    ]
    return _longest_first([waiting, *inside] if waiting else inside)


class Pool:
    """Generates rows; the engine makes a pool for each call of `generate`."""

    group_cost = GROUP_COST

    def __init__(
        self, loaded: LoadedModel, layers: Sequence[LayerShape], limits: Limits, conversations: Conversations
    ) -> None:
        self._loaded = loaded
        self._layers = layers
        self._limits = limits
        self._conversations = conversations
        self._queue: deque[Waiting] = deque()
        self._running: dict[int, Running] = {}
        self._free: list[int] = []
        self._prefixes: set[SharedPrefix] = set()
        # Rows that filled their slot: they go on when no shorter ones wait.
        self._long: list[Waiting] = []
        self._reserve = _RESERVE

    def run(self, rows: Sequence[RunningRow]) -> Iterator[RunningRow]:
        """Yields every row as soon as it has finished.

        Raises:
            EvalkitError: not even one row fits into memory, or logits are not numbers.
        """
        self._queue.extend(in_order(rows, self._conversations, self.group_cost))
        prefixes = {prefix for waiting in self._queue for prefix in waiting.prefix.missing}
        own = sum(len(waiting.row.ids) - waiting.reused for waiting in self._queue)
        progress.planned(sum(len(prefix.ids) - prefix.begin for prefix in prefixes) + own)
        if self._queue:
            self._slots = self._allocate()
        while self._queue or self._running or self._long:
            self._set_long_aside()
            self._take_long_back()
            self._make_more_slots()
            self._admit()
            yield from self._step()

    # --- slots -------------------------------------------------------------------------------

    def _capacity(self) -> int:
        """Tokens a slot must hold: for any row that is left, or for the reserve if more rows then fit."""
        left = [*self._queue, *(running.waiting for running in self._running.values())]
        whole = _rounded(max(waiting.slot_tokens for waiting in left))
        if self._limits.rows_for(whole) >= min(len(left), self._limits.rows):
            return whole
        return _rounded(max(waiting.tokens_within(self._reserve) for waiting in left))

    def _allocate(self) -> RowSlots:
        capacity = self._capacity()
        rows = min(len(self._queue), self._limits.rows_for(capacity))
        while True:
            try:
                slots = RowSlots(self._layers, rows, capacity)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise no_room(error) from None
                rows = self._limits.fewer_rows(rows)
            else:
                log.info("cache: %d rows of %d tokens", rows, capacity)
                self._free = list(range(rows))
                return slots

    def _make_more_slots(self) -> None:
        """Makes more and shorter slots when memory limits their number and only short rows are left."""
        wanted = min(len(self._queue) + len(self._running), self._limits.rows)
        if not self._queue or self._slots.rows >= wanted:
            return
        capacity = self._capacity()
        rows = min(wanted, self._limits.rows_for(capacity))
        if capacity <= self._slots.capacity // 2 and rows > self._slots.rows:
            self._resize(rows, capacity)

    def _set_long_aside(self) -> None:
        """Frees the slots of rows that have filled them."""
        full = [one for one in self._running.values() if one.cached + len(one.pending) > self._slots.capacity]
        if not full:
            return
        self._put_back(full)
        kept = sum(one.history.states.bytes for one in self._long if one.history)
        for _ in full:
            waiting = self._queue.popleft()
            # What does not fit into memory is computed again.
            if (
                waiting.history is not None
                and kept + waiting.history.states.bytes > self._limits.cache_bytes // 4
            ):
                waiting.history = None
            kept += waiting.history.states.bytes if waiting.history else 0
            self._long.append(waiting)

    def _take_long_back(self) -> None:
        """Makes longer slots for the rows that were set aside, once no other waits."""
        if self._queue or not self._long:
            return
        self._reserve *= _MORE
        self._queue.extend(self._long)
        self._long.clear()
        capacity = max(self._capacity(), self._slots.capacity)
        rows = min(len(self._queue) + len(self._running), self._limits.rows_for(capacity))
        self._put_back(sorted(self._running.values(), key=lambda one: one.slot)[rows:])
        self._resize(rows, capacity)

    def _resize(self, rows: int, capacity: int) -> None:
        self._close_gaps()
        self._slots.resize(rows, capacity, kept=len(self._running))
        self._free = list(range(len(self._running), rows))
        log.info("cache: now %d rows of %d tokens", rows, capacity)

    def _close_gaps(self) -> None:
        """Moves running rows so that they fill the first slots."""
        count = len(self._running)
        gaps = [slot for slot in range(count) if slot not in self._running]
        for target, source in zip(gaps, sorted(slot for slot in self._running if slot >= count), strict=True):
            running = self._running.pop(source)
            self._slots.move(source, target, running.cached)
            running.slot = target
            self._running[target] = running
        self._free = list(range(count, self._slots.rows))

    # --- rows in and out ---------------------------------------------------------------------

    def _admit(self) -> None:
        """Gives free slots to waiting rows, within the tokens of one pass."""
        coming = {prefix for running in self._running.values() for prefix in running.prefix.missing}
        tokens = sum(len(running.pending) for running in self._running.values())
        tokens += sum(len(prefix.ids) - prefix.begin for prefix in coming)
        while self._queue and self._free:
            waiting = self._queue[0]
            known = waiting.row.ids + waiting.row.new
            new = [prefix for prefix in waiting.prefix.missing if prefix not in coming]
            tokens += len(known) - waiting.reused
            tokens += sum(len(prefix.ids) - prefix.begin for prefix in new)
            room = tokens <= self._limits.tokens and (not new or self._have_room({*coming, *new}))
            if self._running and not room:
                return
            coming.update(new)
            self._queue.popleft()
            slot = heapq.heappop(self._free)
            cached = waiting.reused - waiting.shared
            if waiting.history is not None and cached:
                waiting.history.put(self._slots, slot, waiting.shared, waiting.reused)
            self._running[slot] = Running(waiting, slot, cached, known[waiting.reused :])
            waiting.history = None

    def _have_room(self, coming: set[SharedPrefix]) -> bool:
        """Whether the prefixes to be computed fit into memory beside those that are needed still."""
        self._prefixes = {prefix for prefix in self._prefixes if prefix.states is not None}
        tokens = sum(len(prefix.ids) for prefix in self._prefixes | coming)
        return tokens * self._limits.token_bytes <= self._limits.prefix_bytes

    def _step(self) -> Iterator[RunningRow]:
        """One pass; yields the rows it finished."""
        groups: dict[SharedPrefix, list[Running]] = {}
        for running in self._running.values():
            groups.setdefault(running.prefix, []).append(running)
        for members in groups.values():
            # By length, so that few rows see the prefix in one call; by slot, so that they are neighbours.
            members.sort(key=lambda running: (-running.waiting.shared, running.slot))
        order = [running for members in groups.values() for running in members]
        missing = list(dict.fromkeys(prefix for some in groups for prefix in some.missing))
        progress.stage(_stage(order))
        try:
            tokens = choose(self._logits(missing, order), [running.row for running in order])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._shrink(error)
            return
        for prefix in missing:
            prefix.done()
        for running, token in zip(order, tokens, strict=True):
            running.fed = True
            running.cached += len(running.pending)
            running.pending = [token]
            if not running.row.add(token):
                self._leave(running)
                yield running.row
        if not self._queue:
            self._close_gaps()

    def _logits(self, missing: Sequence[SharedPrefix], order: Sequence[Running]) -> Tensor:
        """[rows, vocabulary]: the logits after the last token of each row in `order`.

        The prefixes in `missing` are computed too.
        """
        sections = []
        for prefix in missing:
            if not prefix.ids:
                continue
            if prefix.states is None:
                prefix.states = States.empty(self._layers, len(prefix.ids))
                self._prefixes.add(prefix)
            parent = prefix.parent.states if prefix.parent else None
            new = prefix.ids[prefix.begin :]
            sections.append(Section(prefix.states, len(prefix.ids), new, [], parent))
        for (prefix, shared), members in groupby(order, key=lambda one: (one.prefix, one.waiting.shared)):
            feeds = [Feed(running.slot, running.cached, running.pending) for running in members]
            sections.append(Section(prefix.states, shared, None, feeds))
        return self._forward(sections)

    def _forward(self, sections: Sequence[Section]) -> Tensor:
        return forward(self._loaded.model, sections, self._slots)

    def _leave(self, running: Running) -> None:
        row, prefix, shared = running.row, running.prefix, running.waiting.shared
        if not isinstance(row.request.prompt, str):
            ids = (row.ids + row.new)[: shared + running.cached]
            own = self._slots.read(running.slot, running.cached)
            states = None if prefix.states is None else prefix.states.first(shared)
            self._conversations.keep(ids, states, own)
        del self._running[running.slot]
        heapq.heappush(self._free, running.slot)
        prefix.leave()

    # --- out of memory -----------------------------------------------------------------------

    def _shrink(self, error: BaseException) -> None:
        """Makes the next pass smaller; the states computed so far are kept.

        With new rows in the pass, half of them wait. Without, half of all rows move to main memory and
        the cache shrinks.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows = sorted(self._running.values(), key=lambda running: (not running.fed, running.slot))
        if len(rows) == 1:
            raise no_room(error) from None
        new = [running for running in rows if not running.fed]
        if new:
            tokens = sum(len(running.pending) for running in rows)
            missing = {prefix for running in new for prefix in running.prefix.missing}
            tokens += sum(len(prefix.ids) - prefix.begin for prefix in missing)
            self._limits.fewer_tokens(tokens)
            self._put_back(new[len(new) // 2 :])
            return
        kept = self._limits.fewer_rows(len(rows))
        self._put_back(rows[kept:])
        self._resize(kept, self._slots.capacity)

    def _put_back(self, rows: Sequence[Running]) -> None:
        """Lets running rows wait again, first in the queue; their states move to main memory."""
        for running in reversed(rows):
            if running.cached:
                length = running.waiting.shared
                states = self._slots.read(running.slot, running.cached).to_cpu()
                running.waiting.history = History(states, length, length + running.cached)
            del self._running[running.slot]
            heapq.heappush(self._free, running.slot)
            self._queue.appendleft(running.waiting)


def _stage(order: Sequence[Running]) -> str:
    """What most of a pass is for."""
    if any(not running.prefix.computed and running.prefix.ids for running in order):
        return t("shared prefixes")
    return t("tokens") if all(running.fed for running in order) else t("prompts")


def _rounded(tokens: int) -> int:
    """The capacity of a slot for at least so many tokens."""
    return -(-max(1, tokens) // SLOT_STEP) * SLOT_STEP
