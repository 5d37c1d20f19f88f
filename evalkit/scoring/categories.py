"""Dataset scores -> categories -> average, with everything that is not complete marked.

A category is the unweighted mean of its datasets' counting metrics, the average that of the nine
categories (docs/protocol/jaster.md, section 1). The reference lets a missing dataset shrink its category
silently; here such a category is partial and there is no average.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalkit.core.durable import read_log
from evalkit.core.reasons import Reason
from evalkit.metrics import METRICS
from evalkit.metrics import intervals as statistics
from evalkit.metrics.base import InstructionMetric
from evalkit.metrics.intervals import Interval
from evalkit.metrics.repeats import single_name
from evalkit.records.results import (
    AVERAGE,
    PROTOCOL_LIMIT,
    PROTOCOL_RESAMPLES,
    WITHOUT_MT,
    Figure,
    Partial,
    ProtocolRecord,
    Results,
    is_number,
    missing_reasons,
)
from evalkit.records.run_folder import RunDirectory
from evalkit.scoring.scores import Measured, TaskScores, metric_spread
from evalkit.tasks.spec import CATEGORIES, load_spec, task_names


@dataclass(frozen=True)
class _Category:
    value: Figure
    carried: Interval | None
    versions: tuple[str, ...]
    reasons: list[str]


def category_members() -> dict[str, list[str]]:
    """The datasets that make up each category, by the shipped task files."""
    members: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for spec in map(load_spec, task_names()):
        if spec.category is not None:
            members[spec.category].append(spec.name)
    return members


def summarise(
    tasks: Sequence[TaskScores],
    protocol: ProtocolRecord,
    *,
    missing_datasets: Mapping[str, str] | None = None,
    gaps: Mapping[str, str] | None = None,
    reasons: Iterable[str] = (),
    run: Mapping[str, Any] | None = None,
) -> Results:
    """The whole result of a suite.

    Args:
        tasks: the datasets that were scored.
        protocol: the rules they were scored by.
        missing_datasets: datasets of the suite that could not be scored, with the reason.
        gaps: datasets that were scored without some of their samples, and how many those are.
        reasons: further reasons why the result is partial.
        run: the free section of the result; its `datasets` name the files the samples came from.
    """
    absent, without = dict(missing_datasets or {}), dict(gaps or {})
    categories = _categories(tasks, absent, without)
    incomplete = {name: category.reasons for name, category in categories.items() if category.reasons}
    whole = [
        *_limit_reason(protocol),
        *reasons,
        *(Reason("{name}: {reason}", name=name, reason=how_many) for name, how_many in without.items()),
        *(missing_dataset(name, why) for name, why in absent.items()),
    ]
    whole += [reason for reason in _missing_counting_metrics(tasks) if reason not in whole]
    return Results(
        scores={
            f"{task.spec.name}_{metric}": measured.value
            for task in tasks
            for metric, measured in task.measured.items()
        },
        categories={name: category.value for name, category in categories.items()},
        average=_average(categories),
        datasets={task.spec.name: task.rates for task in tasks},
        partial=Partial(bool(whole or incomplete), whole, incomplete, absent),
        missing_metrics=[entry for task in tasks for entry in task.missing],
        protocol=protocol,
        run={**(run or {}), "other_data": _other_data(tasks, run or {})},
    )


def missing_dataset(name: str, why: str) -> Reason:
    """The reason why a result without a dataset is partial."""
    return Reason("{name} is missing: {reason}", name=name, reason=why)


def _limit_reason(protocol: ProtocolRecord) -> list[str]:
    usual = protocol.options.get("suite.limit", PROTOCOL_LIMIT)
    limit = protocol.options.get("limit", usual)
    if not 0 < limit < usual:
        return []
    return [Reason("limit={limit}: the protocol takes {n} samples of each dataset", limit=limit, n=usual)]


def _other_data(tasks: Sequence[TaskScores], run: Mapping[str, Any]) -> dict[str, str]:
    """A sentence for each dataset whose prepared file is not the published one, by its name."""
    facts = run.get("datasets", {})
    differing = {
        task.spec.name: task.spec.differing(facts.get(task.spec.name, {}).get("sha256", {})) for task in tasks
    }
    return {
        name: Reason("the {splits} file is not the published one", splits=" and ".join(splits))
        for name, splits in differing.items()
        if splits
    }


def _categories(
    tasks: Sequence[TaskScores], absent: Mapping[str, str], gaps: Mapping[str, str]
) -> dict[str, _Category]:
    scored = {task.spec.name: task for task in tasks}
    categories = {}
    for name, members in category_members().items():
        own = [t.spec.name for t in tasks if t.spec.category == name and t.spec.name not in members]
        if own or any(member in scored or member in absent for member in members):
            categories[name] = _category(members, own, scored, absent, gaps)
    return categories


def _category(
    members: Sequence[str],
    own: Sequence[str],
    scored: Mapping[str, TaskScores],
    absent: Mapping[str, str],
    gaps: Mapping[str, str],
) -> _Category:
    """A category of the protocol's `members` and the user's `own` datasets."""
    reasons: list[str] = [Reason("{name} is not one of the protocol's datasets", name=name) for name in own]
    counted: list[tuple[str, Measured]] = []
    lacking: list[TaskScores] = []
    for member in (*members, *own):
        task = scored.get(member)
        if task is None:
            reasons.append(missing_dataset(member, absent.get(member, Reason("not in this suite"))))
            continue
        if member not in own and task.spec != load_spec(member):
            reasons.append(Reason("{name}: its task file is not the shipped one", name=member))
        if member in gaps:
            reasons.append(Reason("{name}: {reason}", name=member, reason=gaps[member]))
        if measured := task.counted:
            counted.append((task.spec.counts or "", measured))
        else:
            lacking.append(task)
            if not _missing_counting_metrics([task]):
                reasons.append(Reason("{name}: no metric counts", name=member))
    reasons += _missing_counting_metrics(lacking)
    versions = tuple(f"{metric} {measured.value.metric_version}" for metric, measured in counted)
    value, carried = _mean([measured for _, measured in counted], versions)
    return _Category(value, carried, versions, reasons)


def _mean(parts: Sequence[Measured | _Category], versions: Iterable[str]) -> tuple[Figure, Interval | None]:
    """The unweighted mean of parts that have a value, and what it contributes to a further mean."""
    values = [part.value.value for part in parts if part.value.value is not None]
    spread = mean_spread([(part.value, part.carried) for part in parts])
    value = Figure(
        value=sum(values) / len(values) if values else None,
        n=sum(part.value.n for part in parts),
        stderr=spread.error,
        ci95=spread.interval,
        metric_version=_joined(versions),
    )
    return value, spread.carried


def mean_spread(parts: Sequence[tuple[Figure, Interval | None]]) -> statistics.Spread:
    """The spread of the mean of independent figures, each with its `carried` interval."""
    spreads = [statistics.Spread(value.ci95, value.stderr, carried) for value, carried in parts]
    return statistics.of_sum([value.value or 0.0 for value, _ in parts], spreads)


def _average(categories: Mapping[str, _Category]) -> dict[str, Figure]:
    if set(categories) != set(CATEGORIES):
        return {}
    parts = list(categories.values())
    versions = [version for part in parts for version in part.versions]
    if not (incomplete := [name for name, part in categories.items() if part.reasons]):
        return {AVERAGE: _mean(parts, versions)[0]}
    found = {AVERAGE: Figure(None, sum(part.value.n for part in parts), None, None, _joined(versions))}
    if incomplete == ["MT"]:
        others = [part for name, part in categories.items() if name != "MT"]
        versions = [version for part in others for version in part.versions]
        found[WITHOUT_MT] = _mean(others, versions)[0]
    return found


def with_intervals(results: Results, folder: Path) -> Results:
    """A run's results with the intervals that earlier versions lack, computed again from its scores/.

    Those versions gave scores that are all equal an interval of zero width (`read_results` drops it),
    which made the intervals of their categories too narrow. Where scores/ has not enough, there is none.
    """
    if not any(map(_is_open, results.scores.values())):
        return results
    scores, carried = {}, {}
    for name, rates in results.datasets.items():
        rows = list(read_log(RunDirectory(folder).scores_path(name))[0].values())
        for metric in rates.metrics:
            key = f"{name}_{metric}"
            value = results.scores[key]
            spread = _spread_again(value, metric, rows, results)
            scores[key] = replace(value, ci95=spread.interval, stderr=spread.error)
            carried[key] = spread.carried
    categories, above = {}, {}
    for name, value in results.categories.items():
        keys = [f"{member}_{results.named(load_spec(member).counts)}" for member in category_members()[name]]
        parts = [(scores[key], carried[key]) for key in keys if key in scores]
        spread = statistics.Spread(value.ci95, value.stderr, value.ci95)
        if value.value is not None and _is_mean(value.value, [part.value for part, _ in parts]):
            spread = mean_spread(parts)
        categories[name] = replace(value, ci95=spread.interval, stderr=spread.error)
        above[name] = (categories[name], spread.carried)
    average = {
        name: replace(value, ci95=spread.interval, stderr=spread.error)
        for name, value in results.average.items()
        for parts in [[part for key, part in above.items() if (name, key) != (WITHOUT_MT, "MT")]]
        for spread in [mean_spread(parts) if value.value is not None else statistics.Spread()]
    }
    return replace(results, scores={**results.scores, **scores}, categories=categories, average=average)


def _is_open(value: Figure) -> bool:
    """Whether a value lacks an interval, or may have one that too few samples cannot give."""
    return value.value is not None and (value.ci95 is None or value.n < statistics.FEWEST)


def _spread_again(
    value: Figure, metric: str, rows: Sequence[Mapping[str, Any]], results: Results
) -> statistics.Spread:
    if isinstance(METRICS.get(single_name(metric)), InstructionMetric):
        return statistics.Spread(value.ci95, value.stderr, value.ci95)
    values = [row["values"].get(metric) for row in rows if isinstance(row.get("values"), dict)]
    numbers = [float(number) for number in values if is_number(number)]
    if len(numbers) == value.n and value.value is not None and _is_mean(value.value, numbers):
        resamples = results.protocol.options.get("metrics.resamples", PROTOCOL_RESAMPLES)
        samples = results.protocol.options.get("samples", 1)
        return metric_spread(metric, numbers, int(resamples), samples)
    if value.n < statistics.FEWEST:
        return statistics.Spread()
    return statistics.Spread(value.ci95, value.stderr, value.ci95)


def _is_mean(value: float, parts: Sequence[float | None]) -> bool:
    numbers = [part for part in parts if part is not None]
    return bool(numbers) and math.isclose(math.fsum(numbers) / len(numbers), value, abs_tol=1e-9)


def _joined(versions: Iterable[str]) -> str:
    return ", ".join(sorted(set(versions)))


def _missing_counting_metrics(tasks: Iterable[TaskScores]) -> list[Reason]:
    return missing_reasons(
        entry for task in tasks for entry in task.missing if entry.metric == task.spec.counts
    )
