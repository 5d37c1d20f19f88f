"""One forward pass over many rows: their tokens side by side in one sequence, without padding.

Linear layers see a single sequence of all tokens; only attention knows which token belongs to whom.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from evalkit.engines.local.cache import RowSlots, States


class Feed(NamedTuple):
    """Tokens one row adds in this pass: `ids` follow `cached` tokens that lie in slot `slot`."""

    slot: int
    cached: int
    ids: Sequence[int]


class Section(NamedTuple):
    """Rows that share a prefix. `ids` are the prefix's tokens when this pass is to compute it."""

    prefix: States | None
    length: int
    ids: Sequence[int] | None
    feeds: Sequence[Feed]


class Span(NamedTuple):
    """A row's tokens in the pass: `size` from index `first`; `cached` precede them in the slot."""

    slot: int
    cached: int
    first: int
    size: int


class SharedSpan(NamedTuple):
    """Tokens `first` to `last` (exclusive) of the pass, which all see the whole prefix."""

    prefix: States
    length: int
    first: int
    last: int


class FreshSpan(NamedTuple):
    """A prefix that is computed in this pass: `length` tokens from index `first`."""

    prefix: States
    first: int
    length: int


class Run(NamedTuple):
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
    runs: list[Run] = field(default_factory=list)
    scratch: dict[Any, Any] = field(default_factory=dict)


def pack(sections: Sequence[Section], slots: RowSlots, *, longest_run: int) -> Pass:
    """Lays the sections' tokens out for one forward pass; `longest_run` bounds a run's rows."""
    work = Pass(slots)
    for section in sections:
        if section.ids is not None:
            assert section.prefix is not None
            work.fresh.append(FreshSpan(section.prefix, len(work.ids), section.length))
            work.ids.extend(section.ids)
            work.positions.extend(range(section.length))
        first = len(work.ids)
        for feed in section.feeds:
            span = Span(feed.slot, feed.cached, len(work.ids), len(feed.ids))
            (work.single if span.size == 1 else work.several).append(span)
            work.ids.extend(feed.ids)
            begin = section.length + feed.cached
            work.positions.extend(range(begin, begin + span.size))
            work.last.append(len(work.ids) - 1)
        if section.prefix is not None and section.feeds:
            work.shared.append(SharedSpan(section.prefix, section.length, first, len(work.ids)))
    work.single.sort()
    work.runs = _runs(work.single, longest_run)
    return work


def _runs(single: Sequence[Span], longest_run: int) -> list[Run]:
    """Cuts rows into runs of neighbouring slots whose lengths differ little."""
    runs: list[Run] = []
    begin, total, longest, shortest = 0, 0, 0, 0
    for index, span in enumerate(single):
        length = span.cached + 1
        rows = index - begin
        neighbours = rows > 0 and span.slot == single[index - 1].slot + 1
        # Every row of a run reads as far as its longest one; half as much again is the limit.
        wasteful = max(longest, length) * (rows + 1) > 1.5 * (total + length)
        if rows and (not neighbours or wasteful or rows >= longest_run):
            runs.append(Run(begin, index, single[begin].slot, longest, shortest))
            begin, total, longest, shortest = index, 0, 0, length
        total += length
        longest, shortest = max(longest, length), min(shortest or length, length)
    if single:
        runs.append(Run(begin, len(single), single[begin].slot, longest, shortest))
    return runs
