"""A comparison in plain sentences."""

from collections.abc import Sequence

from evalkit.core.words import t
from evalkit.leaderboard.compare import ALPHA, Compared, Comparison
from evalkit.scoring.categories import category_members


def sentences(comparison: Comparison) -> list[str]:
    """What the comparison says: on average, by category, and by dataset where its category is not whole."""
    a, b = comparison.a.model, comparison.b.model
    said = []
    if comparison.average is not None:
        said.append(_average(comparison.average, a, b))
    lines = [*comparison.categories, *_outside(comparison)]
    for verdict, model in (("a", a), ("b", b)):
        if chosen := [line for line in lines if line.verdict == verdict]:
            said.append(t("{model} is better on {figures}.", model=model, figures=_figures(chosen, verdict)))
    if hints := [line for line in lines if line.verdict == "hint"]:
        text = t(
            "Only a hint, gone once the number of comparisons counts (Holm, p >= {alpha}): {figures}.",
            alpha=ALPHA,
            figures=", ".join(_hint(line, a, b) for line in hints),
        )
        said.append(text)
    if equal := [line.name for line in lines if not line.verdict]:
        said.append(t("No difference can be told on {names}.", names=", ".join(equal)))
    return said


def _outside(comparison: Comparison) -> list[Compared]:
    """The datasets that none of the compared categories speaks for."""
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


def p_text(p: float | None) -> str:
    """A p-value with as many digits as it deserves."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
