import io
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.live import Live

from evalkit.core import progress
from evalkit.core.types import Completion, Request


def asked(*limits: int) -> list[Request]:
    return [Request(str(index), "a" * 40, limit) for index, limit in enumerate(limits)]


def answered(requests: list[Request], new_tokens: int = 2) -> Iterator[Completion]:
    for request in requests:
        yield Completion(request.id, "a", "a", "stop", prompt_tokens=20, new_tokens=new_tokens)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that the test moves."""
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 100 columns gets."""
    out = io.StringIO()
    monkeypatch.setattr(progress, "_on_a_terminal", lambda: True)
    monkeypatch.setattr(progress, "console", lambda: Console(file=out, force_terminal=True, width=100))
    return out


def test_a_log_gets_the_first_and_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    requests = asked(9, 9, 9)
    assert len(list(progress.watch(answered(requests), requests))) == 3
    first, last = capsys.readouterr().err.splitlines()
    assert first == "generating: 3"
    assert last.startswith("generating: 3/3 answers, 6 tokens, ") and last.endswith("about 0:00 left")


def test_a_log_gets_a_line_now_and_then_also_when_nothing_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.01)
    with progress.phase("loading the model"):
        progress.time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "loading the model" and "loading the model: 0:00" in lines[1:]
    assert not any(ord(sign) < ord(" ") for line in lines for sign in line)


def test_bytes_are_shown_in_gigabytes(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("hashing", 3_000_000_000, "bytes") as bar:
        bar.advance(3_000_000_000)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "hashing: 3.0 GB" and last.startswith("hashing: 3.0/3.0 GB, ")


def test_nothing_is_shown_where_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("hashing", 3, "bytes", shown=False) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == "" and bar.done == 3


def test_a_terminal_has_one_display(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.phase("loading the model"), progress.bars() as add:
        first, second = add("first file", 100, "bytes"), add("second file", None, "bytes")
        first.update(50, 100)
        second.advance(7)
        progress._display._live.refresh()
    shown = terminal.getvalue()
    assert "loading the model" in shown and "first file" in shown and "0.0/? GB" in shown
    assert capsys.readouterr() == ("", "") and progress._display.bars == []


def test_bars_of_several_threads_have_one_display(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, start = [], Live.start

    def slowly(live: Live, refresh: bool = False) -> None:
        started.append(live)
        time.sleep(0.01)
        start(live, refresh)

    monkeypatch.setattr(Live, "start", slowly)
    with ThreadPoolExecutor(6) as threads, progress.bars() as add:
        titles = list("abcdef")
        made = threads.map(lambda title: add(title, 1, "bytes"), titles)
        assert [bar.title for bar in made] == titles
    assert len(started) == 1 and progress._display.bars == []


def test_what_is_said_stands_above_the_display(terminal: io.StringIO) -> None:
    with progress.phase("loading the model"):
        progress.say("a warning")
    assert "a warning\n" in terminal.getvalue()


def test_a_display_leaves_the_output_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    requests = asked(9, 9)
    for _ in progress.watch(answered(requests), requests):
        print("a result")
    assert capsys.readouterr().out == "a result\n" * 2


def test_the_time_left_is_estimated_by_tokens(clock: SimpleNamespace) -> None:
    # Nine answers of one token take no time; the tenth has 400 tokens.
    work = progress.Generation("generating", asked(*[1] * 9, 400))
    work.planned(400)
    for name in range(9):
        work.made(1, 1, first=True)
        work.ended(str(name), 40, 1)
    work.made(400, 100, first=True)
    clock.now += 20
    # Of 400 + 4 * (9 + 400) there remain 4 * 300.
    left = 20 * 4 * 300 / (400 + 4 * 109)
    assert f"9/10 answers, 109 tokens, 5 tokens/s, 0:20, about 0:{left:.0f} left" == work.line()


def test_answers_that_end_early_shorten_the_rest(clock: SimpleNamespace) -> None:
    work = progress.Generation("generating", asked(*[1000] * 4))
    clock.now += 10
    work.ended("0", 10, 50)
    # Prompts are estimated by their characters, lengths by those that ended: three times the same again.
    assert work.line().endswith("0:10, about 0:30 left")


def test_an_engine_says_what_a_pass_is_for(clock: SimpleNamespace) -> None:
    with progress.generation("judging", asked(5, 5)) as work:
        progress.stage("prompts")
        progress.planned(100)
        progress.made(5, 1, first=True)
        clock.now += 1
        assert work.line() == "prompts: 0/2 answers, 1 tokens, 1 tokens/s, 0:01, about 0:02 left"
    # Nobody listens: an engine that is probed reports to nobody.
    progress.made(5, 1, first=True)
