"""The order of work: which requests share a prefix, which wait, which run in which slot."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from evalkit.engines.local.cache import States
from evalkit.engines.local.conversations import Conversations, History
from evalkit.engines.local.prefixes import shared_prefixes
from evalkit.engines.local.rows import Row


@dataclass(eq=False)
class SharedPrefix:
    """The tokens a group of prompts begins with.

    Attributes:
        ids: the tokens.
        rows: how many rows still need it.
        states: what attention needs of it, once a pass has been given the tokens.
        computed: whether that pass is done.
    """

    ids: Sequence[int]
    rows: int
    states: States | None = None
    computed: bool = False

    def leave(self) -> None:
        """One row less needs the prefix; the last one frees its states."""
        self.rows -= 1
        if not self.rows:
            self.states = None


@dataclass(eq=False)
class Waiting:
    """A row without a slot; `history` is what was computed of it before."""

    row: Row
    prefix: SharedPrefix
    history: History | None = None

    @property
    def places(self) -> int:
        """Tokens its slot must hold: all but those of the prefix and the last one."""
        return len(self.row.ids) - len(self.prefix.ids) + self.row.request.max_new_tokens - 1

    @property
    def reused(self) -> int:
        """Tokens that need not be computed: those of the prefix, or more when there is a history."""
        known = len(self.row.ids) + len(self.row.new)
        covered = self.history.length if self.history else 0
        return max(len(self.prefix.ids), min(covered, known - 1))


@dataclass(eq=False)
class Running:
    """A row in a slot: `cached` of its own tokens lie there, `pending` go into the next pass."""

    waiting: Waiting
    slot: int
    cached: int
    pending: list[int]
    fed: bool = field(default=False)

    @property
    def row(self) -> Row:
        """The row itself."""
        return self.waiting.row

    @property
    def prefix(self) -> SharedPrefix:
        """The prefix it shares."""
        return self.waiting.prefix


def in_order(rows: Sequence[Row], conversations: Conversations) -> list[Waiting]:
    """The rows as they should start.

    Groups of one prefix stay together, so that few prefixes are held at a time; those with the
    longest completions come first, so that short ones fill the places they leave at the end.
    """
    groups = []
    for group in shared_prefixes([row.ids for row in rows]):
        members = [rows[index] for index in group.members]
        prefix = SharedPrefix(members[0].ids[: group.length], len(members))
        waiting = [Waiting(row, prefix, conversations.take(row)) for row in members]
        groups.append(sorted(waiting, key=lambda one: -one.places))
    groups.sort(key=lambda group: -max(one.row.request.max_new_tokens for one in group))
    return [waiting for group in groups for waiting in group]
