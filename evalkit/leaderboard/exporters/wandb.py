"""Rows -> Weights & Biases runs, one each, in the project `evalkit` (WANDB_PROJECT).

WANDB_MODE decides: online, or offline, which writes to <out>/wandb for a later `wandb sync`.
Without an API key it is offline.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from evalkit.core.errors import EvalkitError
from evalkit.leaderboard.exporters.figures import facts_of, measured, metrics_of
from evalkit.leaderboard.rows import Row

PROJECT = "evalkit"


def log_to_wandb(rows: Sequence[Row], out: Path) -> list[str]:
    """Logs every measured row; returns a line for people on each.

    Raises:
        EvalkitError: W&B is not installed, or refuses.
    """
    try:
        import wandb
    except ImportError:
        raise EvalkitError("W&B is not installed", fix="pip install 'evalkit[wandb]'") from None
    if "WANDB_MODE" not in os.environ and "WANDB_API_KEY" not in os.environ:
        os.environ["WANDB_MODE"] = "offline"
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in measured(rows):
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=row.model,
                dir=str(out),
                config={**facts_of(row), **(row.run.results.protocol.options if row.run else {})},
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off"),
            )
            run.summary.update(metrics_of(row))
            folder = run.dir
            run.finish()
        except wandb.errors.Error as error:
            raise EvalkitError(f"W&B refused: {error}", fix="WANDB_MODE=offline") from None
        lines.append(f"wandb: {row.model} ({run.settings.mode}) -> {Path(folder).parent}")
    return lines
