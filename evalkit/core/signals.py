"""SIGTERM and SIGUSR1 (what a queue sends before it kills) end a command as Ctrl-C does: exit code 130."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from evalkit.core.errors import InterruptedRunError

STOPPING = (signal.SIGTERM, signal.SIGUSR1)

# Of Linux's prctl: the signal a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1
_received: list[int] = []
# The handler of the innermost block of `signals_stop_the_run` that set one.
_handler: Callable[[int, FrameType | None], None] | None = None


@contextmanager
def signals_stop_the_run(first: Callable[[], None] | None = None) -> Iterator[None]:
    """While the block runs, the signals raise `InterruptedRunError` in the main thread.

    May be nested: an inner block without `first` keeps the handlers there are, also those that were set
    inside the outer one. In another thread, where Python sets no handlers, it changes nothing.

    Args:
        first: called before the exception is raised, then also for Ctrl-C.
    """
    global _handler
    # A forked process may have lost the handlers of its parent.
    inner = _handler is not None and any(signal.getsignal(number) is _handler for number in STOPPING)
    if threading.current_thread() is not threading.main_thread() or (inner and first is None):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        _received.append(number)
        if first is not None:
            first()
        raise _interruption(number)

    numbers = (*STOPPING, signal.SIGINT) if first is not None else STOPPING
    outer, outer_handler, _handler = list(_received), _handler, stop
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        _handler = outer_handler
        _received[:] = outer
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_signalled() -> None:
    """Raises again when a signal came and its exception was lost.

    An exception that is raised while Python runs a finalizer or a callback of a C library is
    printed and forgotten; loops that take long therefore ask here.
    """
    if _received and threading.current_thread() is threading.main_thread():
        raise _interruption(_received[-1])


def stop_with_the_parent(parent: int) -> None:
    """Has the system end this process by SIGTERM when the one that started it dies (Linux only).

    Call it first in a process that works for another one, whose number is `parent` and which may be
    killed. Where it is dead already the process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def _interruption(number: int) -> InterruptedRunError:
    return InterruptedRunError(
        f"stopped by {signal.Signals(number).name}; what was finished is kept",
        fix="run the same command again: it continues",
    )
