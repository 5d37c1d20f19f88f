"""A run's results in the columns of the model card's tables: what `reproduce` sets beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.core.errors import InputError, foreign
from evalkit.core.files import read_json_object
from evalkit.leaderboard.card import JASTER_TABLE, MT_BENCH_TABLE
from evalkit.mtbench.tables.model_tables import scope_figures, with_own_intervals
from evalkit.records.results import AVERAGE, Figure, Results, read_results
from evalkit.scoring.categories import with_intervals

# How the card's MT-Bench table was made.
CARD_PRESET, CARD_JUDGE = "llm-jp-3-card", "gpt-4"


@dataclass(frozen=True)
class Beside:
    """One model's figures under the card's column names.

    `table` is the card's table; `partial` names the columns that are not complete, `reasons` say
    why; `deviations` is what was done in another way than for the card.
    """

    model: str | None
    table: str
    cells: Mapping[str, Figure]
    partial: frozenset[str] = frozenset()
    reasons: Sequence[str] = ()
    deviations: Mapping[str, Any] = field(default_factory=dict)


def read_beside(path: Path) -> list[Beside]:
    """The tables of a results file: one of llm-jp-eval, or one per model of an MT-Bench run.

    Raises:
        InputError: no results file, or MT-Bench answers that nobody has judged.
    """
    content = _mt_bench_content(path)
    if content is None:
        return [_of_jaster(with_intervals(read_results(path), path.parent))]
    with foreign("the results file does not fit its schema", where=path):
        if not content["tables"]:
            fix = "python -m evalkit judge run=DIR"
            raise InputError("the answers are not judged yet", where=path, fix=fix)
        content = with_own_intervals(content, path.parent)
        return [_of_mt_bench(model, table, content) for model, table in content["tables"].items()]


def contains(value: Figure, figure: float, digits: int) -> bool | None:
    """Whether a figure, known to half a unit of its last digit, lies in the interval of a value."""
    if value.ci95 is None:
        return None
    (low, high), rounding = value.ci95, 0.5 * 10.0**-digits
    return low - rounding <= figure <= high + rounding


def _of_jaster(results: Results) -> Beside:
    partial = results.partial
    return Beside(
        model=results.run.get("model"),
        table=JASTER_TABLE,
        cells={**results.average, **results.categories},
        partial=frozenset(partial.categories),
        reasons=(partial.reasons or ["a category is incomplete"]) if partial.partial else (),
        deviations=results.protocol.deviations,
    )


def _of_mt_bench(model: str, table: Mapping[str, Any], content: Mapping[str, Any]) -> Beside:
    made = {"preset": (content["preset"]["name"], CARD_PRESET), "judge": (table["judge"], CARD_JUDGE)}
    return Beside(
        model=model,
        table=MT_BENCH_TABLE,
        cells={
            AVERAGE if name == "average" else name: figure for name, figure in scope_figures(table).items()
        },
        reasons=content["partial"]["reasons"],
        # A replayed log of the card's judge is that judge.
        deviations={
            key: given for key, (given, usual) in made.items() if given not in (usual, f"{usual} (log)")
        },
    )


def _mt_bench_content(path: Path) -> dict[str, Any] | None:
    """The content of an MT-Bench results file; None for any other file, which `read_results` judges."""
    try:
        content = read_json_object(path)
    except InputError:
        return None
    return content if content.get("kind") == "mt_bench" else None
