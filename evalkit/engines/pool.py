"""The pool of running rows: rows of all prompts and prefixes go through the model together.

Every pass feeds one token of each running row and all tokens of the rows that are new. A row that
ends leaves at once, and the next request takes its slot.
"""

import heapq
import logging
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evalkit.engines.attention import forward
from evalkit.engines.cache import LayerShape, RowSlots, States
from evalkit.engines.capacity import SLOT_STEP
from evalkit.engines.conversations import Conversations, History
from evalkit.engines.loading import LoadedModel
from evalkit.engines.memory import Limits, no_room
from evalkit.engines.packing import Feed, Section
from evalkit.engines.rows import Row
from evalkit.engines.sampling import choose
from evalkit.engines.schedule import Running, SharedPrefix, Waiting, in_order
from evalkit.errors import is_out_of_memory

log = logging.getLogger(__name__)

# Most rows whose own tokens are attended to in one call.
_LONGEST_RUN = {"cpu": 16, "cuda": 1024}


class Pool:
    """Generates rows; one for each call of the engine's `generate`."""

    def __init__(
        self, loaded: LoadedModel, layers: Sequence[LayerShape], limits: Limits, conversations: Conversations
    ) -> None:
        self._loaded = loaded
        self._layers = layers
        self._limits = limits
        self._conversations = conversations
        self._longest_run = _LONGEST_RUN.get(layers[0].device.type, _LONGEST_RUN["cpu"])
        self._queue: deque[Waiting] = deque()
        self._running: dict[int, Running] = {}
        self._free: list[int] = []

    def run(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Yields every row as soon as it has finished.

        Raises:
            EvalkitError: not even one row fits into memory, or logits are not numbers.
        """
        self._queue.extend(in_order(rows, self._conversations))
        if self._queue:
            self._slots = self._allocate()
        while self._queue or self._running:
            self._make_more_slots()
            self._admit()
            yield from self._step()

    # --- slots -------------------------------------------------------------------------------

    def _capacity(self) -> int:
        """Tokens a slot must hold for every row that is left."""
        left = (*self._queue, *(running.waiting for running in self._running.values()))
        return -(-max(1, *(waiting.places for waiting in left)) // SLOT_STEP) * SLOT_STEP

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
        """More and shorter slots, once memory bounds their number and only short rows are left."""
        wanted = min(len(self._queue) + len(self._running), self._limits.rows)
        if not self._queue or self._slots.rows >= wanted:
            return
        capacity = self._capacity()
        rows = min(wanted, self._limits.rows_for(capacity))
        if capacity <= self._slots.capacity // 2 and rows > self._slots.rows:
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
        """Gives free slots to waiting rows, as many as one pass should take."""
        coming = {running.prefix for running in self._running.values() if not running.prefix.computed}
        tokens = sum(len(running.pending) for running in self._running.values())
        tokens += sum(len(prefix.ids) for prefix in coming)
        while self._queue and self._free:
            waiting = self._queue[0]
            prefix = waiting.prefix
            known = waiting.row.ids + waiting.row.new
            tokens += len(known) - waiting.reused
            if not prefix.computed and prefix not in coming:
                tokens += len(prefix.ids)
            if self._running and tokens > self._limits.tokens:
                return
            coming.add(prefix)
            self._queue.popleft()
            slot = heapq.heappop(self._free)
            cached = waiting.reused - len(prefix.ids)
            if waiting.history is not None and cached:
                waiting.history.put(self._slots, slot, len(prefix.ids), waiting.reused)
            self._running[slot] = Running(waiting, slot, cached, known[waiting.reused :])
            waiting.history = None

    def _step(self) -> Iterator[Row]:
        """One pass; yields the rows it finished."""
        groups: dict[SharedPrefix, list[Running]] = {}
        for running in self._running.values():
            groups.setdefault(running.prefix, []).append(running)
        order = [running for members in groups.values() for running in members]
        try:
            tokens = choose(self._logits(groups), [running.row for running in order])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._retreat(error)
            return
        for running, token in zip(order, tokens, strict=True):
            running.prefix.computed = running.fed = True
            running.cached += len(running.pending)
            running.pending = [token]
            if not running.row.add(token):
                self._leave(running)
                yield running.row
        if not self._queue:
            self._close_gaps()

    def _logits(self, groups: dict[SharedPrefix, list[Running]]) -> Tensor:
        """[rows, vocabulary]: the logits after the last token of each row, group by group."""
        sections = []
        for prefix, members in groups.items():
            if prefix.ids and prefix.states is None:
                prefix.states = States.empty(self._layers, len(prefix.ids))
            ids = prefix.ids if prefix.ids and not prefix.computed else None
            feeds = [Feed(running.slot, running.cached, running.pending) for running in members]
            sections.append(Section(prefix.states, len(prefix.ids), ids, feeds))
        return self._forward(sections)

    def _forward(self, sections: Sequence[Section]) -> Tensor:
        return forward(self._loaded.model, sections, self._slots, longest_run=self._longest_run)

    def _leave(self, running: Running) -> None:
        row, prefix = running.row, running.prefix
        if not isinstance(row.request.prompt, str):
            ids = (row.ids + row.new)[: len(prefix.ids) + running.cached]
            own = self._slots.read(running.slot, running.cached)
            self._conversations.keep(ids, prefix.states, own)
        del self._running[running.slot]
        heapq.heappush(self._free, running.slot)
        prefix.leave()

    # --- out of memory -----------------------------------------------------------------------

    def _retreat(self, error: BaseException) -> None:
        """Makes the next pass smaller; what rows have computed so far is kept.

        First fewer new rows at a time; when there are no new ones, half of the rows wait in the
        main memory and the cache shrinks.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows = sorted(self._running.values(), key=lambda running: (not running.fed, running.slot))
        if len(rows) == 1:
            raise no_room(error) from None
        new = [running for running in rows if not running.fed]
        if new:
            tokens = sum(len(running.pending) for running in rows)
            tokens += sum(len(prefix.ids) for prefix in {r.prefix for r in new if not r.prefix.computed})
            self._limits.fewer_tokens(tokens)
            self._put_back(new[len(new) // 2 :])
            return
        kept = self._limits.fewer_rows(len(rows))
        self._put_back(rows[kept:])
        self._resize(kept, self._slots.capacity)

    def _put_back(self, rows: Sequence[Running]) -> None:
        for running in reversed(rows):
            if running.cached:
                length = len(running.prefix.ids)
                states = self._slots.read(running.slot, running.cached).to_cpu()
                running.waiting.history = History(states, length, length + running.cached)
            del self._running[running.slot]
            heapq.heappush(self._free, running.slot)
            self._queue.appendleft(running.waiting)
