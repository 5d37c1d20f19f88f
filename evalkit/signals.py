"""SIGTERM and SIGUSR1, which a queue sends before it kills, end a command as Ctrl-C does: resumable."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from evalkit.errors import InterruptedRunError

STOPPING = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def signals_stop_the_work() -> Iterator[None]:
    """Turns the signals of a queue into an InterruptedRunError while the block runs.

    Inside the block they are a KeyboardInterrupt: no `except Exception` on the way mistakes them for
    a failure of its own, and an event loop cancels its tasks as it does for Ctrl-C.

    Raises:
        InterruptedRunError: one of them came (exit code 130).
    """
    received: list[str] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt):
            interrupt(signal.SIGINT, frame)
        else:
            # Ctrl-C is switched off (a command in the background): these signals still count.
            raise KeyboardInterrupt

    # Only the main thread is told of signals.
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in STOPPING} if main else {}
    try:
        yield
    except KeyboardInterrupt:
        if not received:
            raise
        raise InterruptedRunError(
            f"stopped by {received[0]}; what was finished is kept",
            fix="run the same command again: it continues",
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
