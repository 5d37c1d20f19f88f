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
from evalkit.metrics.intervals import Interval
from evalkit.metrics.metric import InstructionMetric
from evalkit.metrics.repeats import single_name
from evalkit.records.results import (
    AVERAGE,
    PROTOCOL_RESAMPLES,
    WITHOUT_MT,
    Figure,
    MissingMetric,
    Partial,
    ProtocolRecord,
    Results,
    is_number,
    missing_reasons,
)
from evalkit.records.run_folder import RunDirectory
from evalkit.scoring.scores import Measured, TaskScores, metric_spread
from evalkit.tasks.spec import CATEGORIES, load_spec, task_names

# The sections of a run's identity that have an entry for each dataset.
PER_DATASET = ("data", "prompts", "max_new_tokens", "task_few_shots", "columns")
OWN_DATASET = "{name} is not one of the protocol's datasets"
MISSING_DATASET = "{name} is missing: {reason}"
_NOT_IN_SUITE = Reason("not in this suite")


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


def counted_members(results: Results, category: str) -> list[str]:
    """The datasets whose figures a category's value is the mean of, the user's own last."""
    counts = {name: load_spec(name).counts for name in category_members()[category]}
    for why in results.partial.categories.get(category, ()):
        if isinstance(why, Reason) and why.template == OWN_DATASET:
            name = str(why.fields["name"])
            counts[name] = results.run.get("datasets", {}).get(name, {}).get("counts")
    figures = {name: results.scores.get(f"{name}_{results.named(metric)}") for name, metric in counts.items()}
    return [name for name, figure in figures.items() if figure is not None and figure.value is not None]


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
        tasks, protocol: the datasets that were scored, and the rules they were scored by.
        missing_datasets: datasets of the suite that could not be scored, with the reason.
        gaps: datasets that were scored without some of their samples, and how many those are.
        reasons: further reasons why the result is partial.
        run: the free section of the result; its `datasets` name the files the samples came from.
    """
    absent, without = dict(missing_datasets or {}), dict(gaps or {})
    categories = _categories(tasks, absent, without)
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
        partial=_partial(whole, categories, absent),
        missing_metrics=[entry for task in tasks for entry in task.missing],
        protocol=protocol,
        run={**(run or {}), "other_data": _other_data(tasks, run or {})},
    )


def _partial(whole: Iterable[str], categories: Mapping[str, _Category], absent: Mapping[str, str]) -> Partial:
    """What a result lacks: as a whole, by category, and the datasets without a score."""
    reasons = list(whole)
    incomplete = {name: category.reasons for name, category in categories.items() if category.reasons}
    return Partial(bool(reasons or incomplete), reasons, incomplete, dict(absent))


def missing_dataset(name: str, why: str) -> Reason:
    """The reason why a result without a dataset is partial."""
    return Reason(MISSING_DATASET, name=name, reason=why)


def _limit_reason(protocol: ProtocolRecord) -> list[str]:
    if not protocol.is_limited:
        return []
    text = "limit={limit}: the protocol takes {n} samples of each dataset"
    return [Reason(text, limit=protocol.options["limit"], n=protocol.usual_limit)]


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
            categories[name] = _summed(members, own, scored, absent, gaps)
    return categories


def _summed(
    members: Sequence[str],
    own: Sequence[str],
    scored: Mapping[str, TaskScores],
    absent: Mapping[str, str],
    gaps: Mapping[str, str],
) -> _Category:
    """A category of the protocol's `members` and the user's `own` datasets."""
    reasons: list[str] = [Reason(OWN_DATASET, name=name) for name in own]
    counted: list[tuple[str, Measured]] = []
    lacking: list[TaskScores] = []
    for member in (*members, *own):
        task = scored.get(member)
        if task is None:
            reasons.append(missing_dataset(member, absent.get(member, _NOT_IN_SUITE)))
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
    return _category(counted, [*reasons, *_missing_counting_metrics(lacking)])


def _category(counted: Sequence[tuple[str, Measured]], reasons: list[str]) -> _Category:
    """The mean of the figures that count, each with the name of its metric."""
    versions = tuple(f"{counts} {measured.value.metric_version}" for counts, measured in counted)
    value, carried = _mean([measured for _, measured in counted], versions)
    return _Category(value, carried, versions, reasons)


def _mean(parts: Sequence[Measured | _Category], versions: Iterable[str]) -> tuple[Figure, Interval | None]:
    """The unweighted mean of parts that have a value, and what it contributes to a further mean."""
    values = [part.value.value for part in parts if part.value.value is not None]
    spread = _mean_spread(parts)
    value = Figure(
        value=sum(values) / len(values) if values else None,
        n=sum(part.value.n for part in parts),
        stderr=spread.error,
        ci95=spread.interval,
        metric_version=_joined(versions),
    )
    return value, spread.carried


def _mean_spread(parts: Sequence[Measured | _Category]) -> statistics.Spread:
    """The spread of the mean of independent figures."""
    spreads = [statistics.Spread(part.value.ci95, part.value.stderr, part.carried) for part in parts]
    return statistics.of_sum([part.value.value or 0.0 for part in parts], spreads)


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


def join_results(parts: Sequence[tuple[Results, Path]]) -> Results:
    """The results of runs that differ in their datasets alone, as one run of them all has them.

    Args:
        parts: results, each with its folder; of a dataset that several have, the first counts.

    Categories are those of the protocol's datasets: a user's own dataset is in none of them.
    """
    source: dict[str, tuple[Results, Path]] = {}
    for part in parts:
        for name in part[0].datasets:
            source.setdefault(name, part)
    absent = {name: why for part, _ in parts for name, why in part.partial.datasets.items()}
    solved = {missing_dataset(name, why) for name, why in absent.items() if name in source}
    solved |= {missing_dataset(name, _NOT_IN_SUITE) for name in source}
    categories = {
        name: _joined_category(members, source, absent, solved)
        for name, members in category_members().items()
        if any(member in source for member in members)
    }
    whole = dict.fromkeys(why for part, _ in parts for why in part.partial.reasons if why not in solved)
    ordered = [name for names in category_members().values() for name in names if name in source]
    datasets = {name: source[name][0].datasets[name] for name in dict.fromkeys([*ordered, *source])}
    return replace(
        parts[0][0],
        scores={
            f"{name}_{metric}": source[name][0].scores[f"{name}_{metric}"]
            for name, rates in datasets.items()
            for metric in rates.metrics
        },
        categories={name: category.value for name, category in categories.items()},
        average=_average(categories),
        datasets=datasets,
        partial=_partial(
            whole, categories, {name: why for name, why in absent.items() if name not in source}
        ),
        missing_metrics=[
            entry
            for part, _ in parts
            for entry in part.missing_metrics
            if entry.dataset not in source or source[entry.dataset][0] is part
        ],
        run=_joined_facts([part.run for part, _ in parts]),
    )


def _joined_category(
    members: Sequence[str],
    source: Mapping[str, tuple[Results, Path]],
    absent: Mapping[str, str],
    solved: set[Reason],
) -> _Category:
    reasons: list[str] = [
        missing_dataset(name, absent.get(name, _NOT_IN_SUITE)) for name in members if name not in source
    ]
    counted: list[tuple[str, Measured]] = []
    lacking: list[MissingMetric] = []
    for name in members:
        if name not in source:
            continue
        results, folder = source[name]
        said = (why for whys in results.partial.categories.values() for why in whys)
        of_name = (why for why in said if why.startswith(f"{name}: "))
        reasons += [why for why in of_name if why not in solved and why not in reasons]
        counts = load_spec(name).counts or ""
        lacking += [one for one in results.missing_metrics if (one.dataset, one.metric) == (name, counts)]
        metric = results.named(counts)
        value = results.scores.get(f"{name}_{metric}")
        if metric is not None and value is not None:
            carried = value.ci95 or _spread_again(value, metric, _rows(folder, name), results).carried
            counted.append((counts, Measured(value, carried)))
    reasons += missing_reasons(one for one in lacking if one.sentence not in reasons)
    return _category(counted, reasons)


def _rows(folder: Path, dataset: str) -> list[dict[str, Any]]:
    return list(read_log(RunDirectory(folder).scores_path(dataset))[0].values())


def _joined_facts(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The section `run` of joined results: what is recorded by dataset together, the rest of the first."""
    facts, identity = dict(runs[0]), dict(runs[0].get("identity", {}))
    for name in ("datasets", "other_data"):
        facts[name] = {key: entry for run in reversed(runs) for key, entry in run.get(name, {}).items()}
    for name in PER_DATASET:
        if found := [run.get("identity", {}).get(name, {}) for run in reversed(runs)]:
            identity[name] = {key: entry for part in found for key, entry in part.items()}
    facts["warnings"] = list(dict.fromkeys(line for run in runs for line in run.get("warnings", ())))
    for name in ("id", "suite"):
        facts[name] = ", ".join(str(run[name]) for run in runs if run.get(name))
    return facts | ({"identity": identity} if runs[0].get("identity") else {})


def with_intervals(results: Results, folder: Path) -> Results:
    """A run's results with the intervals that earlier versions lack, computed again from its scores/.

    Those versions gave scores that are all equal an interval of zero width (`read_results` drops it),
    which made the intervals of their categories too narrow. Where scores/ has not enough, there is none.
    """
    if not any(map(_is_open, results.scores.values())):
        return results
    scores: dict[str, Measured] = {}
    for name, rates in results.datasets.items():
        rows = _rows(folder, name)
        for metric in rates.metrics:
            value = results.scores[f"{name}_{metric}"]
            scores[f"{name}_{metric}"] = _with_spread(value, _spread_again(value, metric, rows, results))
    categories: dict[str, Measured] = {}
    for name, value in results.categories.items():
        keys = [f"{member}_{results.named(load_spec(member).counts)}" for member in category_members()[name]]
        parts = [scores[key] for key in keys if key in scores]
        spread = statistics.Spread(value.ci95, value.stderr, value.ci95)
        if value.value is not None and _is_mean(value.value, [part.value.value for part in parts]):
            spread = _mean_spread(parts)
        categories[name] = _with_spread(value, spread)
    average = {}
    for name, value in results.average.items():
        parts = [part for key, part in categories.items() if (name, key) != (WITHOUT_MT, "MT")]
        spread = statistics.Spread() if value.value is None else _mean_spread(parts)
        average[name] = _with_spread(value, spread).value
    return replace(
        results,
        scores=results.scores | {key: part.value for key, part in scores.items()},
        categories={name: part.value for name, part in categories.items()},
        average=average,
    )


def _with_spread(value: Figure, spread: statistics.Spread) -> Measured:
    return Measured(replace(value, ci95=spread.interval, stderr=spread.error), spread.carried)


def _is_open(value: Figure) -> bool:
    """Whether a value lacks an interval, or may have one that too few samples cannot give."""
    return value.value is not None and (value.ci95 is None or value.n < statistics.FEWEST)


def _spread_again(
    value: Figure, metric: str, rows: Sequence[Mapping[str, Any]], results: Results
) -> statistics.Spread:
    kind = METRICS.get(single_name(metric))
    # Where the samples' scores are not resampled as they are, the interval stays: also that of pfgen.
    if kind is None or isinstance(kind, InstructionMetric):
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
