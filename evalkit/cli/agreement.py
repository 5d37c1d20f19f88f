"""evalkit agreement FILE_OR_RUN [FILE_OR_RUN ...]

How far judges agree. Given votes on pairs (FastChat's pairwise logs, human votes as JSONL with
question_id, turn, model_a, model_b, winner, judge, or both): the share of equal votes between kinds
of judges, with ties and without. Given ratings (runs, or FastChat's single logs with preset=): how
two judges rate the same answers.

    evalkit agreement gpt-4_pair.jsonl human_votes.jsonl
    evalkit agreement results/MODEL/mt-bench-ja/RUN          (judges of one run)
    evalkit agreement first_run.jsonl second_run.jsonl preset=fastchat
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from evalkit.cli.command import path_of
from evalkit.cli.printing import new_table, number, print_line, report_console
from evalkit.core.config import Config
from evalkit.core.words import t
from evalkit.mtbench.agreement import RatingAgreement, VoteAgreement, agreement
from evalkit.mtbench.books import BookOptions

OPTIONS = ("out", "preset", "language", "mirror", "offline", "lang")


def run(config: Config) -> int:
    """Prints the agreement of the judges in the files and runs that are named."""
    paths = [Path(word).expanduser() for word in config.folders]
    found = agreement(paths, BookOptions.of(config), path_of(config.out))
    console = report_console()
    if found.votes:
        _print_votes(found.votes, console)
    for (reference, other), ratings in found.ratings.items():
        print_line(console, t("{other} beside {reference}", other=other, reference=reference))
        print_ratings(ratings, reference, other, console)
    return 0


def print_ratings(
    agreement: Mapping[str, RatingAgreement], reference: str, other: str, console: Console
) -> None:
    """Prints how two judges rate the same answers."""
    shown = new_table(
        "", "n", "same", "within 1", "rank corr.", "offset", "deviation", reference, other, pad_edge=False
    )
    for scope, value in agreement.items():
        shown.add_row(
            scope,
            str(value.n),
            _percent(value.exact),
            _percent(value.within_one),
            number(value.rank_correlation, 2),
            number(value.offset, 2, sign=True),
            number(value.deviation, 2),
            number(value.mean_reference, 2),
            number(value.mean_other, 2),
        )
    console.print(shown)
    if (lost := agreement["all"].only_one) > 0:
        print_line(console, f"  {t('{n} turns were rated by only one of them and are left out', n=lost)}")


def _print_votes(agreements: Sequence[VoteAgreement], console: Console) -> None:
    """Prints how far kinds of judges vote alike."""
    shown = new_table("judges", "turn", "agree", "n", "without ties", "n", pad_edge=False)
    for value in agreements:
        shown.add_row(
            " and ".join(value.judges),
            str(value.turn),
            number(value.agree, 2),
            str(value.n),
            number(value.agree_without_ties, 2),
            str(value.n_without_ties),
        )
    console.print(shown)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
