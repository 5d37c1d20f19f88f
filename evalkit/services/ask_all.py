"""The one loop that asks a service for many items: judgments, and completions of engine=api."""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from evalkit.core.errors import EvalkitError
from evalkit.services.client import ServiceError
from evalkit.services.replies import Reply

T = TypeVar("T")

# After this many failed items in a row the service counts as down.
FAILURES_IN_A_ROW = 8


class NotYetError(Exception):
    """An item is not finished: it is asked for again after the others."""


async def ask_all(
    items: Sequence[T],
    ask: Callable[[T], Awaitable[Reply | None]],
    *,
    concurrency: int,
    on_failure: Callable[[T, Reply, bool], None],
) -> None:
    """Asks for all items, the first alone: a permanent error shows before other calls are paid for.

    Args:
        items: what is asked for.
        ask: asks for one item. Its reply has status `api_error` when the item failed to the last
            attempt; None: no call was needed. It raises `NotYetError` to be called again.
        concurrency: items at once at most.
        on_failure: called for each failed item, with True when `FAILURES_IN_A_ROW` have failed; what
            it raises ends the loop.

    Raises:
        EvalkitError: the first one that `ask` or `on_failure` raised. No item is started after it;
            calls under way are finished first. A request that the service refuses after it has
            answered another one is a failed item, not an error.
    """
    waiting = deque(items)
    failures_in_a_row = 0
    answered = False
    stop: EvalkitError | None = None

    async def work(waiting: deque[T]) -> None:
        nonlocal failures_in_a_row, answered, stop
        while waiting and stop is None:
            item = waiting.popleft()
            try:
                try:
                    reply = await ask(item)
                except ServiceError as error:
                    if error.reason != "request" or not answered:
                        raise
                    reply = Reply("api_error", error=error.what)
                if reply is None:
                    continue
                if reply.status == "api_error":
                    failures_in_a_row += 1
                    on_failure(item, reply, failures_in_a_row >= FAILURES_IN_A_ROW)
                else:
                    failures_in_a_row, answered = 0, True
            except NotYetError:
                waiting.append(item)
            except EvalkitError as error:
                stop = stop or error

    if waiting:
        await work(deque([waiting.popleft()]))
    await asyncio.gather(*(work(waiting) for _ in range(min(concurrency, len(waiting)))))
    if stop is not None:
        raise stop


def streamed(produce: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """Runs an asynchronous producer in a thread and yields what it puts, as soon as it does.

    An exception of the producer is raised after everything it put.

    Args:
        produce: a coroutine function; receives a function that takes one value. It is cancelled when
            the iterator is closed or the reading thread is interrupted.
    """
    # A value is in a tuple of one; the end is the producer's exception, or None.
    values: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(produce(lambda value: values.put((value,))))

    def work() -> None:
        error: BaseException | None = None
        try:
            loop.run_until_complete(task)
        except BaseException as raised:  # handed over to the reading thread
            error = raised
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            values.put(error)

    worker = threading.Thread(target=work, name="evalkit-api", daemon=True)
    worker.start()
    try:
        while isinstance(item := values.get(), tuple):
            yield item[0]
        if item is not None:
            raise item
    finally:
        # The loop may close between a look at it and the call.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)
        worker.join()
