"""What is still to be answered, handed out in chunks; what a dead worker leaves goes to another."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from evalkit.core.types import Completion, Request

# A chunk is worth its hand-over and the prefixes that are computed for it once more.
_LEAST = 8
# What a dead worker leaves comes back in this many parts, so that the guilty request is soon alone.
_PARTS = 4
# A request that is alone with its worker when this is its so-manieth death in a row is the cause.
_MOST_DEATHS = 3


class Condemned(NamedTuple):
    """A request that nobody can answer: every worker that tries dies, the last one for `reason`."""

    request: Request
    reason: str


class WorkList:
    """Requests until each has its completion.

    The longest completions come first, so that the end is short. Within one length requests go by
    the text of their prompts: those that share a prefix are neighbours, whatever the tokenizer
    makes of them, and the driver needs none. The first chunks are large, the later ones smaller: a
    prefix is computed by few workers, and the end is balanced also for a worker that comes late.

    Attributes:
        condemned: requests given up.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._fresh = sorted(requests, key=lambda one: (-one.max_new_tokens, _text(one)))
        self._next = 0
        self._shared = [_common(_text(one), _text(other)) for one, other in pairwise(self._fresh)]
        self._again: deque[list[Request]] = deque()
        self._open = {request.id for request in self._fresh}
        self._deaths: Counter[str] = Counter()
        self.condemned: list[Condemned] = []

    def __len__(self) -> int:
        """Requests without a completion, those that are being worked on included."""
        return len(self._open)

    def take(self, workers: int) -> list[Request]:
        """The next chunk when there are so many workers; empty when everything is handed out."""
        if self._next < len(self._fresh):
            begin, self._next = self._next, self._end(workers)
            return self._fresh[begin : self._next]
        while self._again:
            if chunk := self._unanswered(self._again.popleft()):
                return chunk
        return []

    def done(self, completion: Completion) -> bool:
        """Takes note of a completion; False when its request has had one before."""
        if completion.id not in self._open:
            return False
        self._open.remove(completion.id)
        return True

    def is_open(self, chunk: Iterable[Request]) -> bool:
        """Whether any of these requests has no completion yet."""
        return any(request.id in self._open for request in chunk)

    def failed(self, chunk: Sequence[Request], reason: str) -> None:
        """The worker of a chunk died: what it has not answered will be handed out again.

        It comes after everything else: a request that kills its workers must keep nobody waiting.
        """
        left = self._unanswered(chunk)
        self._deaths.update(request.id for request in left)
        if len(left) == 1 and self._deaths[left[0].id] >= _MOST_DEATHS:
            self._open.remove(left[0].id)
            self.condemned.append(Condemned(left[0], reason))
            return
        size = max(1, -(-len(left) // _PARTS))
        self._again.extend(left[begin : begin + size] for begin in range(0, len(left), size))

    def _unanswered(self, chunk: Sequence[Request]) -> list[Request]:
        return [request for request in chunk if request.id in self._open]

    def _end(self, workers: int) -> int:
        """Where the next chunk ends: near its size, between neighbours that share least."""
        total = len(self._fresh)
        size = max(_LEAST, -(-(total - self._next) // (2 * workers)))
        wanted = self._next + size
        if wanted + _LEAST // 2 >= total:
            return total
        places = range(wanted - size // 4, min(wanted + size // 4, total - 1) + 1)
        return min(places, key=lambda end: (self._shared[end - 1], abs(end - wanted)))


def _text(request: Request) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return "\n".join(message.content for message in request.prompt)


def _common(one: str, other: str) -> int:
    """Characters two texts begin with alike, by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
