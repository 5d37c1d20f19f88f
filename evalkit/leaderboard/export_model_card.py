"""Rows -> a block for a model's README: `model-index` metadata and the two tables."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from evalkit.core.text import folder_name
from evalkit.leaderboard.rows import TABLES, Kind, Row, Table
from evalkit.leaderboard.tables import markdown_tables

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BEGIN, END = "<!-- evalkit: begin -->", "<!-- evalkit: end -->"
# What the hub calls the two benchmarks.
_DATASETS = {"jaster": "llm-jp-eval", "mt": "mt-bench-ja"}


def model_card(row: Row) -> str:
    """The README block of one row: YAML metadata first, then Markdown between two comments.

    Partial figures are in the tables only; without any other there is no metadata.
    """
    return f"{_metadata(row)}{BEGIN}\n\n{markdown_tables([row], heading='###')}\n\n{END}\n"


def model_card_files(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """The name and content of one file for each row that was measured here."""
    names: set[str] = set()
    for number, row in enumerate(row for row in rows if row.kind is Kind.run):
        name = f"model-card-{folder_name(row.model)}"
        name = f"{name}-{number}.md" if f"{name}.md" in names else f"{name}.md"
        names.add(name)
        yield name, model_card(row)


def _metadata(row: Row) -> str:
    from huggingface_hub import ModelCardData

    results = [result for table in TABLES for result in _results(row, table)]
    if not results:
        return ""
    data = ModelCardData(model_name=row.model, eval_results=results)
    return f"---\n{data.to_yaml()}\n---\n\n"


def _results(row: Row, table: Table) -> "Iterator[EvalResult]":
    from huggingface_hub import EvalResult

    cells = table.cells(row)
    for column in table.columns:
        cell = cells.get(column)
        if cell is None or cell.value is None or cell.partial:
            continue
        yield EvalResult(
            task_type="text-generation",
            dataset_type=_DATASETS[table.name],
            dataset_name=f"{table.title} {column}",
            dataset_config=column,
            dataset_args={"protocol": str(table.rules(row)), "samples": cell.n},
            metric_type=column,
            metric_name=column,
            metric_value=round(cell.value, table.digits),
            metric_args={"ci95": [round(end, table.digits) for end in cell.ci95]} if cell.ci95 else None,
        )
