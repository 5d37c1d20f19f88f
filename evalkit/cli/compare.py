"""python -m evalkit compare A B [C ...] [--partial] [--long] [--steps]

Says which of two runs is better, and where: differences per dataset, category and average with
paired 95 % intervals and p-values, and the samples that flipped. Every further run is compared with
the first. Runs whose data, prompts or protocol differ are refused.

    python -m evalkit compare results/A/jaster/<run> results/B/jaster/<run>
    python -m evalkit compare A B --partial          only what both have
    python -m evalkit compare A B out=DIR            also comparison.json, flipped.csv, comparison.html
    python -m evalkit compare results/my-model-step-* --steps    checkpoints, step by step; out=DIR plots them

A run is named by its folder, or by any folder that holds just one finished run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.cli.leaderboard import page_options
from evalkit.core.config import Config
from evalkit.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from evalkit.leaderboard.runs import Run

OPTIONS = ("partial", "long", "steps", "out", "metrics.resamples", "lang")


def run(config: Config) -> int:
    """Prints the comparison of the runs that `config.folders` names; exit code 0 whatever it says."""
    from rich.console import Console

    from evalkit.core.words import t
    from evalkit.leaderboard.collect import find_run

    if len(config.folders) < 2:
        raise InputError("which runs? Two or more are needed", fix="compare results/A/... results/B/...")
    runs = [find_run(Path(folder).expanduser()) for folder in config.folders]
    console = Console()
    written = (_steps if config.steps else _pairs)(runs, config, console)
    for path in written:
        console.print(t("written: {path}", path=path), markup=False, soft_wrap=True, highlight=False)
    return 0


def _pairs(runs: "Sequence[Run]", config: Config, console: "Console") -> "Sequence[Path]":
    """Compares every further run with the first; returns what it wrote."""
    from evalkit.cli.compare_report import print_comparison
    from evalkit.leaderboard.compare import compare
    from evalkit.leaderboard.publish import write_comparisons

    first, *others = runs
    partial, resamples = config.partial, config.metrics.resamples
    comparisons = [compare(first, other, partial=partial, resamples=resamples) for other in others]
    out = Path(config.out).expanduser() if config.out else None
    written = write_comparisons(out, comparisons, page_options(config)) if out else []
    for comparison in comparisons:
        print_comparison(comparison, console, long=config.long)
    return written


def _steps(runs: "Sequence[Run]", config: Config, console: "Console") -> "Sequence[Path]":
    """Compares every checkpoint with the one before; returns what it wrote."""
    from evalkit.cli.compare_report import print_steps
    from evalkit.leaderboard.publish import write_steps
    from evalkit.leaderboard.steps import trace

    points = trace(runs, partial=config.partial, resamples=config.metrics.resamples)
    out = Path(config.out).expanduser() if config.out else None
    written = write_steps(out, points, page_options(config)) if out else []
    print_steps(points, console)
    return written
