"""The published figures evalkit is held against: results/reference/*.csv."""

import csv
from dataclasses import dataclass

from evalkit.core.assets import REFERENCE
from evalkit.core.errors import InputError
from evalkit.records.results import AVERAGE

JASTER_TABLE = "llm-jp-eval v1.3.1"
MT_BENCH_TABLE = "Japanese MT-Bench gpt-4-0613"
# The decimals of each published table.
DIGITS = {JASTER_TABLE: 4, MT_BENCH_TABLE: 2}


@dataclass(frozen=True)
class Card:
    """One model's row of a model card: `columns` maps AVG and each category to the figure."""

    model: str
    columns: dict[str, float]


def load_cards(table: str = JASTER_TABLE) -> dict[str, Card]:
    """The rows of a published table by model name.

    Raises:
        InputError: the file of the published figures is gone (it lies where runs are written too).
    """
    path = REFERENCE / "llm_jp_3_card.csv"
    if not path.is_file():
        raise InputError(
            "the published figures are gone", where=path, fix="git checkout -- results/reference"
        )
    columns: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["table"] == table:
                column = AVERAGE if row["column"] == "average" else row["column"]
                columns.setdefault(row["model"], {})[column] = float(row["value"])
    return {model: Card(model, figures) for model, figures in columns.items()}


def has_row(model: object) -> bool:
    """Whether the card has a row for a model; no where the published figures are gone."""
    try:
        return model in load_cards()
    except InputError:
        return False
