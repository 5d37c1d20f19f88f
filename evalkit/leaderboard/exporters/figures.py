"""A row's figures as W&B wants them: flat names and numbers."""

from collections.abc import Iterator, Sequence

from evalkit.core.errors import InputError
from evalkit.leaderboard.rows import Kind, Row


def metrics_of(row: Row) -> dict[str, float]:
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


def facts_of(row: Row) -> dict[str, str]:
    """What the figures were made by: model, protocol, run id, suite, hub page, whether partial."""
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


def measured(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows that were measured here.

    Raises:
        InputError: there is none.
    """
    own = [row for row in rows if row.kind is Kind.run]
    if not own:
        raise InputError("no row was measured here: published and imported rows are not exported")
    yield from own
