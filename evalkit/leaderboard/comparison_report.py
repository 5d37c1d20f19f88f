"""A comparison for people (terminal) and for programs (comparison.json, flipped.csv)."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalkit.core.config import Config
from evalkit.core.durable import write_text_atomic
from evalkit.core.secrets import printable
from evalkit.core.words import said, t
from evalkit.leaderboard.compare import Compared, Comparison, Flip
from evalkit.leaderboard.publish import write_page
from evalkit.leaderboard.sentences import p_text, sentences
from evalkit.leaderboard.tables import spreadsheet_text

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 3
_WIDTH = 40
# From this width on there is room for four digits.
_WIDE = 90


def print_comparison(comparison: Comparison, console: Console, *, long: bool = False) -> None:
    """Prints the sentences, the table and flipped samples (all of them with `long`)."""
    a, b = escape(comparison.a.model), escape(comparison.b.model)
    console.print(f"[bold]{a}[/] - [bold]{b}[/]", highlight=False)
    for sentence in sentences(comparison):
        console.print(f"  {escape(sentence)}", soft_wrap=True, highlight=False)
    console.print(_table(comparison, digits=4 if console.width >= _WIDE else 3))
    for remark in comparison.remarks:
        console.print(f"  {escape(said(remark))}", soft_wrap=True, highlight=False)
    _print_flips(comparison, console, long)


def _table(comparison: Comparison, digits: int) -> Table:
    table = Table(box=None, header_style="bold underline", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for header in ("A", "B", t("difference")):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column(t("95 % interval"), no_wrap=True)
    for header in ("p", "Holm", t("flipped")):
        table.add_column(header, justify="right", no_wrap=True)
    average = [comparison.average] if comparison.average else []
    for part in (comparison.datasets, comparison.categories, average):
        for line in part:
            table.add_row(*_cells(line, digits), style="bold" if line.verdict in ("a", "b") else None)
    return table


def _cells(line: Compared, digits: int) -> tuple[str, ...]:
    interval = f"{line.ci95[0]:+.{digits}f} {line.ci95[1]:+.{digits}f}" if line.ci95 else "–"
    return (
        line.name,
        f"{line.a:.{digits}f}",
        f"{line.b:.{digits}f}",
        f"{line.difference:+.{digits}f}",
        interval,
        p_text(line.p),
        p_text(line.p_holm) if line.kind != "average" else "",
        f"{line.flips}/{line.n}",
    )


def _print_flips(comparison: Comparison, console: Console, long: bool) -> None:
    if not comparison.flips:
        console.print(f"  {t('no sample is scored differently')}", highlight=False)
        return
    console.print(t("flipped samples (A's score, B's score, A's answer, B's answer):"), highlight=False)
    by_dataset: dict[str, list[Flip]] = {}
    for flip in comparison.flips:
        by_dataset.setdefault(flip.dataset, []).append(flip)
    for flips in by_dataset.values():
        for flip in flips if long else flips[:_SHOWN]:
            answers = " | ".join(_short(text) for text in (flip.prediction_a, flip.prediction_b))
            line = f"  {flip.id}  {flip.a:.3g} {flip.b:.3g}  {answers}"
            console.print(escape(line), soft_wrap=True, highlight=False)
        if not long and len(flips) > _SHOWN:
            more = t("and {n} more (--long, or out=DIR for a file)", n=len(flips) - _SHOWN)
            console.print(f"  {more}", style="dim", highlight=False)


def _short(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def comparison_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Everything but the answers: for each comparison its runs, sentences, lines and remarks."""
    return [
        {
            "a": {"model": one.a.model, "run": str(one.a.folder)},
            "b": {"model": one.b.model, "run": str(one.b.folder)},
            "sentences": sentences(one),
            "average": asdict(one.average) if one.average else None,
            "categories": [asdict(line) for line in one.categories],
            "datasets": [asdict(line) for line in one.datasets],
            "remarks": list(one.remarks),
        }
        for one in comparisons
    ]


def flipped_frame(comparisons: Sequence[Comparison]) -> "pd.DataFrame":
    """One line per sample that two models score differently; no answer can run in a spreadsheet."""
    import pandas as pd

    columns = ["model_a", "model_b", "dataset", "id", "a", "b", "prediction_a", "prediction_b"]
    rows = [
        {
            "model_a": spreadsheet_text(one.a.model),
            "model_b": spreadsheet_text(one.b.model),
            **asdict(flip),
            "prediction_a": spreadsheet_text(flip.prediction_a),
            "prediction_b": spreadsheet_text(flip.prediction_b),
        }
        for one in comparisons
        for flip in one.flips
    ]
    return pd.DataFrame(rows, columns=columns)


def write_comparisons(out: Path, comparisons: Sequence[Comparison], config: Config) -> list[Path]:
    """Writes comparison.json, flipped.csv and comparison.html for comparisons with one and the same A."""
    content = json.dumps(comparison_json(comparisons), ensure_ascii=False, indent=2)
    write_text_atomic(out / "comparison.json", content + "\n")
    table = flipped_frame(comparisons).to_csv(index=False, lineterminator="\r\n")
    write_text_atomic(out / "flipped.csv", f"\ufeff{table}")
    write_page(out / "comparison.html", [comparisons[0].a, *(one.b for one in comparisons)], config)
    return [out / name for name in ("comparison.json", "flipped.csv", "comparison.html")]
