"""Comparisons of judges in the terminal: calibration, agreement of ratings, agreement of votes."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from evalkit.core.words import t
from evalkit.mtbench.agreement import RatingAgreement, VoteAgreement
from evalkit.mtbench.calibrate import GPT4_NOISE, Calibration


def print_calibration(calibration: Calibration, console: Console) -> None:
    """Prints a calibration: the table by category, the averages, and what gpt-4 agrees with itself."""
    label = calibration.plan.judge.label
    _line(
        console,
        t("{label} beside the judgments by {reference}", label=label, reference=calibration.reference),
    )
    print_ratings(calibration.agreement, calibration.reference, label, console)
    for model, averages in calibration.averages.items():
        shown = " -> ".join(_number(averages[name], 2) for name in ("reference", "other"))
        rule = calibration.plan.preset.aggregation
        _line(
            console, "  " + t("{model}: average {shown} (rule {rule})", model=model, shown=shown, rule=rule)
        )
    noise = t(
        "for comparison, gpt-4 against itself: same rating {same}, within one point {near}, deviation {sd}",
        same=f"{GPT4_NOISE['exact']:.0%}",
        near=f"{GPT4_NOISE['within_one']:.0%}",
        sd=GPT4_NOISE["deviation"],
    )
    _line(console, f"  {noise}")
    if calibration.failed:
        text = "{n} judgments failed at the service: run the same command again"
        _line(console, f"  {t(text, n=calibration.failed)}")


def print_ratings(
    agreement: Mapping[str, RatingAgreement], reference: str, other: str, console: Console
) -> None:
    """Prints how two judges rate the same answers."""
    shown = _table("", "n", "same", "within 1", "rank corr.", "offset", "deviation", reference, other)
    for scope, value in agreement.items():
        shown.add_row(
            scope,
            str(value.n),
            _percent(value.exact),
            _percent(value.within_one),
            _number(value.rank_correlation, 2),
            _number(value.offset, 2, sign=True),
            _number(value.deviation, 2),
            _number(value.mean_reference, 2),
            _number(value.mean_other, 2),
        )
    console.print(shown)
    if (lost := agreement["all"].only_one) > 0:
        _line(console, f"  {t('{n} turns were rated by only one of them and are left out', n=lost)}")


def print_votes(agreements: Sequence[VoteAgreement], console: Console) -> None:
    """Prints how far kinds of judges vote alike."""
    shown = _table("judges", "turn", "agree", "n", "without ties", "n")
    for value in agreements:
        shown.add_row(
            " and ".join(value.judges),
            str(value.turn),
            _number(value.agree, 2),
            str(value.n),
            _number(value.agree_without_ties, 2),
            str(value.n_without_ties),
        )
    console.print(shown)


def _table(*columns: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for place, column in enumerate(columns):
        shown.add_column(t(column) if column else "", justify="left" if place == 0 else "right")
    return shown


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _number(value: float | None, digits: int, *, sign: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
