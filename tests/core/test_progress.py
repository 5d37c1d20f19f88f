import io
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from evalkit.core import progress
from evalkit.core.types import Completion


def completions(number: int) -> Iterator[Completion]:
    for index in range(number):
        yield Completion(str(index), "a", "a", "stop", prompt_tokens=5, new_tokens=2)


def test_a_log_gets_the_last_line_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(progress.watch(completions(3), 3))) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("generating: 3/3 samples, ") and "0:00 left" in lines[0]


def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    with progress.bar("judging", 4) as bar:
        bar.advance()
        bar.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["judging: 1/4", "judging: 3/4"]


def test_bytes_are_shown_in_gigabytes(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("hashing", 3_000_000_000, "bytes") as bar:
        bar.advance(3_000_000_000)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "hashing: 3.0 GB" and last.startswith("hashing: 3.0/3.0 GB, ")


def test_nothing_is_shown_where_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("hashing", 3, "bytes", shown=False) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == "" and bar.done == 3


def test_a_terminal_gets_bars() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress.bars(console) as add:
        first, second = add("first file", 100, "bytes"), add("second file", None, "bytes")
        first.update(50, 100)
        second.advance(7)
    shown = console.file.getvalue()
    assert "first file" in shown and "second file" in shown and "0.0/? GB" in shown


def test_a_bar_on_standard_error_leaves_the_output_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress.watch(completions(2), 2))
    assert capsys.readouterr().out == ""
