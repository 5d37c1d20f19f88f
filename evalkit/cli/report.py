"""The end of a run in the terminal: the nine categories, the datasets, what to do next."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evalkit.cli.printing import SHORT, new_table, number, print_folder, print_line
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.core.text import command
from evalkit.core.words import shown, t
from evalkit.leaderboard.card import has_row
from evalkit.leaderboard.runs import (
    counting_metric,
    coverage_differences,
    data_differences,
    option_differences,
)
from evalkit.metrics.repeats import single_name
from evalkit.records.environment import read_timings
from evalkit.records.results import (
    AVERAGE,
    MISSING_METRIC,
    WITHOUT_MT,
    DatasetRates,
    Figure,
    MissingMetric,
    Results,
    missing_reasons,
    read_results,
)
from evalkit.scoring.categories import MISSING_DATASET, counted_members
from evalkit.tasks.spec import load_spec, task_names

# How many datasets the remarks at the end name.
_FEW = 3


def print_results(results: Results, console: Console, folder: Path | None = None) -> None:
    """Prints the datasets, what is to know about them, and last the categories and why they are partial.

    Args:
        results: of a run.
        console: where.
        folder: the run's folder, for what to look at and how to go on.
    """
    console.print(_dataset_table(results))
    for line in _missing_lines(results, counting=False):
        print_line(console, f"{t('not computed: ')}{line}")
    for name, what in results.run.get("other_data", {}).items():
        print_line(console, f"{name}: {shown(what)}", style="yellow")
    if results.split_by != "none":
        print_line(console, t("thoughts are split off by the rule: {rule}", rule=results.split_by))
    if results.protocol.deviations:
        listed = ", ".join(f"{key}={value}" for key, value in results.protocol.deviations.items())
        print_line(console, t("protocol: {name} with {options}", name=results.protocol.name, options=listed))
    for line in _to_look_at(results, folder) if folder else ():
        print_line(console, line)
    if details := results.run.get("pfgen"):
        _print_pfgen(details, console)
    if results.categories:
        console.print(_category_table(results))
    if results.partial.partial:
        console.print(f"[yellow]{t('* partial result')}[/]", highlight=False)
        for reason in _reasons(results, fetch=folder is None):
            print_line(console, f"  - {reason}")
    if folder:
        print_folder(console, folder, *_next_commands(results, folder))


def _print_pfgen(details: dict[str, Any], console: Console) -> None:
    """Prints what belongs to the figures of pfgen: their scale, their spread, and the published figures."""
    print_line(console, t("scale: the published ground truth scores {value}", value=details["ground_truth"]))
    print_line(console, t("resampled for the intervals: {what}", what=t(details["resampled"])))
    if shares := details["variance"]:
        known = {name: share for name, share in shares.items() if share is not None}
        listed = ", ".join(f"{t(name)} {share:.1%}" for name, share in known.items())
        print_line(console, t("variance of the scores: {shares}", shares=listed))
    published = ", ".join(f"{name} {value}" for name, value in details["published"].items())
    print_line(console, t("by the published rule: {figures}", figures=published))


def _to_look_at(results: Results, folder: Path) -> Iterator[str]:
    """The datasets that took longest, and those with the widest intervals."""
    seconds = {name: spent for name, spent in read_timings(folder).items() if name in results.datasets}
    if len(seconds) > _FEW:
        slowest = sorted(seconds, key=lambda name: -seconds[name])[:_FEW]
        names = ", ".join(f"{name} ({seconds[name]:.0f} s)" for name in slowest)
        yield t("slowest datasets: {names}", names=names)
    widths = {name: width for name in results.datasets if (width := _half_width(results, name))}
    if len(widths) > _FEW:
        widest = sorted(widths, key=lambda name: -widths[name])[:_FEW]
        names = ", ".join(f"{name} (±{widths[name]:.3f})" for name in widest)
        yield t("least certain datasets (half of the 95 % interval): {names}", names=names)


def _half_width(results: Results, dataset: str) -> float | None:
    """Half of the interval of the metric that counts."""
    metric = counting_metric(dataset, results)
    interval = results.scores[f"{dataset}_{metric}"].ci95 if metric else None
    return None if interval is None else (interval[1] - interval[0]) / 2


def _next_commands(results: Results, folder: Path) -> Iterator[str]:
    # What is missing of the table is fetched, and then scored without the model.
    for fetch in dict.fromkeys(entry.command for entry in _missing(results, counting=True)):
        if fetch:
            yield f"{fetch} && {command('score', f'run={folder}')}"
    if results.categories and has_row(results.run.get("model")):
        yield command("reproduce", f"run={folder}")
    # results/<model>/<suite>/<run id>: another model's run of the same suite.
    same_suite = list(folder.parents[2].glob(f"*/{folder.parent.name}/*/results.json"))
    others = [path for path in same_suite if path.parents[2] != folder.parents[1]]
    if newest := _newest(others, results, across_rules=False):
        yield command("compare", str(folder), str(newest))
    # The same model under other rules: chat beside plain, one rule for thoughts beside another.
    own = [path for path in same_suite if path.parents[2] == folder.parents[1] and path.parent != folder]
    if newest := _newest(own, results, across_rules=True):
        yield command("compare", str(folder), str(newest), "--across-rules")
    place, partial = folder.parents[2], ["--partial"] if results.partial.partial else []
    page = t("the page with every answer: {path}", path=place / "leaderboard.html")
    yield f"{command('leaderboard', str(place), *partial)}   # {page}"


def _newest(paths: Sequence[Path], results: Results, *, across_rules: bool) -> Path | None:
    """The folder of the newest of these runs that compares with `results`, or does so across rules."""
    found = [path for path in paths if _compares(path, results, across_rules)]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def _compares(path: Path, results: Results, across_rules: bool) -> bool:
    try:
        other = read_results(path)
    except InputError:
        return False
    if data_differences(other, results) or coverage_differences(other, results):
        return False
    return bool(option_differences(other, results)) is across_rules


def _category_table(results: Results) -> Table:
    table = new_table()
    table.add_column(t("category"))
    table.add_column(t("score"), justify="right")
    table.add_column(t("95 % interval"))
    table.add_column(t("mean of"), style="dim")
    for name, value in results.categories.items():
        mark = " *" if name in results.partial.categories else ""
        members = ", ".join(counted_members(results, name))
        table.add_row(f"{name}{mark}", number(value.value, 4), _interval(value), members)
    if average := results.average.get(AVERAGE):
        table.add_section()
        mark = " *" if results.partial.partial else ""
        what = t("the nine categories") if average.value is not None else t("needs all nine categories")
        table.add_row(f"{AVERAGE}{mark}", number(average.value, 4), _interval(average), what, style="bold")
    if others := results.average.get(WITHOUT_MT):
        name, what = f"{SHORT[WITHOUT_MT]} *", t("average of the eight others")
        table.add_row(name, number(others.value, 4), _interval(others), what)
    return table


def _dataset_table(results: Results) -> Table:
    table = new_table()
    table.add_column(t("dataset"), no_wrap=True)
    table.add_column(t("metric"), no_wrap=True)
    table.add_column(t("score"), justify="right")
    table.add_column(t("95 % interval"), no_wrap=True)
    table.add_column(t("n"), justify="right")
    table.add_column(t("answers"), style="dim")
    for name, rates in results.datasets.items():
        for index, metric in enumerate(rates.metrics):
            value = results.scores[f"{name}_{metric}"]
            first, last = (name, _describe(rates)) if index == 0 else ("", "")
            if (best := _ceiling(rates, metric)) is not None:
                last = ", ".join(filter(None, [t("at most {value}", value=number(best, 4)), last]))
            table.add_row(first, metric, number(value.value, 4), _interval(value), str(value.n), last)
    return table


def _ceiling(rates: DatasetRates, metric: str) -> float | None:
    """The most that some answers can reach, where instructions cannot be followed."""
    if rates.instructions is None:
        return None
    return rates.instructions.ceiling.get(single_name(metric))


def _describe(rates: DatasetRates) -> str:
    thoughts, tokens = rates.thoughts, None
    if thoughts is None:
        shares = [(t("empty"), rates.empty), (t("cut off"), rates.truncated)]
    else:
        shares = [
            (t("unclosed"), thoughts.unclosed),
            (t("empty"), thoughts.empty),
            (t("cut off"), thoughts.cut_off),
            (t("late thought"), thoughts.late_thought),
            (t("tool call"), thoughts.tool_call),
        ]
        tokens = thoughts.median_thought_tokens
    shares.append((t("malformed"), rates.out_of_format))
    said = [f"{share:.0%} {what}" for what, share in shares if share]
    if tokens:
        said.append(t("median thought {n} tokens", n=f"{tokens:,.0f}"))
    return ", ".join(said)


def _reasons(results: Results, *, fetch: bool) -> list[str]:
    """Why a result is partial; with `fetch` also how to get what is missing."""
    entries = _missing(results, counting=True)
    by_metric = [*(entry.sentence for entry in entries), *missing_reasons(entries)]
    reasons = [shown(reason) for reason in results.partial.reasons if reason not in by_metric]
    said = {*results.partial.reasons, *by_metric}
    for category, whys in results.partial.categories.items():
        reasons += _category_reasons(category, [why for why in whys if why not in said])
    return [*reasons, *_missing_lines(results, counting=True, fetch=fetch)]


def _category_reasons(category: str, reasons: Sequence[str]) -> Iterator[str]:
    """Why a category is incomplete; the datasets that are missing for one reason are together."""
    missing: dict[str, list[str]] = {}
    for reason in reasons:
        if isinstance(reason, Reason) and reason.template == MISSING_DATASET:
            why = reason.fields["reason"]
            names = missing.setdefault(why if isinstance(why, str) else "; ".join(why), [])
            names.append(str(reason.fields["name"]))
        else:
            yield f"{category}: {shown(reason)}"
    for why, names in missing.items():
        yield f"{category}: {t(MISSING_DATASET, name=', '.join(names), reason=why)}"


def _missing(results: Results, *, counting: bool) -> list[MissingMetric]:
    """What could not be computed of the metrics that count in the table, or of the others."""
    counts = {name: load_spec(name).counts for name in task_names()}
    return [
        entry
        for entry in results.missing_metrics
        if (counts.get(entry.dataset, entry.metric) == entry.metric) is counting
    ]


def _missing_lines(results: Results, *, counting: bool, fetch: bool = True) -> list[str]:
    """A line for each metric and reason, with all its datasets, in the language in use."""
    missing: dict[tuple[str, str, str | None], list[str]] = {}
    for entry in _missing(results, counting=counting):
        missing.setdefault((entry.metric, entry.reason, entry.command), []).append(entry.dataset)
    lines = []
    for (metric, reason, prepare), names in missing.items():
        line = t(MISSING_METRIC, metrics=metric, names=", ".join(names), reason=reason)
        lines.append(line + (t("; fetch it with: {command}", command=prepare) if prepare and fetch else ""))
    return lines


def _interval(value: Figure) -> str:
    if value.ci95 is None:
        return "" if value.value is None else "–"
    return f"{value.ci95[0]:.4f}–{value.ci95[1]:.4f}"
