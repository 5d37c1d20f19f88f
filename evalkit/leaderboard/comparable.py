"""Whether two runs may be compared, sample by sample, and if not, what differs."""

from collections.abc import Iterator
from typing import Any

from evalkit.core.reasons import Reason
from evalkit.leaderboard.rows import AMOUNT_OPTIONS
from evalkit.records.results import Results
from evalkit.tasks.spec import load_spec, task_names


def run_differences(a: Results, b: Results) -> list[str]:
    """What differs in protocol, options or the set of datasets; empty when the runs compare."""
    return [*rule_differences(a, b), *_coverage(a, b)]


def rule_differences(a: Results, b: Results) -> list[str]:
    """As `run_differences`, without datasets and samples that only one run has."""
    return [*_protocol(a, b), *(why for name in common(a, b) for why in _dataset(a, b, name))]


def common(a: Results, b: Results) -> list[str]:
    """The datasets both runs have."""
    return [name for name in a.datasets if name in b.datasets]


def counting_metric(name: str, results: Results) -> str | None:
    """The metric of a dataset that is compared: the one that counts, else the first that was computed."""
    computed = results.datasets[name].metrics
    counts = results.named(load_spec(name).counts) if name in task_names() else None
    if counts is not None:
        return counts if counts in computed else None
    return computed[0] if computed else None


def _protocol(a: Results, b: Results) -> Iterator[str]:
    if a.protocol.name != b.protocol.name:
        yield _differs("protocol", a.protocol.name, b.protocol.name)
    first, second = a.protocol.options, b.protocol.options
    for key in dict.fromkeys([*first, *second]):
        if key not in AMOUNT_OPTIONS and first.get(key) != second.get(key):
            yield _differs(key, first.get(key), second.get(key))
    samples = bool(first.get("generation.do_sample") or second.get("generation.do_sample"))
    seeds = [results.run.get("identity", {}).get("seed") for results in (a, b)]
    if samples and seeds[0] != seeds[1]:
        yield _differs("seed", *seeds)


def _coverage(a: Results, b: Results) -> Iterator[str]:
    for name in sorted(a.datasets.keys() ^ b.datasets.keys()):
        yield Reason("{name} is in only one of them", name=name)
    for name in common(a, b):
        counts = a.datasets[name].n, b.datasets[name].n
        if counts[0] != counts[1]:
            yield _differs(f"samples of {name}", *counts)


def _dataset(a: Results, b: Results, name: str) -> Iterator[str]:
    for what, kind in (("data", "data"), ("prompts", "prompts"), ("max_new_tokens", "token limit")):
        first, second = (_decided(results, what, name) for results in (a, b))
        if first != second:
            yield _differs(f"{kind} of {name}", first, second)
    metrics = [counting_metric(name, results) for results in (a, b)]
    if metrics[0] != metrics[1]:
        yield _differs(f"metric of {name}", *metrics)
    elif metrics[0] is not None:
        key = f"{name}_{metrics[0]}"
        versions = [results.scores[key].metric_version for results in (a, b)]
        if versions[0] != versions[1]:
            yield _differs(f"version of {key}", *versions)


def _decided(results: Results, what: str, name: str) -> Any:
    """An entry of a run's identity for a dataset; foreign completions have the hashes of the data only."""
    if "identity" not in results.run and what == "data":
        return results.run.get("datasets", {}).get(name, {}).get("sha256")
    return results.run.get("identity", {}).get(what, {}).get(name)


def _differs(what: str, first: Any, second: Any) -> str:
    return Reason(
        "{what} differs: {first} and {second}", what=what, first=_short(first), second=_short(second)
    )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    text = "-" if value is None else str(value)
    is_hash = len(text) == 64 and all(sign in "0123456789abcdef" for sign in text)
    return f"{text[:12]}..." if is_hash else text
