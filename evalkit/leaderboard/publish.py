"""A board -> files, by format."""

from collections.abc import Callable, Sequence
from pathlib import Path

from evalkit.core.config import Config
from evalkit.core.durable import write_text_atomic
from evalkit.core.errors import InputError
from evalkit.core.text import did_you_mean, folder_name
from evalkit.core.words import t
from evalkit.leaderboard.build import Board, jaster_row
from evalkit.leaderboard.rows import Kind, Run

DEFAULT = ("csv", "markdown", "html")


def formats_of(option: str | None) -> tuple[str, ...]:
    """The formats `--format` names, the three tables by default.

    Raises:
        InputError: an unknown one.
    """
    names = tuple(dict.fromkeys(option.split(","))) if option else DEFAULT
    for name in names:
        if name not in WRITERS:
            raise InputError(
                f"unknown format {name!r}{did_you_mean(name, WRITERS)}",
                where="option --format",
                fix=f"one or more of {','.join(WRITERS)}",
            )
    return names


def publish(board: Board, out: Path, formats: Sequence[str], config: Config) -> list[str]:
    """Writes the board in each format; returns a line for people on each thing written.

    Raises:
        EvalkitError: the folder cannot be written, or a format's library is missing.
    """
    return [line for name in formats for line in WRITERS[name](board, out, config)]


def write_page(path: Path, runs: Sequence[Run], config: Config) -> None:
    """Writes the page of just these runs."""
    from evalkit.leaderboard.page import page_html

    board = Board(tuple(jaster_row(run) for run in runs), ())
    write_text_atomic(path, page_html(board, config))


def _csv(board: Board, out: Path, config: Config) -> list[str]:
    from evalkit.leaderboard.tables import csv_text

    return _written(out / "leaderboard.csv", csv_text(board.rows))


def _markdown(board: Board, out: Path, config: Config) -> list[str]:
    from evalkit.leaderboard.tables import markdown

    return _written(out / "leaderboard.md", markdown(board))


def _html(board: Board, out: Path, config: Config) -> list[str]:
    from evalkit.leaderboard.page import page_html

    return _written(out / "leaderboard.html", page_html(board, config))


def _model_card(board: Board, out: Path, config: Config) -> list[str]:
    from evalkit.leaderboard.model_card import model_card

    lines: list[str] = []
    for number, row in enumerate(row for row in board.rows if row.kind is Kind.run):
        name = folder_name(row.model)
        path = out / f"model-card-{name}.md"
        if any(str(path) in line for line in lines):
            path = out / f"model-card-{name}-{number}.md"
        lines += _written(path, model_card(row))
    return lines


def _lm_eval(board: Board, out: Path, config: Config) -> list[str]:
    from evalkit.leaderboard.exporters.lm_eval import write_lm_eval

    return [t("written: {path}", path=path) for path in write_lm_eval(board.rows, out)]


def _wandb(board: Board, out: Path, config: Config) -> list[str]:
    from evalkit.leaderboard.exporters.wandb import log_to_wandb

    return log_to_wandb(board.rows, out)


def _written(path: Path, text: str) -> list[str]:
    write_text_atomic(path, text)
    return [t("written: {path}", path=path)]


WRITERS: dict[str, Callable[[Board, Path, Config], list[str]]] = {
    "csv": _csv,
    "markdown": _markdown,
    "html": _html,
    "model-card": _model_card,
    "lm-eval": _lm_eval,
    "wandb": _wandb,
}
