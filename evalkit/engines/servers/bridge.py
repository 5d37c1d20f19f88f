"""An asynchronous producer as a plain iterator: it runs in a thread with an event loop of its own."""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class _Item(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value


def streamed(produce: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """Yields what `produce` puts, as soon as it does; what it raises comes after everything it put.

    Args:
        produce: a coroutine function; gets a function that takes one value. It is cancelled when
            the iterator is closed or the thread that reads it is interrupted.
    """
    values: queue.SimpleQueue[_Item[T] | _End] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(produce(lambda value: values.put(_Item(value))))

    def work() -> None:
        error: BaseException | None = None
        try:
            loop.run_until_complete(task)
        except BaseException as raised:  # handed over to the reading thread
            error = raised
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            values.put(_End(error))

    worker = threading.Thread(target=work, name="evalkit-api", daemon=True)
    worker.start()
    try:
        while isinstance(item := values.get(), _Item):
            yield item.value
        if item.error is not None:
            raise item.error
    finally:
        # The loop may close between a look at it and the call.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)
        worker.join()
