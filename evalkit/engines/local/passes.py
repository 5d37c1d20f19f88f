"""Packed forward passes: the cached keys and values of rows, and the tokens of one pass.

The cache holds one copy of each shared prefix and one slot for each running row. Rows may share only the
beginning of a prefix, and a prefix may begin with a part of another one, which is copied. A pass puts the
tokens of all rows into one sequence without padding: linear layers see a single sequence, and only
attention knows which token belongs to which row.
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Bytes of keys and values that are read in the time of one call of an attention kernel.
_CALL_BYTES = 4 << 20
# Most tokens that see different lengths of a prefix in one call, under a mask.
_MASKED = 64


class LayerShape(NamedTuple):
    """What one attention layer caches per token, where, and how far back it looks.

    Attributes:
        heads: key/value heads.
        key_dim: length of a key.
        value_dim: length of a value.
        window: a query sees this many positions, itself included; None: all.
        device: torch device.
        dtype: torch dtype.
    """

    heads: int
    key_dim: int
    value_dim: int
    window: int | None
    device: torch.device
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes one token takes in this layer's cache."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass
class States:
    """Keys and values of consecutive positions of one sequence, layer by layer.

    Attributes:
        keys: per layer [heads, positions, key_dim].
        values: per layer [heads, positions, value_dim].
    """

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, layers: Sequence[LayerShape], length: int) -> "States":
        """States of `length` positions, not initialised."""
        return cls(
            [torch.empty(x.heads, length, x.key_dim, device=x.device, dtype=x.dtype) for x in layers],
            [torch.empty(x.heads, length, x.value_dim, device=x.device, dtype=x.dtype) for x in layers],
        )

    @property
    def bytes(self) -> int:
        """Bytes all states take."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def followed_by(self, other: "States") -> "States":
        """The states of this sequence's positions and of those after them, copied together."""
        return States(
            [torch.cat(pair, dim=1) for pair in zip(self.keys, other.keys, strict=True)],
            [torch.cat(pair, dim=1) for pair in zip(self.values, other.values, strict=True)],
        )

    def first(self, length: int) -> "States":
        """The first positions, not copied."""
        return States([key[:, :length] for key in self.keys], [value[:, :length] for value in self.values])

    def to_cpu(self) -> "States":
        """A copy in main memory."""
        return States([key.cpu() for key in self.keys], [value.cpu() for value in self.values])


class RowSlots:
    """The preallocated cache of the running rows: each slot holds one row's own tokens.

    Attributes:
        keys: per layer [rows, heads, capacity, key_dim].
        values: per layer [rows, heads, capacity, value_dim].
        call_tokens: a call of an attention kernel takes as long as reading this many tokens of a layer.
    """

    def __init__(self, layers: Sequence[LayerShape], rows: int, capacity: int) -> None:
        self._layers = layers
        self.rows = rows
        self.capacity = capacity
        self.call_tokens = _CALL_BYTES // max(layer.token_bytes for layer in layers)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for layer in layers:
            self.keys.append(self._room(layer, layer.key_dim))
            self.values.append(self._room(layer, layer.value_dim))

    def _room(self, layer: LayerShape, dim: int) -> Tensor:
        return _zeros((self.rows, layer.heads, self.capacity, dim), layer)

    def resize(self, rows: int, capacity: int, kept: int) -> None:
        """New numbers of slots and of tokens per slot; the first `kept` slots keep their content.

        One layer at a time, so that only one layer is in memory twice.
        """
        self.rows = rows
        length = min(capacity, self.capacity)
        self.capacity = capacity
        for index, layer in enumerate(self._layers):
            for tensors, dim in ((self.keys, layer.key_dim), (self.values, layer.value_dim)):
                room = self._room(layer, dim)
                room[:kept, :, :length] = tensors[index][:kept, :, :length]
                tensors[index] = room

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of one slot to another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def read(self, slot: int, length: int) -> States:
        """A copy of the first `length` tokens of a slot."""
        return States(
            [tensor[slot, :, :length].clone() for tensor in self.keys],
            [tensor[slot, :, :length].clone() for tensor in self.values],
        )

    def write(self, slot: int, states: States, first: int, last: int) -> None:
        """Puts positions `first` to `last` (exclusive) of `states` at the beginning of a slot."""
        for tensors, sources in ((self.keys, states.keys), (self.values, states.values)):
            for tensor, source in zip(tensors, sources, strict=True):
                tensor[slot, :, : last - first] = source[:, first:last]


def _zeros(shape: tuple[int, ...], layer: LayerShape) -> Tensor:
    # Rows of one run are read as far as the longest. What lies beyond a row's end gets weight 0, and
    # 0 times NaN would be NaN.
    if layer.device.type != "cpu":
        return torch.zeros(shape, device=layer.device, dtype=layer.dtype)
    # Pages of zeros take memory only once they are written to; torch writes them at once.
    size = math.prod(shape) * layer.dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=layer.dtype, count=math.prod(shape)).view(
        shape
    )


class Feed(NamedTuple):
    """The tokens of one row in this pass: `ids` follow the `cached` tokens in slot `slot`."""

    slot: int
    cached: int
    ids: Sequence[int]


class Section(NamedTuple):
    """Rows that share the first `length` positions of a prefix.

    Where this pass is to compute the prefix up to there, `ids` are its last tokens; those before them are in
    `parent`.
    """

    prefix: States | None
    length: int
    ids: Sequence[int] | None
    feeds: Sequence[Feed]
    parent: States | None = None


class Span(NamedTuple):
    """A row's tokens in the pass: `size` from index `first`; `cached` precede them in the slot."""

    slot: int
    cached: int
    first: int
    size: int


class SharedSpan(NamedTuple):
    """Tokens `first` to `last` (exclusive) of the pass, which see the first `length` positions of a prefix.

    `lengths` says how many of them each token sees where not all see the same.
    """

    prefix: States
    length: int
    first: int
    last: int
    lengths: Sequence[int] | None = None

    def followed_by(self, other: "SharedSpan") -> "SharedSpan":
        """Both spans, of which the other one comes next, in one."""
        lengths = [length for one in (self, other) for length in one.lengths or [one.length] * one.tokens]
        return SharedSpan(self.prefix, max(lengths), self.first, other.last, lengths)

    @property
    def tokens(self) -> int:
        """How many tokens."""
        return self.last - self.first


class FreshSpan(NamedTuple):
    """A prefix that is computed in this pass from position `begin` on: `size` tokens from index `first`.

    The positions before are those of `parent`.
    """

    prefix: States
    parent: States | None
    begin: int
    first: int
    size: int


class NeighbourRows(NamedTuple):
    """Rows with one token each whose slots are neighbours: `spans[begin:end]` of the single ones."""

    begin: int
    end: int
    slot: int
    longest: int
    shortest: int


@dataclass
class Pass:
    """What attention must know about the tokens of one forward pass.

    Attributes:
        slots: the rows' cache.
        ids: the tokens.
        positions: the position of each in its own sequence.
        last: index of the last token of each row, in the order of the sections and their feeds.
        fresh: prefixes computed in this pass.
        shared: which tokens see which prefix.
        several: rows that feed more than one token.
        single: rows that feed one token, by slot.
        runs: `single` cut into runs that attention can do in one call.
        scratch: masks and index tensors, kept for all layers of the pass.
    """

    slots: RowSlots
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    fresh: list[FreshSpan] = field(default_factory=list)
    shared: list[SharedSpan] = field(default_factory=list)
    several: list[Span] = field(default_factory=list)
    single: list[Span] = field(default_factory=list)
    runs: list[NeighbourRows] = field(default_factory=list)
    scratch: dict[Any, Any] = field(default_factory=dict)


def pack(sections: Sequence[Section], slots: RowSlots) -> Pass:
    """Lays out the sections' tokens for one forward pass."""
    work = Pass(slots)
    for section in sections:
        if section.ids is not None:
            assert section.prefix is not None
            first, size = len(work.ids), len(section.ids)
            begin = section.length - size
            work.fresh.append(FreshSpan(section.prefix, section.parent, begin, first, size))
            work.ids.extend(section.ids)
            work.positions.extend(range(begin, section.length))
            if section.parent is not None:
                _see(work, SharedSpan(section.parent, begin, first, first + size))
        first = len(work.ids)
        for feed in section.feeds:
            span = Span(feed.slot, feed.cached, len(work.ids), len(feed.ids))
            (work.single if span.size == 1 else work.several).append(span)
            work.ids.extend(feed.ids)
            begin = section.length + feed.cached
            work.positions.extend(range(begin, begin + span.size))
            work.last.append(len(work.ids) - 1)
        if section.prefix is not None and section.feeds:
            _see(work, SharedSpan(section.prefix, section.length, first, len(work.ids)))
    work.single.sort()
    work.runs = _runs(work.single, slots.call_tokens)
    return work


def _see(work: Pass, span: SharedSpan) -> None:
    """Adds tokens that see a prefix; few tokens that see different lengths of it become one span."""
    before = work.shared[-1] if work.shared else None
    if (
        before is not None
        and before.prefix is span.prefix
        and before.last == span.first
        and before.tokens + span.tokens <= _MASKED
    ):
        work.shared[-1] = before.followed_by(span)
    else:
        work.shared.append(span)


def _runs(single: Sequence[Span], call_tokens: int) -> list[NeighbourRows]:
    """Cuts rows into runs of neighbouring slots.

    Every row of a run reads as far as its longest one. It is cut where that is half as much again as the
    rows need, and more than a call costs.
    """
    runs: list[NeighbourRows] = []
    begin, total, longest, shortest = 0, 0, 0, 0
    for index, span in enumerate(single):
        length = span.cached + 1
        rows = index - begin
        neighbours = rows > 0 and span.slot == single[index - 1].slot + 1
        needed = total + length
        wasteful = max(longest, length) * (rows + 1) > needed + max(needed // 2, call_tokens)
        if rows and (not neighbours or wasteful):
            runs.append(NeighbourRows(begin, index, single[begin].slot, longest, shortest))
            begin, total, longest, shortest = index, 0, 0, length
        total += length
        longest, shortest = max(longest, length), min(shortest or length, length)
    if single:
        runs.append(NeighbourRows(begin, len(single), single[begin].slot, longest, shortest))
    return runs
