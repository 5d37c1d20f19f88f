"""python -m evalkit leaderboard [FOLDER or FILE ...] [--partial] [--reference llm-jp-3] [--format F]

Collects finished runs into leaderboard.csv, leaderboard.md and leaderboard.html, the last one page
that needs no network and no server.

    python -m evalkit leaderboard results/
    python -m evalkit leaderboard results/ --reference llm-jp-3     beside the published rows
    python -m evalkit leaderboard results/ --partial                partial runs too, marked
    python -m evalkit leaderboard results/ old/result.json          a result of llm-jp-eval itself
    python -m evalkit leaderboard results/ --format model-card      README blocks with model-index

--format takes csv, markdown, html, model-card, lm-eval or wandb, or several with commas.
wandb needs its extra; WANDB_MODE chooses where it writes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.core.config import Config

if TYPE_CHECKING:
    from evalkit.leaderboard.page import PageOptions

OPTIONS = ("partial", "reference", "format", "out", "data_dir", "mirror", "lang")


def run(config: Config) -> int:
    """Writes the leaderboard; exit code 0, also when some runs cannot be shown."""
    from rich.console import Console

    from evalkit.cli.leaderboard_report import print_board
    from evalkit.leaderboard.board import build_board
    from evalkit.leaderboard.publish import formats_of, publish

    places = [Path(folder).expanduser() for folder in config.folders] or [Path("results")]
    formats = formats_of(config.format)
    board = build_board(places, partial=config.partial, reference=config.reference)
    first = places[0] if places[0].is_dir() else places[0].parent
    out = Path(config.out).expanduser() if config.out else first
    written = publish(board, out, formats, page_options(config))
    console = Console()
    print_board(board, console)
    for line in written:
        console.print(line, markup=False, soft_wrap=True, highlight=False)
    return 0


def page_options(config: Config) -> "PageOptions":
    """What the options say of a page."""
    from evalkit.leaderboard.page import PageOptions

    return PageOptions(config.lang, config.metrics.resamples, config.data_dir, config.mirror)
