"""Progress on standard error: live bars for people, a quiet line now and then for logs."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from evalkit.core.types import Completion
from evalkit.core.words import t

if TYPE_CHECKING:
    from rich.console import Console

QUIET_SECONDS = 30.0
Unit = Literal["items", "samples", "bytes"]


class Bar:
    """One count: how much of a total is done, how fast it goes and how long the rest takes.

    May be used from several threads.
    """

    def __init__(self, title: str, total: int | None, unit: Unit, show: "Callable[[Bar], None]") -> None:
        self.title = title
        self.total = total
        self.done = 0
        self._unit = unit
        self._tokens = 0
        self._show = show
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, number: int = 1, tokens: int = 0) -> None:
        """Adds what was done since the last call; `tokens` are counted beside it."""
        with self._lock:
            self.done += number
            self._tokens += tokens
            self._show(self)

    def update(self, done: int, total: int | None) -> None:
        """Sets what is done in all, and the total where it is known by now."""
        with self._lock:
            self.done, self.total = done, total
            self._show(self)

    def line(self) -> str:
        """One line: done/total, the speed, the time left (minutes:seconds)."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = self.done / seconds
        left = _clock((self.total - self.done) / rate) if self.done and self.total is not None else "?"
        if self._unit == "samples":
            return t(
                "{done}/{all} samples, {rate} samples/s, {speed} tokens/s, {left} left",
                done=self.done,
                all=self.total,
                rate=f"{rate:.1f}",
                speed=f"{self._tokens / seconds:.0f}",
                left=left,
            )
        if self._unit == "bytes":
            total = "?" if self.total is None else f"{self.total / 1e9:.1f}"
            amount, speed = f"{self.done / 1e9:.1f}/{total} GB", f"{rate / 1e6:.0f} MB/s"
        else:
            amount, speed = f"{self.done}/{self.total}", f"{rate:.1f}/s"
        return t("{amount}, {speed}, {left} left", amount=amount, speed=speed, left=left)


AddBar = Callable[[str, int | None, Unit], Bar]


@contextmanager
def bars(console: "Console | None" = None, *, quiet: bool = True) -> Iterator[AddBar]:
    """Gives a function that adds a bar (title, total, unit).

    Args:
        console: where; standard error by default.
        quiet: whether a log gets a line now and then where there is no terminal.
    """
    live = sys.stderr.isatty() if console is None else console.is_terminal
    if not live:

        def add_quiet(title: str, total: int | None, unit: Unit) -> Bar:
            if quiet and unit == "bytes" and total is not None:
                print(f"{title}: {total / 1e9:.1f} GB", file=sys.stderr, flush=True)
            return Bar(title, total, unit, _quiet_lines() if quiet else _nothing)

        yield add_quiet
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.fields[title]}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as display:

        def add(title: str, total: int | None, unit: Unit) -> Bar:
            task = display.add_task(t("starting"), total=total, title=title)
            return Bar(
                title,
                total,
                unit,
                lambda bar: display.update(
                    task,
                    completed=bar.done,
                    total=bar.total,
                    description=bar.line(),
                    visible=bar.total is None or bar.done < bar.total,
                ),
            )

        yield add


@contextmanager
def bar(title: str, total: int, unit: Unit = "items", *, shown: bool = True) -> Iterator[Bar]:
    """One bar; with `shown` False it only counts."""
    if not shown:
        yield Bar(title, total, unit, _nothing)
        return
    with bars() as add:
        yield add(title, total, unit)


def watch(completions: Iterable[Completion], total: int) -> Iterator[Completion]:
    """Passes completions through and shows the progress on standard error."""
    with bar(t("generating"), total, "samples") as progress:
        for completion in completions:
            progress.advance(1, completion.prompt_tokens + completion.new_tokens)
            yield completion


def say(line: str) -> None:
    """Prints one line on standard error."""
    print(line, file=sys.stderr, flush=True)


def _quiet_lines() -> Callable[[Bar], None]:
    last = time.monotonic()

    def show(bar: Bar) -> None:
        nonlocal last
        if bar.done == bar.total or time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            print(f"{bar.title}: {bar.line()}", file=sys.stderr, flush=True)

    return show


def _nothing(bar: Bar) -> None:
    """Shows nothing."""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
