"""evalkit card run=DIR [--reference llm-jp-3]

Prints the evaluation section of a model card in Markdown, as the llm-jp-3 model card has it: llm-jp-eval's
categories and the Japanese MT-Bench, whichever the run has.

    evalkit card run=results/my-model                      all runs of the model
    evalkit card run=results/my-model --reference          with the rows of its published siblings
    evalkit card run=results/my-model --reference llm-jp-3-13b
    evalkit card run=DIR >> README.md

What differs from the card's own protocol is said on standard error. `leaderboard --format model-card` writes
the hub's metadata too.
"""

import sys
from pathlib import Path

from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.core.secrets import printable
from evalkit.leaderboard.board import build_board
from evalkit.leaderboard.card import card_section, mt_bench_deviations, published_rows
from evalkit.leaderboard.rows import measured
from evalkit.leaderboard.tables import of_models
from evalkit.tasks.spec import PROTOCOL_VERSION

OPTIONS = ("run", "reference")


def run(config: Config) -> int:
    """Prints the section; exit code 0 whatever the figures are."""
    if config.run is None:
        raise InputError("which run? None is given", fix="card run=results/<model>")
    rows = measured(build_board([Path(config.run).expanduser()], partial=True).rows)
    text = card_section(rows, published_rows(config.reference) if config.reference else ())
    sys.stdout.write(printable(text))
    usual = f"llm-jp-eval-{PROTOCOL_VERSION}"
    differing: dict[str, list[str]] = {}
    for row in rows:
        if row.cells and row.rules != usual:
            differing.setdefault(row.rules, []).append(row.model)
        bench = row.mt_bench_run
        if bench and (found := mt_bench_deviations(bench)):
            rules = ", ".join(f"{key}={value}" for key, value in found.items())
            differing.setdefault(rules, []).append(row.model)
    for rules, models in differing.items():
        said = of_models(models, f"not the card's protocol: {rules}")
        print(printable(f"evalkit: {said}"), file=sys.stderr)
    return 0
