"""python -m evalkit reproduce run=DIR [--reference MODEL]

Prints each cell of a run beside the llm-jp-3 model card's, with the difference and whether the
card's figure lies in the run's 95 % interval.

    python -m evalkit reproduce run=results/llm-jp-3-1.8b/jaster/<run id>
    python -m evalkit reproduce run=DIR --reference llm-jp-3-1.8b     another model's row

options: run
"""

from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.config import Config
from evalkit.errors import InputError
from evalkit.nearest import did_you_mean
from evalkit.reference import JASTER_TABLE, ROUNDING, Card, load_cards
from evalkit.results import AVERAGE, Results, Value, read_results
from evalkit.words import said, t

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def run(config: Config) -> int:
    """Prints the comparison; exit code 0 whatever it shows."""
    from rich.console import Console

    if config.run is None:
        raise InputError("which run? None is given", fix="reproduce run=results/<model>/<suite>/<run id>")
    folder = Path(config.run).expanduser()
    results = read_results(folder / "results.json" if folder.is_dir() else folder)
    card = _card(config.reference or results.run.get("model"))
    console = Console()
    console.print(comparison(results, card))
    _print_remarks(results, card, console)
    return 0


def _card(model: object) -> Card:
    cards = load_cards()
    if model not in cards:
        near = did_you_mean(str(model), cards) if model else ""
        raise InputError(
            f"the card has no row for {model}{near}" if model else "the run names no model",
            where=JASTER_TABLE,
            fix=f"--reference MODEL, one of {', '.join(cards)}",
        )
    return cards[str(model)]


def contains(value: Value, figure: float) -> bool | None:
    """Whether a published figure, known to half a unit of its last digit, lies in the interval of a value."""
    if value.ci95 is None:
        return None
    low, high = value.ci95
    return low - ROUNDING <= figure <= high + ROUNDING


def comparison(results: Results, card: Card) -> "Table":
    """AVG and the nine categories: the run, its interval, the card, the difference, inside or not."""
    from rich import box
    from rich.table import Table

    title = said(f"{results.run.get('model')} and the card's {card.model}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="bold")
    for header in ("", "run", "95 % interval", "card", "difference", "card in interval"):
        table.add_column(
            t(header) if header else "", justify="left" if header in ("", "95 % interval") else "right"
        )
    for column, figure in card.columns.items():
        value = results.average.get(column) if column == AVERAGE else results.categories.get(column)
        mark = " *" if column in results.partial.categories else ""
        table.add_row(f"{column}{mark}", *_cells(value, figure))
    return table


def _cells(value: Value | None, figure: float) -> tuple[str, str, str, str, str]:
    if value is None or value.value is None:
        return "-", "", f"{figure:.4f}", "", ""
    inside = contains(value, figure)
    interval = f"{value.ci95[0]:.4f} to {value.ci95[1]:.4f}" if value.ci95 else ""
    verdict = "" if inside is None else (t("yes") if inside else t("NO"))
    return f"{value.value:.4f}", interval, f"{figure:.4f}", f"{value.value - figure:+.4f}", verdict


def _print_remarks(results: Results, card: Card, console: "Console") -> None:
    cells = {**results.average, **results.categories}
    verdicts = [contains(cells[name], figure) for name, figure in card.columns.items() if name in cells]
    decided = [verdict for verdict in verdicts if verdict is not None]
    console.print(said(f"{sum(decided)} of {len(decided)} figures of the card lie in the run's interval"))
    if results.partial.partial:
        console.print(t("the run is partial (* marks incomplete categories):"))
        for reason in results.partial.reasons or ["a category is incomplete"]:
            console.print(f"  {said(reason)}", markup=False, soft_wrap=True)
    if results.protocol.deviations:
        listed = ", ".join(f"{key}={value}" for key, value in results.protocol.deviations.items())
        console.print(said(f"the run deviates from the protocol: {listed}"), markup=False, soft_wrap=True)
