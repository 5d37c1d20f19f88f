"""What moved between two results of the same completions, and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evalkit.core.reasons import Reason
from evalkit.records.results import Figure, MissingMetric, Results

# task -> sample id -> a row of scores/<task>.jsonl
SampleScores = Mapping[str, Mapping[str, Mapping[str, Any]]]
# Options that decide how kept completions are scored.
_SCORING = (
    *("protocol.strip", "protocol.answer_regex", "metrics.comet.checkpoint", "metrics.comet.dtype"),
    *("reasoning.parser", "reasoning.start", "reasoning.end", "reasoning.pattern"),
)
UNEXPLAINED = "neither metric, protocol nor samples changed: compare the versions of the libraries"


@dataclass(frozen=True)
class Move:
    """A number that changed; `samples` counts the single scores that changed with it (None: unknown)."""

    key: str
    before: Figure | None
    after: Figure | None
    why: list[str]
    samples: int | None = None


def find_moves(before: Results, after: Results, changed: Mapping[str, int]) -> list[Move]:
    """The numbers whose value differs, in the order scores, categories, average.

    Args:
        before: the results that were there.
        after: the results of the new scoring.
        changed: by `<dataset>_<metric>`, how many samples changed (`changed_samples`).
    """
    options = _changed_options(before, after)
    moves = []
    for old, new in (
        (before.scores, after.scores),
        (before.categories, after.categories),
        (before.average, after.average),
    ):
        for key in dict.fromkeys([*old, *new]):
            was, now = old.get(key), new.get(key)
            if _value(was) != _value(now):
                why = [*_differences(was, now), *options, *_availability(before, after, key, was, now)]
                moves.append(Move(key, was, now, why or [UNEXPLAINED], changed.get(key)))
    return moves


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


def _value(value: Figure | None) -> float | None:
    return None if value is None else value.value


def _changed_options(before: Results, after: Results) -> list[str]:
    old, new = before.protocol.options, after.protocol.options
    return [
        Reason("{key}: {old} -> {new}", key=key, old=old.get(key), new=new.get(key))
        for key in _SCORING
        if old.get(key) != new.get(key)
    ]


def _differences(was: Figure | None, now: Figure | None) -> Iterator[str]:
    if was is None or now is None:
        return
    if was.metric_version != now.metric_version:
        yield Reason("metric version: {old} -> {new}", old=was.metric_version, new=now.metric_version)
    if was.n != now.n:
        yield Reason("samples: {old} -> {new}", old=was.n, new=now.n)


def _availability(
    before: Results, after: Results, key: str, was: Figure | None, now: Figure | None
) -> Iterator[str]:
    if _value(was) is None and (missing := _missing(before, key)):
        yield Reason("was missing: {why}", why=missing)
    if _value(now) is None and (missing := _missing(after, key)):
        yield Reason("is missing: {why}", why=missing)


def _missing(results: Results, key: str) -> str | None:
    """Why a score, a category or the average was not there."""
    if reasons := results.partial.categories.get(key):
        return reasons[0]
    if key in results.average:
        incomplete = ", ".join(results.partial.categories)
        return Reason("incomplete categories: {names}", names=incomplete) if incomplete else None
    entries: list[MissingMetric] = results.missing_metrics
    return next((e.reason for e in entries if f"{e.dataset}_{e.metric}" == key), None)
