"""Two runs -> their difference per dataset, category and average, and the samples that flipped."""

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.leaderboard.paired import (
    Difference,
    PairedScores,
    average_difference,
    correlation_difference,
    holm,
    mean_difference,
    share_difference,
)
from evalkit.leaderboard.runs import (
    FinishedRun,
    common,
    coverage_differences,
    data_differences,
    made_elsewhere,
    option_differences,
)
from evalkit.metrics import METRICS
from evalkit.metrics.metric import CorrelationMetric, InstructionMetric
from evalkit.metrics.prediction import gold
from evalkit.metrics.repeats import single_name
from evalkit.records.results import AVERAGE
from evalkit.scoring.categories import category_members
from evalkit.scoring.scores import values_of
from evalkit.tasks.spec import CATEGORIES

ALPHA = 0.05
_SHOWN = 6


@dataclass(frozen=True)
class Flip:
    """A sample the two models score differently: its dataset, id, scores and predictions."""

    dataset: str
    id: str
    a: float
    b: float
    prediction_a: str
    prediction_b: str


@dataclass(frozen=True)
class Compared:
    """One line of a comparison: a minus b.

    `p_holm` corrects p over the lines of the same kind (datasets, or categories); of the average it
    is p itself. `n` counts samples, `flips` those that differ.
    """

    name: str
    kind: str
    a: float
    b: float
    difference: float
    ci95: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    test: str
    n: int
    flips: int
    metric: str = ""

    @property
    def verdict(self) -> str:
        """`a` or `b` when that one is better, `hint` when only the uncorrected interval says so, else ''."""
        if self.ci95 is None or self.ci95[0] <= 0 <= self.ci95[1] or self.p_holm is None:
            return ""
        if self.p_holm >= ALPHA:
            return "hint"
        return "a" if self.difference > 0 else "b"


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two runs.

    `remarks` say which rules differ, and which datasets were not compared, and why.
    """

    a: FinishedRun
    b: FinishedRun
    datasets: tuple[Compared, ...]
    categories: tuple[Compared, ...]
    average: Compared | None
    flips: tuple[Flip, ...]
    remarks: tuple[str, ...] = ()


class _Part(NamedTuple):
    """A line before p is corrected, and the difference behind it."""

    line: Compared
    difference: Difference


def compare(
    a: FinishedRun,
    b: FinishedRun,
    *,
    partial: bool = False,
    across_rules: bool = False,
    resamples: int = 10_000,
) -> Comparison:
    """Compares two runs on the same samples.

    Args:
        a: the run whose advantage is positive.
        b: the other run.
        partial: compare only the datasets and samples both have.
        across_rules: compare although options differ: chat, the rule for thoughts, sampling, clean-up.
        resamples: of each interval.

    Raises:
        InputError: the runs differ in data, prompts or protocol; or, without `across_rules`, in their
            options; or, without `partial`, in their datasets or samples. The message names every
            difference. What nothing tells of answers made elsewhere is no difference but a remark.
    """
    if a.model == b.model and a.folder != b.folder:
        names = [run.folder.name if a.folder.name != b.folder.name else str(run.folder) for run in (a, b)]
        a, b = (replace(run, label=f"{run.model} ({name})") for run, name in zip((a, b), names, strict=True))
    options, data = differences(a, b)
    coverage = coverage_differences(a.results, b.results) or list(_other_samples(a, b))
    refused = [*([] if across_rules else options), *data, *([] if partial else coverage)]
    if refused:
        more = len(refused) - _SHOWN
        lines = [*refused[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise InputError(
            f"{a.model} and {b.model} do not compare:" + "".join(f"\n  {line}" for line in lines),
            where=f"{a.folder} and {b.folder}",
            fix=_advice(data, options, refused),
        )
    return compare_samples(a, b, across=options, resamples=resamples)


def differences(a: FinishedRun, b: FinishedRun) -> tuple[list[str], list[str]]:
    """What differs in options, and in protocol and data; of joined runs, between parts with common data."""
    shared = common(a.results, b.results)
    parts = list(dict.fromkeys((a.leaf(name).folder, b.leaf(name).folder) for name in shared))
    first, second = ({run.folder: run.results for run in side.leaves} for side in (a, b))
    pairs = [(first[x], second[y]) for x, y in parts] or [(a.results, b.results)]
    options = dict.fromkeys(why for pair in pairs for why in option_differences(*pair))
    data = dict.fromkeys(why for pair in pairs for why in data_differences(*pair))
    return list(options), list(data)


def _advice(data: Sequence[str], options: Sequence[str], refused: Sequence[str]) -> str:
    if data:
        return "run both with the same data and options"
    if options and refused[0] == options[0]:
        return "run both with the same options, or compare all the same: --across-rules"
    return "--partial compares what both have"


def compare_samples(
    a: FinishedRun, b: FinishedRun, *, across: Sequence[str] = (), resamples: int = 10_000
) -> Comparison:
    """Compares two runs on the datasets and samples both have; `across` are the differences set aside."""
    datasets: dict[str, _Part] = {}
    flips: list[Flip] = []
    remarks = [*(Reason("across rules: {difference}", difference=one) for one in across), *_remarks(a, b)]
    for name in common(a.results, b.results):
        metric, other = (run.metric(name) for run in (a, b))
        others = b.scores(name)
        ids = [key for key in a.scores(name) if key in others]
        correlated = isinstance(METRICS.get(single_name(metric or "")), CorrelationMetric)
        golds = _golds(a, b, name, ids) if correlated else []
        if metric is None or other is None:
            remarks.append(Reason("{name}: its metric could not be computed in both runs", name=name))
        elif not ids:
            remarks.append(Reason("{name}: no sample is in both", name=name))
        elif correlated and (metric not in METRICS or other not in METRICS):
            text = "{name}: {metric} of several answers has no value for a question to pair, left aside"
            remarks.append(Reason(text, name=name, metric=single_name(metric)))
        elif golds is None:
            text = "{name}: {metric} needs all gold answers, and neither run has kept them"
            remarks.append(Reason(text, name=name, metric=metric))
        else:
            numbers = a.numbers(name, metric, ids), b.numbers(name, other, ids)
            pairs = PairedScores(*map(np.array, numbers))
            sizes = a.instructions(name, ids)
            datasets[name] = _dataset(pairs, name, metric, golds, sizes, resamples, single=metric == other)
            flips += _flips(a, b, name, ids, *numbers)
    categories = {
        name: _mean(name, "category", [datasets[member] for member in members])
        for name, members in category_members().items()
        if members and all(member in datasets for member in members)
    }
    whole = categories.keys() == set(CATEGORIES)
    return Comparison(
        a,
        b,
        _corrected(datasets.values()),
        _corrected(categories.values()),
        _mean(AVERAGE, "average", list(categories.values())).line if whole else None,
        tuple(flips),
        tuple(remarks),
    )


def _golds(a: FinishedRun, b: FinishedRun, name: str, ids: Sequence[str]) -> list[float] | None:
    """The gold numbers of these samples; None where one of them is in neither run's records."""
    kept = {**a.records(name), **b.records(name)}
    return [float(gold(kept[key].gold)) for key in ids] if kept.keys() >= set(ids) else None


def _dataset(
    pairs: PairedScores,
    name: str,
    metric: str,
    golds: Sequence[float],
    sizes: Sequence[int],
    resamples: int,
    *,
    single: bool,
) -> _Part:
    kind = share = METRICS.get(single_name(metric))
    # Derived from the name, so that p does not depend on the other datasets.
    stream = zlib.crc32(name.encode())
    if isinstance(share, InstructionMetric) and not share.whole:
        weights = np.array(sizes, dtype=np.float64)
        difference = share_difference(pairs, weights, resamples, stream)
        a, b = (float(np.average(side, weights=weights)) for side in (pairs.a, pairs.b))
    elif isinstance(kind, CorrelationMetric):
        difference = correlation_difference(kind, pairs, np.array(golds), resamples, stream)
        a, b = (kind.score(side.tolist(), list(golds)) for side in (pairs.a, pairs.b))
    else:
        # The mean of several answers may be a fraction.
        binary, scale = values_of(single_name(metric))
        binary = binary and single and metric in METRICS
        difference = mean_difference(pairs, resamples, stream, binary=binary, scale=scale)
        a, b = (float(side.mean()) for side in (pairs.a, pairs.b))
    flips = int((pairs.a != pairs.b).sum())
    return _part(name, "dataset", a, b, difference, len(pairs.a), flips, metric)


def _mean(name: str, kind: str, parts: Sequence[_Part]) -> _Part:
    lines = [part.line for part in parts]
    return _part(
        name,
        kind,
        float(np.mean([line.a for line in lines])),
        float(np.mean([line.b for line in lines])),
        average_difference([part.difference for part in parts]),
        sum(line.n for line in lines),
        sum(line.flips for line in lines),
    )


def _part(
    name: str, kind: str, a: float, b: float, difference: Difference, n: int, flips: int, metric: str = ""
) -> _Part:
    value, p = difference.value, difference.p
    line = Compared(name, kind, a, b, value, difference.ci95, p, p, difference.test, n, flips, metric)
    return _Part(line, difference)


def _corrected(parts: Collection[_Part]) -> tuple[Compared, ...]:
    adjusted = holm([1.0 if part.line.p is None else part.line.p for part in parts])
    return tuple(replace(part.line, p_holm=p) for part, p in zip(parts, adjusted, strict=True))


def _flips(
    a: FinishedRun,
    b: FinishedRun,
    name: str,
    ids: Sequence[str],
    first: Sequence[float],
    second: Sequence[float],
) -> Iterator[Flip]:
    rows = a.scores(name), b.scores(name)
    for key, x, y in zip(ids, first, second, strict=True):
        if x != y:
            yield Flip(name, key, x, y, *(_predictions(side[key]) for side in rows))


def _predictions(row: Mapping[str, Any]) -> str:
    """What was answered to a question; several answers in order."""
    return " / ".join(str(one["prediction"]) for one in row.get("repeats") or [row])


def _other_samples(a: FinishedRun, b: FinishedRun) -> Iterator[str]:
    """Of two runs with as many samples, the datasets where these are not the same ones."""
    for name in common(a.results, b.results):
        if alone := a.scores(name).keys() ^ b.scores(name).keys():
            yield Reason("{n} samples of {name} are in only one of them", n=len(alone), name=name)


def _remarks(a: FinishedRun, b: FinishedRun) -> Iterator[str]:
    shared = common(a.results, b.results)
    sides = [(run.model, name, run.leaf(name).results) for run in (a, b) for name in shared]
    elsewhere = [(model, name) for model, name, results in sides if made_elsewhere(results)]
    if elsewhere:
        models, names = map(dict.fromkeys, zip(*elsewhere, strict=True))
        text = (
            "the answers of {models} to {names} were made elsewhere, and it cannot be checked that prompts, "
            "token limits, precision and seed are the same"
        )
        yield Reason(text, models=", ".join(models), names=", ".join(names))
    for run in (a, b):
        if run.results.partial.partial:
            why = run.results.partial.reasons or [Reason("a category is incomplete")]
            yield Reason("{model} is partial: {why}", model=run.model, why=why)
    only = sorted(a.results.datasets.keys() ^ b.results.datasets.keys())
    if only:
        yield Reason("in only one of them, left aside: {names}", names=", ".join(only))
