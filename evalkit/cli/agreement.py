"""python -m evalkit agreement FILE_OR_RUN [FILE_OR_RUN ...]

How far judges agree. Given votes on pairs (FastChat's pairwise logs, human votes as JSONL with
question_id, turn, model_a, model_b, winner, judge, or both): the share of equal votes between kinds
of judges, with ties and without. Given ratings (runs, or FastChat's single logs with preset=): how
two judges rate the same answers.

    python -m evalkit agreement gpt-4_pair.jsonl human_votes.jsonl
    python -m evalkit agreement results/MODEL/mt-bench-ja/RUN          (judges of one run)
    python -m evalkit agreement first_run.jsonl second_run.jsonl preset=fastchat
"""

from evalkit.core.config import Config
from evalkit.core.words import t

OPTIONS = ("out", "preset", "language", "mirror", "offline", "lang")


def run(config: Config) -> int:
    """Prints the agreement of the judges in the files and runs that are named."""
    from rich.console import Console

    from evalkit.cli.judge_comparisons import print_ratings, print_votes
    from evalkit.mtbench.agreement import agreement

    found = agreement(config)
    console = Console()
    if found.votes:
        print_votes(found.votes, console)
    for (reference, other), ratings in found.ratings.items():
        console.print(
            t("{other} beside {reference}", other=other, reference=reference), markup=False, highlight=False
        )
        print_ratings(ratings, reference, other, console)
    return 0
