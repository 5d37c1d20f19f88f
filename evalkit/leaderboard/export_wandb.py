"""Rows -> Weights & Biases runs, one each, in the project `evalkit` (WANDB_PROJECT).

WANDB_MODE decides: online, or offline, which writes to <out>/wandb for a later `wandb sync`.
Without an API key it is offline.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from evalkit.core.errors import EvalkitError
from evalkit.leaderboard.rows import Row, measured

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
                config={**_facts(row), **(row.run.results.protocol.options if row.run else {})},
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off"),
            )
            run.summary.update(_figures(row))
            folder = run.dir
            run.finish()
        except wandb.errors.Error as error:
            raise EvalkitError(f"W&B refused: {error}", fix="WANDB_MODE=offline") from None
        lines.append(f"wandb: {row.model} ({run.settings.mode}) -> {Path(folder).parent}")
    return lines


def _figures(row: Row) -> dict[str, float]:
    """Every figure by name: `AVG`, `NLI`, `mt_bench/coding`, `datasets/jamp_exact_match`, each with
    `_low` and `_high` where there is an interval.
    """
    groups = (("", row.cells), ("mt_bench/", row.mt_bench), ("datasets/", row.datasets))
    found: dict[str, float] = {}
    for prefix, cells in groups:
        for name, cell in cells.items():
            if cell.value is not None:
                found[prefix + name] = cell.value
                if cell.ci95:
                    found[f"{prefix}{name}_low"], found[f"{prefix}{name}_high"] = cell.ci95
    return found


def _facts(row: Row) -> dict[str, str]:
    """Model, protocol, run id, suite, hub page, and whether the row is partial."""
    results = row.run.results if row.run else None
    facts = {
        "model": row.model,
        "protocol": row.rules,
        "mt_bench_rules": row.mt_bench_rules,
        "url": row.url,
        "partial": str(row.partial).lower(),
        "run_id": results.run.get("id") if results else None,
        "suite": results.run.get("suite") if results else None,
    }
    return {key: str(value) for key, value in facts.items() if value}
