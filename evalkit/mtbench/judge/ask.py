"""Asking a judge: what the store does not have is asked online, by a batch, or of a local model."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit.core.config import BatchConfig, JudgeKind, JudgeMode
from evalkit.core.errors import EvalkitError
from evalkit.core.progress import bar
from evalkit.core.words import t
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS, Budget, token_counter
from evalkit.mtbench.judge.calls import Asked, JudgeCall, JudgeReplies, open_key, replies_to, unanswered
from evalkit.mtbench.judge.judges import Judge, open_service
from evalkit.mtbench.judge.store import CLAIM_SECONDS, CachedReply, JudgmentStore
from evalkit.services.ask_all import FAILURES_IN_A_ROW, NotYetError, ask_all
from evalkit.services.client import ApiClient, ServiceError
from evalkit.services.replies import Reply, chat_body

OTHER_JUDGES = (
    "other judges: judge=gpt-4o-2024-08-06, judge=gpt-4.1-2025-04-14, judge=openai judge.model=NAME;\n"
    "         how they compare with gpt-4: evalkit calibrate run=DIR judge=NAME;\n"
    "         kept judgments of gpt-4: evalkit replay judgments=FILE"
)


@dataclass(frozen=True)
class JudgingEstimate:
    """How many calls are still to be made, and about what they cost; `dollars` None: no price is known."""

    wanted: int
    calls: int
    input_tokens: int
    output_tokens: int
    counted_by: str
    dollars: float | None


def estimate(
    judge: Judge, calls: Sequence[JudgeCall], mode: JudgeMode, kept: Sequence[CachedReply] = ()
) -> JudgingEstimate:
    """What `ask_judge` would call now, without calling."""
    with judge.open_store(kept) as store:
        waiting = unanswered(calls, store)
    counter = token_counter(judge.config.model or judge.model)
    tokens = sum(counter.prompt(call.messages) for call in waiting)
    output = EXPLANATION_TOKENS * len(waiting)
    price = judge.price_in(mode)
    return JudgingEstimate(
        wanted=len(calls),
        calls=len(waiting),
        input_tokens=round(tokens),
        output_tokens=output,
        counted_by=counter.how,
        dollars=price.of(tokens, output) if price else None,
    )


def ask_judge(
    judge: Judge,
    calls: Sequence[JudgeCall],
    folder: Path,
    *,
    say: Callable[[str], None],
    batch: BatchConfig | None = None,
    kept: Sequence[CachedReply] = (),
) -> JudgeReplies | None:
    """The replies to `calls`: from the store, from `kept`, and by asking; None while a batch is under way.

    Args:
        judge: who is asked.
        calls: what is asked.
        folder: batch files go below it.
        say: called with one line of progress.
        batch: the options of mode=batch; None: call by call.
        kept: replies that the run folder holds; a run moved from another machine brings them along.

    Raises:
        EvalkitError: the service refused, the budget is spent, or the disk is full; what was judged
            is in the store.
    """
    with judge.open_store(kept) as store:
        waiting = unanswered(calls, store)
        text = "judge {judge}: {kept} judgments are kept, {n} to make"
        say(t(text, judge=judge.label, kept=len(calls) - len(waiting), n=len(waiting)))
        asked: Asked | None = Asked()
        if waiting and batch is not None:
            from evalkit.mtbench.judge.batch import ask_by_batch

            asked = ask_by_batch(judge, batch, waiting, store, folder, say)
        elif waiting and judge.config.kind is JudgeKind.local:
            from evalkit.mtbench.judge.local import ask_locally

            asked = ask_locally(judge, waiting, store)
        elif waiting:
            asked = asyncio.run(ask_online(judge, waiting, store))
        return None if asked is None else replies_to(calls, store, asked)


async def ask_online(judge: Judge, calls: Sequence[JudgeCall], store: JudgmentStore) -> Asked:
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
    return asker.asked


class _Asker:
    """Makes calls and stores their replies, within the judge's budget."""

    def __init__(
        self, client: ApiClient, judge: Judge, store: JudgmentStore, on_done: Callable[[], None]
    ) -> None:
        self.asked = Asked()
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
        key, store, judge = open_key(call, self._store), self._store, self._judge
        reply: Reply | None = None
        if key is None:
            self._on_done()
            return None
        if not store.claim(key):
            await asyncio.sleep(CLAIM_SECONDS)
            raise NotYetError
        try:
            # The process that held the claim before may have stored it.
            store.refresh()
            if key not in store:
                async with self._budget.charge(call.messages, judge.max_output) as charge:
                    body = chat_body(judge.model, call.messages, judge.parameters)
                    reply = await self._client.request(
                        "/chat/completions", body, charge.lost, needs_text=True, or_thought=True
                    )
                    charge.used = _tokens(call, reply)
                    self.asked.add(*charge.used)
                if reply.status == "api_error":
                    return reply
                store.add(CachedReply.of(key, reply))
        finally:
            store.release(key)
        if open_key(call, store) is not None:
            raise NotYetError
        self._on_done()
        return reply

    def failure(self, call: JudgeCall, reply: Reply, service_is_down: bool) -> None:
        """Records a call that failed to its last attempt.

        Raises:
            EvalkitError: too many failed in a row.
        """
        self.asked.failed[call.id] = reply
        if service_is_down:
            raise EvalkitError(
                f"{FAILURES_IN_A_ROW} judgments in a row failed: {reply.error}",
                fix="run the same command again when the service is back: what was judged is kept",
            )
        self._on_done()


def _tokens(call: JudgeCall, reply: Reply) -> tuple[int, int]:
    """The tokens of a request and its reply."""
    if reply.status == "ok" and reply.output_tokens is None:
        # A server that counts nothing: the worst case for the prompt, the usual answer.
        return sum(len(message.content) for message in call.messages), EXPLANATION_TOKENS
    return reply.input_tokens or 0, reply.output_tokens or 0


def _explained(error: ServiceError, judge: Judge) -> ServiceError:
    if error.reason == "request":
        fix = "judge.parameters.KEY=VALUE changes what is sent, null leaves a parameter out"
        return ServiceError("request", error.what, where=error.where, fix=fix)
    if error.reason != "model":
        return error
    retired = f"\n  note:  {judge.config.retired}" if judge.config.retired else ""
    return ServiceError("model", f"{error.what}{retired}", where=error.where, fix=OTHER_JUDGES)
