"""How many calls run at once: fewer when the service says so, more again while it answers."""

import asyncio
from collections import deque
from types import TracebackType


class AdaptiveLimit:
    """At most so many calls at once: halved by a rate limit, raised again by success.

    After a rate limit nothing starts until the pause the service asked for is over.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.current = float(most)
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._paused_until = 0.0
        self._lowered = 0.0

    async def __aenter__(self) -> float:
        """Waits for a place; returns the time at which the call may start."""
        loop = asyncio.get_running_loop()
        if self._waiting or not self._has_place():
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            self._wake_later()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.running -= 1
                    self._wake()
                raise
        else:
            self.running += 1
        return loop.time()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.running -= 1
        self._wake()

    def succeeded(self) -> None:
        """Takes note of an answered call: one more place after a whole round of them."""
        self.current = min(float(self.most), self.current + 1 / self.current)

    def slow_down(self, started: float, pause: float) -> None:
        """Takes note of a rate limit met by the call that `started` then."""
        now = asyncio.get_running_loop().time()
        # Calls of one burst are refused together: they count as one sign.
        if started >= self._lowered:
            self.current = max(1.0, self.current / 2)
            self._lowered = now
        self._paused_until = max(self._paused_until, now + pause)

    def _has_place(self) -> bool:
        paused = asyncio.get_running_loop().time() < self._paused_until
        return not paused and self.running < int(self.current)

    def _wake(self) -> None:
        while self._waiting and self._has_place():
            turn = self._waiting.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)
        self._wake_later()

    def _wake_later(self) -> None:
        loop = asyncio.get_running_loop()
        if self._waiting and loop.time() < self._paused_until:
            loop.call_at(self._paused_until, self._wake)
