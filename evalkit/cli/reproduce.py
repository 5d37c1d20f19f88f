"""evalkit reproduce run=DIR [--reference MODEL]

Prints each cell of a run next to the llm-jp-3 model card's, with the difference and whether the
card's figure lies in the run's 95 % interval: llm-jp-eval's categories, or the Japanese MT-Bench.

    evalkit reproduce run=results/llm-jp-3-1.8b/jaster/<run id>
    evalkit reproduce run=results/llm-jp-3-1.8b-instruct/mt-bench-ja/<run id>
    evalkit reproduce run=DIR --reference llm-jp-3-1.8b     another model's row
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from evalkit.cli.printing import new_table, print_line, report_console
from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.core.text import did_you_mean
from evalkit.core.words import shown, t
from evalkit.leaderboard.card import DIGITS, Card, RunTable, contains, load_cards, read_run_tables
from evalkit.leaderboard.rows import NO_FIGURE
from evalkit.records.results import Figure
from evalkit.records.run_folder import RESULTS, one_run

OPTIONS = ("run", "reference", "lang")


def run(config: Config) -> int:
    """Prints the comparison; exit code 0 whatever it shows."""
    if config.run is None:
        raise InputError("which run? None is given", fix="reproduce run=results/<model>/<suite>/<run id>")
    folder = one_run(config.run)
    found = read_run_tables(folder / RESULTS if folder.is_dir() else folder)
    for own in found:
        _check_figures(own, folder)
    cards = [_card(config.reference or own.model, own.table) for own in found]
    console = report_console()
    for own, card in zip(found, cards, strict=True):
        console.print(comparison(own, card))
        _print_remarks(own, card, console)
    return 0


def _check_figures(own: RunTable, folder: Path) -> None:
    """Refuses a run without any figure of the card, as those of other benchmarks are."""
    columns = next(iter(load_cards(own.table).values())).columns
    if all(own.cells.get(name, NO_FIGURE).value is None for name in columns):
        raise InputError(
            f"the run has no figure of the card's: {', '.join(columns)}",
            where=folder,
            fix="a run of suite=jaster, of one of its categories, or of suite=mt-bench-ja",
        )


def _card(model: str | None, table: str) -> Card:
    cards = load_cards(table)
    if model not in cards:
        near = did_you_mean(str(model), cards) if model else ""
        raise InputError(
            f"the card has no row for {model}{near}" if model else "the run names no model",
            where=table,
            fix=f"--reference MODEL, one of {', '.join(cards)}",
        )
    return cards[str(model)]


def comparison(own: RunTable, card: Card) -> Table:
    """The average and each category: the run, its interval, the card, the difference, inside or not."""
    title = t("{model} and the card's {card}, {table}", model=own.model, card=card.model, table=own.table)
    columns = ("", "run", "95 % interval", "card", "difference", "card in interval")
    table = new_table(*columns, title=title, padding=(0, 1))
    table.columns[2].justify = "left"
    for column, figure in card.columns.items():
        mark = " *" if column in own.partial else ""
        table.add_row(f"{column}{mark}", *_cells(own.cells.get(column), figure, DIGITS[own.table]))
    return table


def _cells(figure: Figure | None, published: float, digits: int) -> tuple[str, str, str, str, str]:
    if figure is None or figure.value is None:
        return "-", "", f"{published:.{digits}f}", "", ""
    inside = contains(figure, published, digits)
    low, high = (f"{end:.{digits}f}" for end in figure.ci95 or (0, 0))
    interval = t("{low} to {high}", low=low, high=high) if figure.ci95 else "–"
    verdict = "" if inside is None else (t("yes") if inside else t("NO"))
    shown = (f"{figure.value:.{digits}f}", interval, f"{published:.{digits}f}")
    return (*shown, f"{figure.value - published:+.{digits}f}", verdict)


def _print_remarks(own: RunTable, card: Card, console: Console) -> None:
    digits = DIGITS[own.table]
    verdicts = {
        name: contains(own.cells[name], figure, digits)
        for name, figure in card.columns.items()
        if name in own.cells
    }
    decided = [verdict for verdict in verdicts.values() if verdict is not None]
    console.print(
        t("{n} of {all} figures of the card lie in the run's interval", n=sum(decided), all=len(decided))
    )
    if open_ := sum(
        verdict is None and own.cells[name].value is not None for name, verdict in verdicts.items()
    ):
        console.print(t("{n} figures have no interval: their samples do not tell", n=open_))
    if own.reasons:
        console.print(t("the run is partial (* marks incomplete categories):"))
        for reason in own.reasons:
            print_line(console, f"  {shown(reason)}")
    if own.deviations:
        listed = ", ".join(f"{key}={value}" for key, value in own.deviations.items())
        print_line(console, t("the run deviates from the protocol: {options}", options=listed))
