"""One figure of a table, whatever it comes from, and the card's columns."""

from dataclasses import dataclass

from evalkit.records.results import AVERAGE, Value

# The order and the rounding of the model card's two tables.
JASTER_COLUMNS = (AVERAGE, "EL", "FA", "HE", "MC", "MR", "MT", "NLI", "QA", "RC")
MT_BENCH_COLUMNS = (
    "average",
    "coding",
    "extraction",
    "humanities",
    "math",
    "reasoning",
    "roleplay",
    "stem",
    "writing",
)
JASTER_DIGITS = 4
MT_BENCH_DIGITS = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure with its 95 % interval. `n` is None for published figures; `partial`: not comparable."""

    value: float | None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    partial: bool = False

    @classmethod
    def of(cls, value: Value, *, partial: bool = False) -> "Cell":
        """A value of a results file."""
        return cls(value.value, value.ci95, value.n, partial)


def told_apart(a: Cell, b: Cell) -> bool:
    """Whether two figures differ by more than their intervals: neither value lies in the other's interval.

    Where only one has an interval it decides alone; without any, nothing is told. A rough reading for
    tables; `compare` pairs the samples and is the judge.
    """
    if a.value is None or b.value is None or a.value == b.value:
        return False
    decided = [ends[0] <= value <= ends[1] for ends, value in ((a.ci95, b.value), (b.ci95, a.value)) if ends]
    return bool(decided) and not any(decided)
