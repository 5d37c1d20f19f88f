"""Who the judge is, what its calls would cost, and where they go: a service, a batch or a local model."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalkit.core.config import Config, JudgeKind, JudgeMode
from evalkit.core.errors import InputError
from evalkit.core.words import t
from evalkit.mtbench.judge.ask import AskResult, ask_online
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS, load_prices, price_of, token_counter
from evalkit.mtbench.judge.calls import JudgeCall, last_reply, unanswered
from evalkit.mtbench.judge.judges import Judge, judge_config, resolve_judge
from evalkit.mtbench.judge.store import CachedReply
from evalkit.mtbench.presets import Preset

Say = Callable[[str], None]


def open_judge(config: Config, preset: Preset) -> Judge:
    """The judge that was chosen, or the preset's own, with its price.

    Raises:
        InputError: no judge, an incomplete one, or `judge.max_cost` without a price.
    """
    judge = resolve_judge(judge_config(config.judge, preset))
    options = judge.config
    if options.kind is JudgeKind.local:
        from evalkit.mtbench.judge.local import weights_of

        judge = replace(judge, weights=weights_of(judge, config))
    name = options.model or judge.model
    price = price_of(name, load_prices(Path(options.prices).expanduser() if options.prices else None))
    if options.max_cost is not None and price is None and options.kind is not JudgeKind.local:
        raise InputError(
            f"judge.max_cost needs the price of {name}",
            where=options.prices or "conf/prices.yaml",
            fix="add it to a copy of the table: judge.prices=FILE",
        )
    return replace(judge, price=price)


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
    with judge.open_store() as store:
        for reply in kept:
            store.add_to_memory(reply)
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


@dataclass(frozen=True)
class JudgeReplies:
    """The reply to every call by its id, and what asking took."""

    by_id: dict[str, CachedReply]
    asked: AskResult


def ask_judge(
    judge: Judge,
    config: Config,
    calls: Sequence[JudgeCall],
    folder: Path,
    say: Say,
    kept: Sequence[CachedReply] = (),
) -> JudgeReplies | None:
    """The replies to `calls`: from the store, from `kept`, and by asking; None while a batch is under way.

    Args:
        judge: who is asked.
        config: decides between online and batch; a local judge takes its engine options from it.
        calls: what is asked.
        folder: batch files go below it.
        say: called with one line of progress.
        kept: replies that the run folder holds; a run moved from another machine brings them along.

    Raises:
        EvalkitError: the service refused, the budget is spent, or the disk is full; what was judged
            is in the store.
    """
    with judge.open_store() as store:
        for reply in kept:
            store.add_to_memory(reply)
        waiting = unanswered(calls, store)
        text = "judge {judge}: {kept} judgments are kept, {n} to make"
        say(t(text, judge=judge.label, kept=len(calls) - len(waiting), n=len(waiting)))
        asked: AskResult | None = AskResult()
        if waiting and config.mode is JudgeMode.batch:
            from evalkit.mtbench.judge.batch import ask_by_batch

            asked = ask_by_batch(judge, config.batch, waiting, store, folder, say)
        elif waiting and judge.config.kind is JudgeKind.local:
            from evalkit.mtbench.judge.local import ask_locally

            asked = ask_locally(judge, config, waiting, store)
        elif waiting:
            asked = asyncio.run(ask_online(judge, waiting, store))
        if asked is None:
            return None
        return JudgeReplies({call.id: last_reply(call, store, asked.failed) for call in calls}, asked)
