"""A board, comparisons or checkpoints -> files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from evalkit.core.durable import write_text_atomic
from evalkit.core.errors import InputError
from evalkit.core.text import did_you_mean
from evalkit.core.words import t
from evalkit.leaderboard.board import Board
from evalkit.leaderboard.compare import Comparison
from evalkit.leaderboard.comparison_report import comparison_json, flipped_frame
from evalkit.leaderboard.exports import lm_eval_files, log_to_wandb, model_card_files
from evalkit.leaderboard.page import PageOptions, page_html
from evalkit.leaderboard.rows import jaster_row
from evalkit.leaderboard.runs import FinishedRun
from evalkit.leaderboard.steps import Checkpoint, steps_frame
from evalkit.leaderboard.tables import csv_text, frame_text, markdown

FORMATS = ("csv", "markdown", "html", "model-card", "lm-eval", "wandb")
DEFAULT = ("csv", "markdown", "html")


def formats_of(option: str | None) -> tuple[str, ...]:
    """The formats `--format` names, the three tables by default.

    Raises:
        InputError: an unknown one.
    """
    names = tuple(dict.fromkeys(option.split(","))) if option else DEFAULT
    for name in names:
        if name not in FORMATS:
            raise InputError(
                f"unknown format {name!r}{did_you_mean(name, FORMATS)}",
                where="option --format",
                fix=f"one or more of {','.join(FORMATS)}",
            )
    return names


def publish(board: Board, out: Path, formats: Sequence[str], page: PageOptions) -> list[str]:
    """Writes the board in each format; returns a line for people on each thing written.

    Raises:
        InputError: a format has nothing to write.
        EvalkitError: the folder cannot be written, or a format's library is missing.
    """
    lines = []
    for name in formats:
        if name == "wandb":
            lines += log_to_wandb(board.rows, out)
            continue
        files = [*_files(board, name, page)]
        if not files:
            raise InputError(
                "no row was measured here that this format has figures of",
                where=f"option --format, {name}",
                fix=f"--format {','.join(DEFAULT)}",
            )
        for file, text in files:
            write_text_atomic(out / file, text)
            lines.append(t("written: {path}", path=out / file))
    return lines


def _files(board: Board, name: str, page: PageOptions) -> Iterator[tuple[str, str]]:
    """The files of a format: names and contents."""
    match name:
        case "csv":
            yield "leaderboard.csv", csv_text(board.rows)
        case "markdown":
            yield "leaderboard.md", markdown(board)
        case "html":
            yield "leaderboard.html", page_html(board, page)
        case "model-card":
            yield from model_card_files(board.rows)
        case "lm-eval":
            yield from lm_eval_files(board.rows)


def write_comparisons(out: Path, comparisons: Sequence[Comparison], page: PageOptions) -> list[Path]:
    """Writes comparison.json, flipped.csv and comparison.html for comparisons with one and the same A."""
    content = json.dumps(comparison_json(comparisons), ensure_ascii=False, indent=2)
    write_text_atomic(out / "comparison.json", content + "\n")
    write_text_atomic(out / "flipped.csv", frame_text(flipped_frame(comparisons)))
    _write_page(out / "comparison.html", [comparisons[0].a, *(one.b for one in comparisons)], page)
    return [out / name for name in ("comparison.json", "flipped.csv", "comparison.html")]


def write_steps(out: Path, points: Sequence[Checkpoint], page: PageOptions) -> list[Path]:
    """Writes steps.csv and steps.html, whose tab of checkpoints plots the scores."""
    write_text_atomic(out / "steps.csv", frame_text(steps_frame(points)))
    _write_page(out / "steps.html", [point.run for point in points], page)
    return [out / "steps.csv", out / "steps.html"]


def _write_page(path: Path, runs: Sequence[FinishedRun], page: PageOptions) -> None:
    board = Board(tuple(jaster_row(run) for run in runs), ())
    write_text_atomic(path, page_html(board, page))
