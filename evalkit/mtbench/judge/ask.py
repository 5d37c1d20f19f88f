"""Asking a service: up to `judge.concurrency` calls at once, each reply stored as it comes."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evalkit.core.errors import EvalkitError
from evalkit.core.progress import bar
from evalkit.core.words import t
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS, Budget
from evalkit.mtbench.judge.calls import JudgeCall, open_key
from evalkit.mtbench.judge.judges import Judge, open_service
from evalkit.mtbench.judge.store import CachedReply, JudgmentStore
from evalkit.services.ask_all import FAILURES_IN_A_ROW, NotYetError, ask_all
from evalkit.services.client import ApiClient, ServiceError
from evalkit.services.replies import Reply, chat_body

# Another process is making this judgment: seconds until the next look.
CLAIM_SECONDS = 0.05

OTHER_JUDGES = (
    "other judges: judge=gpt-4o-2024-08-06, judge=gpt-4.1-2025-04-14, judge=openai judge.model=NAME;\n"
    "         what they are worth beside gpt-4: python -m evalkit calibrate run=DIR judge=NAME;\n"
    "         kept judgments of gpt-4: python -m evalkit replay judgments=FILE"
)


@dataclass
class AskResult:
    """The requests made and the tokens they used, and the failed calls by their id."""

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
    async with client:
        with bar(t("judging"), len(calls)) as progress:
            asker = _Asker(client, judge, store, progress.advance)
            try:
                await ask_all(calls, asker.answer, concurrency=options.concurrency, on_failure=asker.failure)
            except ServiceError as error:
                raise _explained(error, judge) from None
    return asker.result


class _Asker:
    """Makes calls and stores their replies, within the judge's budget."""

    def __init__(
        self, client: ApiClient, judge: Judge, store: JudgmentStore, on_done: Callable[[], None]
    ) -> None:
        self.result = AskResult()
        self._client = client
        self._judge = judge
        self._store = store
        self._budget = Budget(judge.price, judge.config.max_cost)
        self._on_done = on_done

    async def answer(self, call: JudgeCall) -> Reply | None:
        """Makes the next request of a call; a preset that re-asks needs more than one.

        Raises:
            NotYetError: another process is making it, or it must be asked again.
        """
        key = open_key(call, self._store)
        reply: Reply | None = None
        if key is not None:
            if not self._store.claim(key):
                await asyncio.sleep(CLAIM_SECONDS)
                raise NotYetError
            try:
                # The process that held the claim before may have stored it.
                self._store.refresh()
                if key not in self._store:
                    async with self._budget.charge(call.messages, self._judge.max_output) as charge:
                        body = chat_body(self._judge.model, call.messages, self._judge.parameters)
                        reply = await self._client.request(
                            "/chat/completions", body, charge.lost, needs_text=True
                        )
                        charge.used = self._count(call, reply)
                    if reply.status == "api_error":
                        return reply
                    self._store.add(CachedReply.of(key, reply))
            finally:
                self._store.release(key)
            if open_key(call, self._store) is not None:
                raise NotYetError
        self._on_done()
        return reply

    def failure(self, call: JudgeCall, reply: Reply, service_is_down: bool) -> None:
        """Records a call that failed to its last attempt.

        Raises:
            EvalkitError: too many failed in a row.
        """
        self.result.failed[call.id] = reply
        if service_is_down:
            raise EvalkitError(
                f"{FAILURES_IN_A_ROW} judgments in a row failed: {reply.error}",
                fix="run the same command again when the service is back: what was judged is kept",
            )
        self._on_done()

    def _count(self, call: JudgeCall, reply: Reply) -> tuple[int, int]:
        used = (reply.input_tokens or 0, reply.output_tokens or 0)
        if reply.status == "ok" and reply.output_tokens is None:
            # A server that counts nothing: the worst case for the prompt, the usual answer.
            used = (sum(len(message.content) for message in call.messages), EXPLANATION_TOKENS)
        self.result.calls += 1
        self.result.input_tokens += used[0]
        self.result.output_tokens += used[1]
        return used


def _explained(error: ServiceError, judge: Judge) -> ServiceError:
    if error.reason == "request":
        fix = "judge.parameters.KEY=VALUE changes what is sent, null leaves a parameter out"
        return ServiceError("request", error.what, where=error.where, fix=fix)
    if error.reason != "model":
        return error
    retired = f"\n  note:  {judge.config.retired}" if judge.config.retired else ""
    return ServiceError("model", f"{error.what}{retired}", where=error.where, fix=OTHER_JUDGES)
