"""Requests handed out in chunks until each has its completion."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from evalkit.core.types import Completion, Request

# Smaller chunks are not worth a call.
_SMALLEST_CHUNK = 8
# What a dead worker leaves is split into this many parts, so that a fatal request is soon alone.
_PARTS = 4
# After this many deaths a request that was alone with its worker is the cause.
_DEATHS_OF_A_REQUEST = 3


class WorkList:
    """Requests until each has its completion.

    The longest completions come first, so that the end is short; within one length requests are
    sorted by prompt, so that those with a common prefix are neighbours. Chunks become smaller
    towards the end, which balances the workers.

    Attributes:
        given_up: requests that every worker died of, with the reason of the last death.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._fresh = sorted(requests, key=lambda one: (-one.max_new_tokens, _text(one)), reverse=True)
        self._again: deque[list[Request]] = deque()
        self._open = {request.id for request in self._fresh}
        self._deaths: Counter[str] = Counter()
        self.given_up: list[tuple[Request, str]] = []

    def __len__(self) -> int:
        """Requests without a completion, those in work included."""
        return len(self._open)

    def take(self, workers: int) -> list[Request]:
        """The next chunk for one of so many workers; empty when everything is handed out."""
        if self._fresh:
            size = max(_SMALLEST_CHUNK, -(-len(self._fresh) // (2 * workers)))
            return [self._fresh.pop() for _ in range(min(size, len(self._fresh)))]
        while self._again:
            # A dead worker's last completions may have arrived since.
            if chunk := self._unanswered(self._again.popleft()):
                return chunk
        return []

    def done(self, completion: Completion) -> bool:
        """Records a completion; False when its request has had one before."""
        if completion.id not in self._open:
            return False
        self._open.remove(completion.id)
        return True

    def failed(self, chunk: Sequence[Request], reason: str) -> None:
        """The worker of a chunk died: what it has not answered is handed out again, after the rest."""
        left = self._unanswered(chunk)
        self._deaths.update(request.id for request in left)
        if len(left) == 1 and self._deaths[left[0].id] >= _DEATHS_OF_A_REQUEST:
            self._open.remove(left[0].id)
            self.given_up.append((left[0], reason))
            return
        size = max(1, -(-len(left) // _PARTS))
        self._again.extend(left[begin : begin + size] for begin in range(0, len(left), size))

    def _unanswered(self, chunk: Sequence[Request]) -> list[Request]:
        return [request for request in chunk if request.id in self._open]


def _text(request: Request) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return "\n".join(message.content for message in request.prompt)
