"""Asking a service: the first call alone, then up to `judge.concurrency` at once, each reply stored."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evalkit.core.errors import EvalkitError
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS, Budget
from evalkit.mtbench.judge.calls import JudgeCall, open_key
from evalkit.mtbench.judge.counter import Counter
from evalkit.mtbench.judge.judges import Judge, open_service
from evalkit.mtbench.judge.store import CachedReply, JudgmentStore
from evalkit.services.client import ApiClient, ServiceError
from evalkit.services.replies import Reply

# Another process is making this judgment: seconds until the next look.
CLAIM_SECONDS = 0.05
# After this many failed judgments in a row the service is down.
FAILURES_IN_A_ROW = 8

OTHER_JUDGES = (
    "other judges: judge=gpt-4o-2024-08-06, judge=gpt-4.1-2025-04-14, judge=openai judge.model=NAME;\n"
    "         what they are worth beside gpt-4: python -m evalkit calibrate run=DIR judge=NAME;\n"
    "         kept judgments of gpt-4: python -m evalkit replay judgments=FILE"
)


@dataclass
class AskResult:
    """The calls made and the tokens they used, and the calls that failed by their id."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    failed: dict[str, Reply] = field(default_factory=dict)


async def ask_online(judge: Judge, calls: Sequence[JudgeCall], store: JudgmentStore) -> AskResult:
    """Makes all calls; one that fails to its last attempt is in `failed` and not in the store.

    Raises:
        ServiceError: the service refuses every call. No call is made after that; the replies to
            calls already under way are stored.
        CostLimitError: the next call could cost too much; likewise.
        EvalkitError: too many failures in a row, or no space to write; likewise.
    """
    options = judge.config
    client = ApiClient(
        open_service(judge),
        concurrency=options.concurrency,
        retries=options.retries,
        max_wait=options.max_wait,
    )
    waiting = deque(calls)
    async with client:
        with Counter("judging", len(calls)) as progress:
            worker = _Worker(client, judge, store, progress.count)
            # A permanent error shows in the first call, before others are under way and paid for.
            await worker.work(deque([waiting.popleft()]))
            concurrency = min(options.concurrency, len(waiting))
            await asyncio.gather(*(worker.work(waiting) for _ in range(concurrency)))
    if worker.stop is not None:
        raise _explained(worker.stop, judge)
    return worker.result


class _Worker:
    """What the concurrent workers share; `stop` is the error that ends them all."""

    def __init__(
        self, client: ApiClient, judge: Judge, store: JudgmentStore, on_done: Callable[[], None]
    ) -> None:
        self.result = AskResult()
        self.stop: EvalkitError | None = None
        self._client = client
        self._judge = judge
        self._store = store
        self._budget = Budget(judge.price, judge.config.max_cost)
        self._on_done = on_done
        self._failures_in_a_row = 0
        self._answered = False

    async def work(self, waiting: deque[JudgeCall]) -> None:
        """Takes calls from `waiting` until none is left or the judging stops."""
        while waiting and self.stop is None:
            call = waiting.popleft()
            try:
                key = open_key(call, self._store)
                if key is None:
                    self._on_done()
                    continue
                if not self._store.claim(key):
                    # Another process is making this judgment: the others first.
                    waiting.append(call)
                    await asyncio.sleep(CLAIM_SECONDS)
                    continue
                try:
                    # The process that held the claim before may have stored it.
                    self._store.refresh()
                    if key not in self._store:
                        async with self._budget.charge(call.messages, self._judge.max_output) as charge:
                            reply = await self._client.chat(
                                self._judge.model,
                                call.messages,
                                self._judge.parameters,
                                charge.lost,
                                needs_text=True,
                            )
                            charge.used = self._count(call, reply)
                        if reply.status == "api_error":
                            self._fail(call, reply)
                            continue
                        self._store.add(CachedReply.of(key, reply))
                        self._failures_in_a_row = 0
                        self._answered = True
                finally:
                    self._store.release(key)
                # It is done, or its preset asks again.
                waiting.appendleft(call)
            except EvalkitError as error:
                # Where others were answered, the service refuses this one request only.
                if isinstance(error, ServiceError) and error.reason == "request" and self._answered:
                    self._fail(call, Reply("api_error", error=error.what))
                else:
                    self.stop = self.stop or error

    def _count(self, call: JudgeCall, reply: Reply) -> tuple[int, int]:
        used = (reply.input_tokens or 0, reply.output_tokens or 0)
        if reply.status == "ok" and reply.output_tokens is None:
            # A server that counts nothing: the worst case for the prompt, the usual answer.
            used = (sum(len(message.content) for message in call.messages), EXPLANATION_TOKENS)
        self.result.calls += 1
        self.result.input_tokens += used[0]
        self.result.output_tokens += used[1]
        return used

    def _fail(self, call: JudgeCall, reply: Reply) -> None:
        self.result.failed[call.id] = reply
        self._on_done()
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            self.stop = self.stop or EvalkitError(
                f"{FAILURES_IN_A_ROW} judgments in a row failed: {reply.error}",
                fix="run the same command again when the service is back: what was judged is kept",
            )


def _explained(error: EvalkitError, judge: Judge) -> EvalkitError:
    if not isinstance(error, ServiceError) or error.reason not in ("request", "model"):
        return error
    if error.reason == "request":
        fix = "judge.parameters.KEY=VALUE changes what is sent, null leaves a parameter out"
        return ServiceError("request", error.what, where=error.where, fix=fix)
    retired = f"\n  note:  {judge.config.retired}" if judge.config.retired else ""
    return ServiceError("model", f"{error.what}{retired}", where=error.where, fix=OTHER_JUDGES)
