"""Progress on the terminal: a live bar for people, a quiet line now and then for logs."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from evalkit.types import Completion
from evalkit.words import said, t

QUIET_SECONDS = 30.0


class Progress:
    """Counts completions and says how fast they come and how long the rest will take."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.tokens = 0
        self._start = time.monotonic()

    def count(self, completion: Completion) -> None:
        """Takes note of one more completion."""
        self.done += 1
        self.tokens += completion.prompt_tokens + completion.new_tokens

    @property
    def seconds(self) -> float:
        """Seconds since the first request was handed out."""
        return time.monotonic() - self._start

    def line(self) -> str:
        """One line: done/total, samples/s, tokens/s, time left."""
        seconds = max(self.seconds, 1e-9)
        rate = self.done / seconds
        left = _clock((self.total - self.done) / rate) if self.done else "?"
        return said(
            f"{self.done}/{self.total} samples, {rate:.1f} samples/s, "
            f"{self.tokens / seconds:.0f} tokens/s, {left} left"
        )


def watch(completions: Iterable[Completion], total: int) -> Iterator[Completion]:
    """Passes completions through and shows the progress on standard error."""
    progress = Progress(total)
    with _display(progress) as show:
        for completion in completions:
            progress.count(completion)
            show()
            yield completion


@contextmanager
def _display(progress: Progress) -> Iterator[Callable[[], None]]:
    if sys.stderr.isatty():
        with _bar(progress) as show:
            yield show
    else:
        yield _quiet_lines(progress)


@contextmanager
def _bar(progress: Progress) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn(t("generating")), BarColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(t("starting"), total=progress.total)
        yield lambda: bars.update(task, completed=progress.done, description=progress.line())


@contextmanager
def bytes_bar(title: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told of bytes done; `shown`: as a bar, in a log as one line before.

    The function may be called from several threads.
    """
    if not shown:
        yield lambda done: None
    elif not sys.stderr.isatty():
        print(f"{t(title)}: {total / 1e9:.1f} GB", file=sys.stderr, flush=True)
        yield lambda done: None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn(t(title)), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task("", total=total)
            yield lambda done: bars.advance(task, done)


def _quiet_lines(progress: Progress) -> Callable[[], None]:
    last = time.monotonic()

    def show() -> None:
        nonlocal last
        if progress.done == progress.total or time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            print(f"{t('generating')}: {progress.line()}", file=sys.stderr, flush=True)

    return show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
