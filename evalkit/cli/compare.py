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

from evalkit.core.config import Config
from evalkit.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from evalkit.leaderboard.rows import Run

OPTIONS = ("partial", "long", "steps", "out", "metrics.resamples", "lang")


def run(config: Config) -> int:
    """Prints the comparison of the runs that `config.folders` names; exit code 0 whatever it says."""
    from evalkit.leaderboard.compare import find_run

    if len(config.folders) < 2:
        raise InputError("which runs? Two or more are needed", fix="compare results/A/... results/B/...")
    runs = [find_run(Path(folder).expanduser()) for folder in config.folders]
    return _steps(runs, config) if config.steps else _pairs(runs, config)


def _pairs(runs: "Sequence[Run]", config: Config) -> int:
    from rich.console import Console

    from evalkit.leaderboard.compare import compare
    from evalkit.leaderboard.comparison_report import print_comparison, write_comparisons

    first, *others = runs
    comparisons = [
        compare(first, other, partial=config.partial, resamples=config.metrics.resamples) for other in others
    ]
    written = write_comparisons(Path(config.out).expanduser(), comparisons, config) if config.out else []
    console = Console()
    for comparison in comparisons:
        print_comparison(comparison, console, long=config.long)
    _print_written(written, console)
    return 0


def _steps(runs: "Sequence[Run]", config: Config) -> int:
    from rich.console import Console

    from evalkit.leaderboard.steps import series_of
    from evalkit.leaderboard.steps_report import print_steps, trace, write_steps

    points = trace(series_of(runs), partial=config.partial, resamples=config.metrics.resamples)
    written = write_steps(Path(config.out).expanduser(), points, config) if config.out else []
    console = Console()
    print_steps(points, console)
    _print_written(written, console)
    return 0


def _print_written(paths: "Sequence[Path]", console: "Console") -> None:
    from evalkit.core.words import t

    for path in paths:
        console.print(t("written: {path}", path=path), markup=False, soft_wrap=True, highlight=False)
