"""What a command is doing, on standard error.

A terminal has one live display: a line for each thing under way, with a clock that goes on when nothing
else does. A log gets a line when something begins and every `QUIET_SECONDS`, without control characters.
"""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TextIO

from evalkit.core import terminal
from evalkit.core.types import Completion, Request
from evalkit.core.words import t

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

QUIET_SECONDS = 30.0
Unit = Literal["items", "bytes", "phase"]
# Takes messages, one line at a time.
Say = Callable[[str], None]
# A new token takes about as long as this many tokens of a prompt, which go through the model together.
NEW_TOKEN = 4
# New tokens of an answer that may be longer, as long as none has ended.
_USUAL_LENGTH = 512
_BAR_WIDTH = 16


class Bar:
    """One count: how much of a total is done, how fast it goes and how long the rest takes.

    May be used from several threads. `detail` is what is worked on, where the title does not say it.
    """

    def __init__(self, title: str, total: int | None, unit: Unit) -> None:
        self.title = title
        self.detail = ""
        self.total = total
        self.done = 0
        self.unit = unit
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, number: int = 1) -> None:
        """Adds what was done since the last call."""
        with self._lock:
            self.done += number

    def update(self, done: int, total: int | None) -> None:
        """Sets what is done in all, and the total where it is known by now."""
        with self._lock:
            self.done, self.total = done, total

    @property
    def seconds(self) -> float:
        """Since it began."""
        return max(time.monotonic() - self._start, 1e-9)

    def line(self) -> str:
        """One line: done/total, the speed, the time since the beginning and the time left."""
        if self.unit == "phase":
            return " ".join(filter(None, [self.detail, _clock(self.seconds)]))
        rate = self.done / self.seconds
        left = _clock((self.total - self.done) / rate) if self.done and self.total is not None else "?"
        if self.unit == "bytes":
            total = "?" if self.total is None else f"{self.total / 1e9:.1f}"
            amount, speed = f"{self.done / 1e9:.1f}/{total} GB", f"{rate / 1e6:.0f} MB/s"
        else:
            amount, speed = f"{self.done}/{self.total}", f"{rate:.1f}/s"
        spent = _clock(self.seconds)
        counts = t(
            "{amount}, {speed}, {spent}, {left} left", amount=amount, speed=speed, spent=spent, left=left
        )
        return ", ".join(filter(None, [counts, self.detail]))


class Generation(Bar):
    """Answers to requests. The time left is estimated by tokens: answers differ too much in length.

    Engines that see every token report them (`planned`, `stage`, `made`); of others the finished
    answers are counted.
    """

    def __init__(self, title: str, requests: Sequence[Request]) -> None:
        super().__init__(title, len(requests), "items")
        self._limits = {request.id: request.max_new_tokens for request in requests}
        self._characters = {request.id: _characters(request) for request in requests}
        self._asked = Counter(self._limits.values())
        # By the most tokens an answer may have: answers that ended, their tokens, and all tokens made.
        self._ended: Counter[int] = Counter()
        self._kept: Counter[int] = Counter()
        self._made: Counter[int] = Counter()
        self._begun = 0
        self._read_characters = self._read_tokens = 0
        self._planned: int | None = None

    def planned(self, tokens: int) -> None:
        """Sets how many tokens of prompts go through the model; shared ones once."""
        self._planned = tokens

    def made(self, limit: int, number: int, *, first: bool) -> None:
        """Counts new tokens of an answer of at most `limit`; `first`: its prompt has been read."""
        self._made[limit] += number
        self._begun += first

    def ended(self, name: str, prompt_tokens: int, new_tokens: int) -> None:
        """Counts the finished answer to a request."""
        limit = self._limits[name]
        self._ended[limit] += 1
        self._kept[limit] += new_tokens
        self._read_tokens += prompt_tokens
        self._read_characters += self._characters[name]
        self.advance()

    def _left(self) -> float | None:
        """Seconds that the rest takes, by the cost in tokens of what is done; None: nothing is yet."""
        assert self.total is not None
        made = expected = 0.0
        for limit, asked in self._asked.items():
            new, ended = max(self._made[limit], self._kept[limit]), self._ended[limit]
            # The usual estimate of a length from answers of which some still go on.
            usual = min(limit, new / ended if ended else max(_USUAL_LENGTH, new / asked))
            made += new
            expected += min(limit * asked, new + (asked - ended) * usual)
        begun = max(self._begun, self.done) / max(1, self.total)
        prompts: float = self._read_tokens
        if self._planned is not None:
            prompts = self._planned
        elif self._read_characters:
            prompts *= sum(self._characters.values()) / self._read_characters
        cost = begun * prompts + NEW_TOKEN * made
        return self.seconds * ((1 - begun) * prompts + NEW_TOKEN * (expected - made)) / cost if cost else None

    def line(self) -> str:
        """One line: finished answers, new tokens and their speed, the time spent and left."""
        tokens, left = sum((self._made | self._kept).values()), self._left()
        counts = t(
            "{done}/{all} answers, {tokens} tokens, {speed} tokens/s, {spent}, about {left} left",
            done=self.done,
            all=self.total,
            tokens=f"{tokens:,}",
            speed=f"{tokens / self.seconds:.0f}",
            spent=_clock(self.seconds),
            left="?" if left is None else _clock(left),
        )
        return f"{self.detail}: {counts}" if self.detail and self.done < (self.total or 0) else counts


class _Display:
    """The things under way, on a terminal or in a log; active while there is one.

    May be used from several threads.
    """

    def __init__(self) -> None:
        self.bars: list[Bar] = []
        self._live: Any = None
        self._ended = threading.Event()
        self._lock = threading.RLock()

    def add(self, bar: Bar) -> None:
        with self._lock:
            self.bars.append(bar)
            if _on_a_terminal():
                self._draw()
            elif len(self.bars) == 1:
                self._ended = threading.Event()
                threading.Thread(target=self._tell, args=(self._ended,), daemon=True).start()

    def remove(self, bar: Bar) -> None:
        with self._lock:
            self.bars.remove(bar)
            if self.bars:
                return
            self._ended.set()
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    def _draw(self) -> None:
        if self._live is None:
            from rich.live import Live

            # What is printed meanwhile goes above the display. Another stream than the terminal stays so.
            self._live = Live(
                get_renderable=self._table,
                console=console(),
                refresh_per_second=4,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()
        self._live.refresh()

    def _table(self) -> "Table":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True, overflow="ellipsis")
        for bar in list(self.bars):
            if bar.total is None or bar.done < bar.total:
                line = Text(bar.line())
                known = bar.total is not None
                drawn = ProgressBar(bar.total, bar.done, width=_BAR_WIDTH) if known else line
                table.add_row(Text(bar.title), drawn, line if known else Text())
        return table

    def _tell(self, ended: threading.Event) -> None:
        while not ended.wait(QUIET_SECONDS):
            for bar in list(self.bars):
                say(f"{bar.title}: {bar.line()}")


_display = _Display()
_generation: Generation | None = None


def console() -> "Console":
    """The console of the display."""
    from rich.console import Console

    try:
        return Console(file=_own_stream())
    except (OSError, ValueError):
        # Something without a descriptor stands for standard error.
        return Console(stderr=True)


@cache
def _own_stream() -> TextIO:
    """Standard error as it is now: a library's output may be turned elsewhere while the display goes on."""
    return terminal.stream_of(sys.stderr, os.dup(sys.stderr.fileno()), "backslashreplace")


def _on_a_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


AddBar = Callable[[str, int | None, Unit], Bar]


@contextmanager
def bars() -> Iterator[AddBar]:
    """Gives a function that adds a bar (title, total, unit); all of them end with the block."""
    added: list[Bar] = []

    def add(title: str, total: int | None, unit: Unit) -> Bar:
        made = Bar(title, total, unit)
        added.append(made)
        _display.add(made)
        return made

    try:
        yield add
    finally:
        for bar in added:
            _display.remove(bar)


@contextmanager
def _shown(bar: Any) -> Iterator[Any]:
    """Shows a bar while the block runs; a log gets its first and its last line."""
    live = _on_a_terminal()
    if not live:
        size = {"phase": "", "bytes": f": {(bar.total or 0) / 1e9:.1f} GB"}.get(bar.unit, f": {bar.total}")
        say(f"{bar.title}{size}")
    _display.add(bar)
    try:
        yield bar
    finally:
        _display.remove(bar)
        if not live and bar.done:
            say(f"{bar.title}: {bar.line()}")


@contextmanager
def bar(title: str, total: int, unit: Unit = "items", *, shown: bool = True) -> Iterator[Bar]:
    """One bar; with `shown` False it only counts."""
    made = Bar(title, total, unit)
    if not shown:
        yield made
        return
    with _shown(made):
        yield made


@contextmanager
def phase(title: str) -> Iterator[Bar]:
    """Shows what the block does, with a clock."""
    with _shown(Bar(title, None, "phase")) as made:
        yield made


@contextmanager
def generation(title: str, requests: Sequence[Request]) -> Iterator[Generation]:
    """Shows the answers to requests; what engines report while the block runs is about these."""
    global _generation
    with _shown(Generation(title, requests)) as made:
        outer, _generation = _generation, made
        try:
            yield made
        finally:
            _generation = outer


def watch(
    completions: Iterable[Completion], requests: Sequence[Request], title: str | None = None
) -> Iterator[Completion]:
    """Passes the completions of requests through and shows the progress; `title` says what they are for."""
    with generation(title or t("generating"), requests) as work:
        for completion in completions:
            work.ended(completion.id, completion.prompt_tokens, completion.new_tokens)
            yield completion


def planned(tokens: int) -> None:
    """An engine reports how many tokens of prompts it is going to compute."""
    if _generation is not None:
        _generation.planned(tokens)


def stage(title: str) -> None:
    """An engine reports what the next pass is for."""
    if _generation is not None:
        _generation.detail = title


def made(limit: int, number: int, *, first: bool) -> None:
    """An engine reports new tokens of an answer; see `Generation.made`."""
    if _generation is not None:
        _generation.made(limit, number, first=first)


def say(line: str) -> None:
    """Prints one line on standard error."""
    print(line, file=sys.stderr, flush=True)


def _characters(request: Request) -> int:
    if isinstance(request.prompt, str):
        return len(request.prompt)
    return sum(len(message.content) for message in request.prompt)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
