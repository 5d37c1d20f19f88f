"""Asks -> answers in the store, call by call: the first one alone, then as many at once as go."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from evalkit.core.errors import EvalkitError
from evalkit.core.types import Message
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS, Budget, most_tokens
from evalkit.mtbench.judge.calls import Ask, open_key
from evalkit.mtbench.judge.store import JudgmentStore, Stored
from evalkit.services.ask_all import FAILURES_IN_A_ROW, NotYetError, ask_all
from evalkit.services.client import OnLost
from evalkit.services.replies import Reply

# Another process makes this judgment: how long until the next look.
CLAIM_SECONDS = 0.05

Send = Callable[[Sequence[Message], OnLost], Awaitable[Reply]]


@dataclass
class Asked:
    """What came of asking: calls made and tokens used by them, and the asks that failed."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    failed: dict[str, Reply] = field(default_factory=dict)


class Asker:
    """Asks what is not in the store yet.

    Args:
        send: sends the messages of one ask to the judge; tells of answers that were lost.
        store: where answers are looked up and kept.
        budget: what the calls may cost.
        most_output: the tokens an answer may have, for the budget's worst case.
        concurrency: asks at once at most.
        on_answer: called after each ask.
    """

    def __init__(
        self,
        send: Send,
        store: JudgmentStore,
        budget: Budget,
        *,
        most_output: int,
        concurrency: int,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.asked = Asked()
        self._send = send
        self._store = store
        self._budget = budget
        self._most_output = most_output
        self._concurrency = concurrency
        self._on_answer = on_answer

    async def run(self, asks: Sequence[Ask]) -> Asked:
        """Asks them all; an ask that fails to its last attempt is in `failed` and not in the store.

        Raises:
            ServiceError: the service refuses every call. Nothing is asked after that; what was
                answered, also by calls then under way, is kept.
            CostLimitError: the next call could cost too much; likewise.
            EvalkitError: too many failures in a row, or no space to write; likewise.
        """
        await ask_all(asks, self._answer, concurrency=self._concurrency, on_failure=self._failed)
        return self.asked

    async def _answer(self, ask: Ask) -> Reply | None:
        """Makes the next call of an ask; a preset that re-asks needs more than one."""
        key = open_key(ask, self._store)
        reply: Reply | None = None
        if key is not None:
            if not self._store.claim(key):
                await asyncio.sleep(CLAIM_SECONDS)
                raise NotYetError
            try:
                # Whoever held the claim before may have answered it.
                self._store.refresh()
                if key not in self._store:
                    reply = await self._call(ask)
                    if reply.status == "api_error":
                        return reply
                    self._store.add(Stored.of(key, reply))
            finally:
                self._store.release(key)
            if open_key(ask, self._store) is not None:
                raise NotYetError
        self._on_answer()
        return reply

    async def _call(self, ask: Ask) -> Reply:
        reserved = await self._budget.reserve(ask.messages, self._most_output)
        used = (0.0, 0.0)

        async def lost(again: bool) -> None:
            # It may have been paid for all the same: the worst case is taken for spent.
            nonlocal reserved
            self._budget.settle(reserved, most_tokens(ask.messages), self._most_output)
            reserved = None
            if again:
                reserved = await self._budget.reserve(ask.messages, self._most_output)

        try:
            reply = await self._send(ask.messages, lost)
            self.asked.calls += 1
            used = (reply.input_tokens or 0, reply.output_tokens or 0)
            if reply.status == "ok" and reply.output_tokens is None:
                # A server that counts nothing: the worst case for the prompt, the usual answer.
                used = (sum(len(message.content) for message in ask.messages), EXPLANATION_TOKENS)
        finally:
            self._budget.settle(reserved, *used)
        self.asked.input_tokens += int(used[0])
        self.asked.output_tokens += int(used[1])
        return reply

    def _failed(self, ask: Ask, reply: Reply, down: bool) -> None:
        self.asked.failed[ask.id] = reply
        if down:
            raise EvalkitError(
                f"{FAILURES_IN_A_ROW} judgments in a row failed: {reply.error}",
                fix="run the same command again when the service is back: what was judged is kept",
            )
        self._on_answer()
