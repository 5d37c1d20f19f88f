"""What is kept of rows for later: of a finished chat for its next turn, of a row that must wait."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalkit.engines.local.cache import RowSlots, States
from evalkit.engines.local.rows import Row

log = logging.getLogger(__name__)


@dataclass
class History:
    """The states of a sequence from position `first` up to `length` (exclusive), off the device."""

    states: States
    first: int
    length: int

    def put(self, slots: RowSlots, slot: int, begin: int, end: int) -> None:
        """Writes the states of positions `begin` to `end` (exclusive) at the head of a slot."""
        slots.write(slot, self.states, begin - self.first, end - self.first)


class Conversations:
    """Finished chats, so that the next turn computes only what is new.

    A turn may be sent long after the one before it, so states wait in the main memory; the oldest
    go first when they take more than `most_bytes`.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: list[tuple[npt.NDArray[np.int64], States]] = []

    def keep(self, ids: Sequence[int], prefix: States | None, own: States) -> None:
        """Keeps the states of a finished chat.

        Args:
            ids: tokens whose states there are.
            prefix: states of the first of them, where shared.
            own: states of the others.
        """
        states = own if prefix is None else prefix.followed_by(own)
        self._kept.append((np.asarray(ids, dtype=np.int64), states.to_cpu()))
        while self._kept and sum(states.bytes for _, states in self._kept) > self._most_bytes:
            self._kept.pop(0)

    def take(self, row: Row) -> History | None:
        """The kept states that cover most of a chat's prompt; they are handed over, not copied."""
        if isinstance(row.request.prompt, str) or not self._kept:
            return None
        prompt = np.asarray(row.ids, dtype=np.int64)
        lengths = [_common(ids, prompt) for ids, _ in self._kept]
        best = max(range(len(lengths)), key=lengths.__getitem__)
        if not lengths[best]:
            return None
        _, states = self._kept.pop(best)
        return History(states, 0, lengths[best])


def _common(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
