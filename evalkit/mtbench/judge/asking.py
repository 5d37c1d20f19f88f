"""Asking a judge: what the store does not have is asked online, by a batch, or of a local model."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.config import BatchConfig, JudgeKind, JudgeMode
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.progress import Say, bar, phase, watch
from evalkit.core.types import Completion, Request, Sampling
from evalkit.core.words import t
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS, Budget, Charge, token_counter
from evalkit.mtbench.judge.calls import (
    AskingResult,
    JudgeCall,
    JudgeReplies,
    open_key,
    replies_to,
    unanswered,
)
from evalkit.mtbench.judge.judges import Judge, number, open_service
from evalkit.mtbench.judge.store import CLAIM_SECONDS, CachedReply, JudgmentStore
from evalkit.mtbench.turns import takes_system_message, with_system
from evalkit.services.ask_all import FAILURES_IN_A_ROW, NotYetError, ask_all
from evalkit.services.client import ApiClient, ServiceError
from evalkit.services.replies import Reply, chat_body

# What a local judge takes of `judge.parameters`.
LENGTHS = ("max_tokens", "max_completion_tokens")
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
# For the chat template (`template_args`).
TEMPLATE = ("reasoning_effort", "chat_template_kwargs")
DEFAULT_LENGTH = 2048
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
        waiting = unanswered(judge, calls, store)
    counter = token_counter(judge.config.model or judge.model)
    tokens = sum(counter.prompt(call.messages) for call in waiting.values())
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
    say: Say,
    batch: BatchConfig | None = None,
    kept: Sequence[CachedReply] = (),
) -> JudgeReplies | None:
    """The replies to `calls`: from the store, from `kept`, and by asking; None while a batch is under way.

    Args:
        judge, calls: who is asked what.
        folder: batch files go below it.
        say: called with one line of progress.
        batch: the options of mode=batch; None: call by call.
        kept: replies that the run folder holds; a run moved from another machine brings them along.

    Raises:
        EvalkitError: the service refused, the budget is spent, or the disk is full; what was judged
            is in the store.
    """
    with judge.open_store(kept) as store:
        waiting = unanswered(judge, calls, store)
        text = "judge {judge}: {kept} judgments are kept, {n} to make"
        say(t(text, judge=judge.label, kept=len(calls) - len(waiting), n=len(waiting)))
        asked: AskingResult | None = AskingResult()
        if waiting and batch is not None:
            from evalkit.mtbench.judge.batch import ask_by_batch

            asked = ask_by_batch(judge, batch, waiting, store, folder, say)
        elif waiting and judge.config.kind is JudgeKind.local:
            asked = ask_locally(judge, list(waiting.values()), store)
        elif waiting:
            asked = asyncio.run(ask_online(judge, list(waiting.values()), store))
        return None if asked is None else replies_to(judge, calls, store, asked)


async def ask_online(judge: Judge, calls: Sequence[JudgeCall], store: JudgmentStore) -> AskingResult:
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
        self.asked = AskingResult()
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
        store, judge = self._store, self._judge
        key = open_key(judge, call, store)
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
                async with Charge(self._budget, call.messages, judge.max_output) as charge:
                    body = chat_body(judge.model, call.messages, judge.parameters)
                    reply = await self._client.request(
                        "/chat/completions", body, charge.lost, needs_text=True
                    )
                    charge.used = _tokens(call, reply)
                    self.asked.add(*charge.used)
                if reply.status == "api_error":
                    return reply
                store.add(CachedReply.of(key, reply))
        finally:
            store.release(key)
        if open_key(judge, call, store) is not None:
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


def ask_locally(judge: Judge, calls: Sequence[JudgeCall], store: JudgmentStore) -> AskingResult:
    """Asks a local model what is not in the store yet.

    Raises:
        InputError: a model that is missing or has no chat template, or an unknown parameter.
        EvalkitError: the model cannot be loaded or computes NaN; what was judged is kept.
    """
    from evalkit.engines import build_engine
    from evalkit.engines.local.tokenizer import load_tokenizer

    sampling, length, seed = _sampling(judge.parameters)
    made = judge.engine
    assert made is not None
    takes_system = takes_system_message(load_tokenizer(made.model))
    asked = AskingResult()
    # judge.parameters alone decide the sampling: they are part of the cache key.
    with phase(t("loading the judge")):
        built = build_engine(made.model, made.options, made.dtype, bos=made.bos)
    with built as engine:
        while waiting := unanswered(judge, calls, store):
            keys = {key: call for key, call in waiting.items() if store.claim(key)}
            store.refresh()
            requests = [
                Request(
                    key,
                    with_system(call.messages, takes_system),
                    length,
                    (),
                    sampling,
                    seed + call.repeat,
                    keep_special=judge.thoughts is not None,
                )
                for key, call in keys.items()
                if key not in store
            ]
            try:
                for completion in watch(engine.generate(requests), requests, t("judging")):
                    asked.add(completion.prompt_tokens, completion.new_tokens)
                    store.add(CachedReply.of(completion.id, _reply_of(completion, judge.model)))
            finally:
                for key in keys:
                    store.release(key)
            if not keys:
                time.sleep(CLAIM_SECONDS)
                store.refresh()
    return asked


def _reply_of(completion: Completion, model: str) -> Reply:
    failed = completion.finish_reason == "error"
    return Reply(
        status="overflow" if failed else "ok",
        text=None if failed else completion.raw_text.strip(),
        finish_reason=completion.finish_reason,
        model=model,
        input_tokens=completion.prompt_tokens,
        output_tokens=completion.new_tokens,
        error=completion.error,
    )


def _sampling(parameters: dict[str, Any]) -> tuple[Sampling, int, int]:
    unknown = set(parameters) - {*SAMPLING, *LENGTHS, *TEMPLATE, "n"}
    if unknown or parameters.get("n", 1) != 1:
        raise InputError(
            f"a local judge does not know {', '.join(sorted(unknown)) or 'n other than 1'}",
            where="option judge.parameters",
            fix=f"known: {', '.join((*SAMPLING, *LENGTHS, *TEMPLATE))}",
        )
    temperature = number(parameters, "temperature", 1.0)
    sampling = Sampling(
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else 1.0,
        top_p=number(parameters, "top_p", 1.0),
        top_k=int(number(parameters, "top_k", 0, whole=True)),
        repetition_penalty=number(parameters, "repetition_penalty", 1.0),
    )
    name = next((name for name in LENGTHS if name in parameters), LENGTHS[0])
    length = int(number(parameters, name, DEFAULT_LENGTH, least=1, whole=True))
    return sampling, length, int(number(parameters, "seed", 0, whole=True))
