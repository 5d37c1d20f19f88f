"""Where a judge is asked from: who it is, what it costs, and how a list of asks is answered."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalkit.core.config import Config, JudgeKind, JudgeMode
from evalkit.core.errors import InputError
from evalkit.core.progress import bar
from evalkit.core.words import t
from evalkit.mtbench.judge.ask import Asked, Asker
from evalkit.mtbench.judge.budget import (
    EXPLANATION_TOKENS,
    Budget,
    Price,
    load_prices,
    price_of,
    token_counter,
)
from evalkit.mtbench.judge.calls import Ask, final, unanswered
from evalkit.mtbench.judge.judges import Judge, judge_config, open_service, resolve_judge
from evalkit.mtbench.judge.store import JudgmentStore, Stored, default_store
from evalkit.mtbench.presets import Preset
from evalkit.services.client import ApiClient, ServiceError

Say = Callable[[str], None]

RETIRED_FIX = (
    "other judges: judge=gpt-4o-2024-08-06, judge=gpt-4.1-2025-04-14, judge=openai judge.model=NAME;\n"
    "         what they are worth beside gpt-4: python -m evalkit calibrate run=DIR judge=NAME;\n"
    "         kept judgments of gpt-4: python -m evalkit replay judgments=FILE"
)


@dataclass(frozen=True)
class Desk:
    """A judge with its price; batch files go below `folder`."""

    judge: Judge
    price: Price | None
    folder: Path

    def price_in(self, mode: JudgeMode) -> Price | None:
        """The price of a call in this mode."""
        return self.price.in_batch() if self.price and mode is JudgeMode.batch else self.price

    def open_store(self) -> JudgmentStore:
        """The shared store of the judge."""
        chosen = self.judge.config.store
        return JudgmentStore(Path(chosen).expanduser() if chosen else default_store(), self.judge.identity)


@dataclass(frozen=True)
class Estimate:
    """What is still to be judged and about what it costs; `dollars` None: no price is known."""

    wanted: int
    calls: int
    input_tokens: int
    output_tokens: int
    counted_by: str
    dollars: float | None


def open_desk(config: Config, preset: Preset, folder: Path) -> Desk:
    """The judge that was chosen, or the preset's own.

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
    return Desk(judge, price, folder)


def estimate(
    desk: Desk, asks: Sequence[Ask], kept: Sequence[Stored] = (), mode: JudgeMode = JudgeMode.online
) -> Estimate:
    """What answering `asks` would call now, without calling."""
    with desk.open_store() as store:
        for stored in kept:
            store.adopt(stored)
        waiting = unanswered(asks, store)
    counter = token_counter(desk.judge.config.model or desk.judge.model)
    tokens = sum(counter.prompt(ask.messages) for ask in waiting)
    output = EXPLANATION_TOKENS * len(waiting)
    price = desk.price_in(mode)
    return Estimate(
        wanted=len(asks),
        calls=len(waiting),
        input_tokens=round(tokens),
        output_tokens=output,
        counted_by=counter.how,
        dollars=price.of(tokens, output) if price else None,
    )


@dataclass(frozen=True)
class Answers:
    """The answer to every ask by its id, and what asking took."""

    by_id: dict[str, Stored]
    asked: Asked


def ask_all(
    desk: Desk, config: Config, asks: Sequence[Ask], say: Say, kept: Sequence[Stored] = ()
) -> Answers | None:
    """Answers `asks` from the store, from what a run folder `kept`, and by asking; None: a batch waits.

    Raises:
        EvalkitError: the service refused, the budget is spent, or the disk is full; what was judged
            is in the store.
    """
    with desk.open_store() as store:
        # A run that comes from another machine brings its judgments along.
        for stored in kept:
            store.adopt(stored)
        waiting = unanswered(asks, store)
        say(
            t(
                "judge {judge}: {kept} judgments are kept, {n} to make",
                judge=desk.judge.label,
                kept=len(asks) - len(waiting),
                n=len(waiting),
            )
        )
        asked = _ask(desk, config, waiting, store, say) if waiting else Asked()
        if asked is None:
            return None
        return Answers({ask.id: _answer(ask, store, asked) for ask in asks}, asked)


def _ask(desk: Desk, config: Config, waiting: Sequence[Ask], store: JudgmentStore, say: Say) -> Asked | None:
    if config.mode is JudgeMode.batch:
        from evalkit.mtbench.judge.batch import ask_by_batch

        return ask_by_batch(desk, config, waiting, store, say)
    if desk.judge.config.kind is JudgeKind.local:
        from evalkit.mtbench.judge.local import ask_locally

        return ask_locally(desk.judge, config, waiting, store)
    return asyncio.run(_ask_online(desk, waiting, store))


async def _ask_online(desk: Desk, waiting: Sequence[Ask], store: JudgmentStore) -> Asked:
    judge, options = desk.judge, desk.judge.config
    client = ApiClient(
        open_service(judge),
        concurrency=options.concurrency,
        retries=options.retries,
        max_wait=options.max_wait,
    )
    async with client:
        with bar(t("judging"), len(waiting)) as progress:
            asker = Asker(
                lambda messages, lost: client.chat(
                    judge.model, messages, judge.parameters, lost, needs_text=True
                ),
                store,
                Budget(desk.price, options.max_cost),
                most_output=most_output(judge),
                concurrency=options.concurrency,
                on_answer=progress.advance,
            )
            try:
                return await asker.run(waiting)
            except ServiceError as error:
                raise _explained(error, judge) from None


def _explained(error: ServiceError, judge: Judge) -> ServiceError:
    if error.reason == "request":
        fix = "judge.parameters.KEY=VALUE changes what is sent, null leaves a parameter out"
        return ServiceError("request", error.what, where=error.where, fix=fix)
    if error.reason != "model":
        return error
    retired = f"\n  note:  {judge.config.retired}" if judge.config.retired else ""
    return ServiceError("model", f"{error.what}{retired}", where=error.where, fix=RETIRED_FIX)


def _answer(ask: Ask, store: JudgmentStore, asked: Asked) -> Stored:
    if (reply := asked.failed.get(ask.id)) is not None:
        return Stored.of("", reply)
    return final(ask, store) or Stored("", "api_error", None, None, None, None, None, "not asked yet")


def most_output(judge: Judge) -> int:
    """The tokens an answer of this judge may have; 4096 where nothing bounds it."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = judge.parameters.get(name)
        if isinstance(value, int):
            return value * int(judge.parameters.get("n", 1))
    return 4096
