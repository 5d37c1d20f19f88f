"""A comparison as sentences, as JSON, and its flipped samples as a table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evalkit.core.words import t
from evalkit.leaderboard.compare import ALPHA, Compared, Comparison
from evalkit.leaderboard.tables import spreadsheet_text
from evalkit.scoring.categories import category_members
from evalkit.scoring.pfgen import GROUND_TRUTH
from evalkit.tasks.pfgen import DATASET as PFGEN

if TYPE_CHECKING:
    import pandas as pd


def sentences(comparison: Comparison) -> list[str]:
    """The result on average, by category, and by dataset where its category is incomplete."""
    a, b = comparison.a.model, comparison.b.model
    found = []
    if comparison.average is not None:
        found.append(_average(comparison.average, a, b))
    lines = [*comparison.categories, *_outside(comparison)]
    for verdict, model in (("a", a), ("b", b)):
        if chosen := [line for line in lines if line.verdict == verdict]:
            found.append(t("{model} is better on {figures}.", model=model, figures=_figures(chosen, verdict)))
    if hints := [line for line in lines if line.verdict == "hint"]:
        text = t(
            "Only a hint, gone once the number of comparisons counts (Holm, p >= {alpha}): {figures}.",
            alpha=ALPHA,
            figures=", ".join(_hint(line, a, b) for line in hints),
        )
        found.append(text)
    if equal := [line.name for line in lines if not line.verdict]:
        found.append(t("No difference can be told on {names}.", names=", ".join(equal)))
    if any(line.name == PFGEN for line in lines):
        found.append(t("{name}: the published ground truth scores {value}.", name=PFGEN, value=GROUND_TRUTH))
    return found


def _outside(comparison: Comparison) -> list[Compared]:
    """The datasets that belong to none of the compared categories."""
    members = category_members()
    covered = {name for category in comparison.categories for name in members[category.name]}
    return [line for line in comparison.datasets if line.name not in covered]


def _average(line: Compared, a: str, b: str) -> str:
    if line.verdict not in ("a", "b"):
        return t("On average no difference can be told ({figure}).", figure=figure(line))
    model = a if line.verdict == "a" else b
    return t("{model} is better on average ({figure}).", model=model, figure=figure(line, line.verdict))


def _figures(lines: Sequence[Compared], verdict: str) -> str:
    return ", ".join(f"{line.name} ({figure(line, verdict)})" for line in lines)


def _hint(line: Compared, a: str, b: str) -> str:
    model, side = (a, "a") if line.difference > 0 else (b, "b")
    return f"{line.name} ({model} {figure(line, side)})"


def figure(line: Compared, verdict: str = "a") -> str:
    """`+0.042, 95 % 0.011 to 0.073`, as the advantage of the model that `verdict` names."""
    sign = -1 if verdict == "b" else 1
    gap = f"{sign * line.difference:+.3f}"
    if line.ci95 is None:
        return gap
    low, high = sorted(sign * end for end in line.ci95)
    return t("{gap}, 95 % {low} to {high}", gap=gap, low=f"{low:.3f}", high=f"{high:.3f}")


def comparison_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Everything but the answers: for each comparison its runs, sentences, lines and remarks."""
    return [
        {
            "a": {"model": one.a.model, "run": str(one.a.folder)},
            "b": {"model": one.b.model, "run": str(one.b.folder)},
            "sentences": sentences(one),
            "average": asdict(one.average) if one.average else None,
            "categories": [asdict(line) for line in one.categories],
            "datasets": [asdict(line) for line in one.datasets],
            "remarks": list(one.remarks),
        }
        for one in comparisons
    ]


def flipped_frame(comparisons: Sequence[Comparison]) -> "pd.DataFrame":
    """One line per sample that two models score differently; no answer can run in a spreadsheet."""
    import pandas as pd

    columns = ["model_a", "model_b", "dataset", "id", "a", "b", "prediction_a", "prediction_b"]
    rows = [
        {
            "model_a": spreadsheet_text(one.a.model),
            "model_b": spreadsheet_text(one.b.model),
            **asdict(flip),
            "prediction_a": spreadsheet_text(flip.prediction_a),
            "prediction_b": spreadsheet_text(flip.prediction_b),
        }
        for one in comparisons
        for flip in one.flips
    ]
    return pd.DataFrame(rows, columns=columns)
