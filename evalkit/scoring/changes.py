"""Two results of the same completions -> the values that differ, and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evalkit.core.reasons import Reason
from evalkit.records.results import Figure, Results

# task -> sample id -> a row of scores/<task>.jsonl
SampleScores = Mapping[str, Mapping[str, Mapping[str, Any]]]
# Options that decide how kept completions are scored.
_SCORING = ("protocol.strip", "protocol.answer_regex", "metrics.comet.checkpoint", "metrics.comet.dtype")
UNEXPLAINED = "neither metric, protocol nor samples changed: compare the versions of the libraries"


@dataclass(frozen=True)
class Change:
    """A value that differs; `samples` counts the samples with another score (None: not known)."""

    key: str
    before: Figure | None
    after: Figure | None
    why: list[str]
    samples: int | None = None


def find_changes(before: Results, after: Results, changed: Mapping[str, int]) -> list[Change]:
    """The values that differ, in the order scores, categories, average.

    Args:
        before: the earlier results.
        after: the results of the new scoring.
        changed: by `<dataset>_<metric>`, how many samples changed (`changed_samples`).
    """
    chosen = [(key, before.protocol.options.get(key), after.protocol.options.get(key)) for key in _SCORING]
    chosen.append(("reasoning.parser", before.split_by, after.split_by))
    options = [
        Reason("{key}: {old} -> {new}", key=key, old=old, new=new) for key, old, new in chosen if old != new
    ]
    changes = []
    for section in ("scores", "categories", "average"):
        old_figures, new_figures = getattr(before, section), getattr(after, section)
        for key in dict.fromkeys([*old_figures, *new_figures]):
            was, now = old_figures.get(key), new_figures.get(key)
            if _value(was) != _value(now):
                why = [*_differences(was, now), *options, *_availability(before, after, key)]
                changes.append(Change(key, was, now, why or [UNEXPLAINED], changed.get(key)))
    return changes


def changed_samples(before: SampleScores, after: SampleScores) -> dict[str, int]:
    """By `<dataset>_<metric>`, how many samples have another score than before."""
    counts: dict[str, int] = {}
    for task, rows in after.items():
        for key, row in rows.items():
            old = before.get(task, {}).get(key, {}).get("values", {})
            for metric, value in row["values"].items():
                if value is not None and metric in old:
                    name = f"{task}_{metric}"
                    counts[name] = counts.get(name, 0) + (old[metric] != value)
    return counts


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value


def _differences(was: Figure | None, now: Figure | None) -> Iterator[str]:
    if was is None or now is None:
        return
    if was.metric_version != now.metric_version:
        yield Reason("metric version: {old} -> {new}", old=was.metric_version, new=now.metric_version)
    if was.n != now.n:
        yield Reason("samples: {old} -> {new}", old=was.n, new=now.n)


def _availability(before: Results, after: Results, key: str) -> Iterator[str]:
    if why := _why_missing(before, key):
        yield Reason("was missing: {why}", why=why)
    if why := _why_missing(after, key):
        yield Reason("is missing: {why}", why=why)


def _why_missing(results: Results, key: str) -> str | None:
    """Why a score, a category or the average has no value; None when it has one."""
    figures = {**results.scores, **results.categories, **results.average}
    if _value(figures.get(key)) is not None:
        return None
    if reasons := results.partial.categories.get(key):
        return reasons[0]
    if key in results.average:
        incomplete = ", ".join(results.partial.categories)
        return Reason("incomplete categories: {names}", names=incomplete) if incomplete else None
    entries = results.missing_metrics
    return next((entry.reason for entry in entries if f"{entry.dataset}_{entry.metric}" == key), None)
