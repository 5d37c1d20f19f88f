"""Scores a run's kept completions again and finds which values changed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.config import Config, ReasoningConfig, SuiteData, ThoughtParser, given_suite
from evalkit.core.durable import read_log
from evalkit.core.errors import InputError
from evalkit.core.files import read_options
from evalkit.core.reasons import Reason
from evalkit.core.text import listed
from evalkit.core.types import Sample
from evalkit.records.environment import CONFIG, kept_environment
from evalkit.records.results import Figure, Results, read_results
from evalkit.records.run_folder import RunDirectory, SampleRecord, one_run
from evalkit.runs.foreign import output_directory
from evalkit.runs.regrading import of_regrading
from evalkit.runs.run import score_run
from evalkit.runs.suite import LoadedSuite, check_suite_options, load_suite, sample_limit, suite_specs
from evalkit.tasks.answers import options_of
from evalkit.tasks.load import Task
from evalkit.tasks.thoughts import refuse_unread

# Options that may change without new completions.
_SCORING_OPTIONS = (
    *("protocol.strip", "protocol.answer_regex", "metrics.", "export"),
    *("reasoning.parser", "reasoning.start", "reasoning.end", "reasoning.pattern"),
)
_OTHER_OPTIONS = ("run", "out", "offline", "allow_missing", "lang", "mirror")
# Options of earlier versions and of other verbs: no completion or score depends on them.
_PASSED_OVER = ("serve", "plan")
# Of the scoring options, those that can change a score without another metric version.
_SCORING = ("protocol.strip", "protocol.answer_regex", "metrics.comet.checkpoint", "metrics.comet.dtype")
UNEXPLAINED = "neither metric, protocol nor samples changed: compare the versions of the libraries"
# task -> sample id -> a row of scores/<task>.jsonl
SampleScores = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Change:
    """A value that differs; `samples` counts the samples with another score (None: not known)."""

    key: str
    before: Figure | None
    after: Figure | None
    why: list[str]
    samples: int | None = None


@dataclass(frozen=True)
class Rescored:
    """New results, the ones before (None: there were none), and what changed between them."""

    results: Results
    folder: Path
    before: Results | None
    changes: list[Change]


def rescore(given: Config) -> Rescored:
    """Scores the run of `run=` again, in place or into `out=`.

    Args:
        given: the configuration of this command; what its command line names of the scoring options
            replaces the run's own.

    Raises:
        InputError: no run there, an option that decided the completions, or completions that are
            missing (without `allow_missing`).
    """
    directory = RunDirectory(one_run(given.run or ".", mt_bench=False))
    before = _kept_results(directory)
    config = kept_config(directory.path / CONFIG)
    _replace_scoring_options(config, given)
    suite, gaps = _kept_suite(directory, config, before)
    if not given.allow_missing:
        _check_complete(directory.path, suite, gaps, before)
    into = _into(directory, config, given)
    identity = _identity(directory, before)
    rule = config.reasoning.parser
    if not identity.get("reasoning") and rule in (ThoughtParser.auto, ThoughtParser.none):
        refuse_unread(given.given)
    # Which metric of an own task counts, its file says; what else is recorded of its datasets is in `suite`.
    kept = {key: value for key, value in before.run.items() if key != "datasets"} if before else {}
    with into:
        scores_before = _sample_scores(directory, suite)
        results = score_run(
            config,
            suite,
            directory,
            run={**kept, "identity": identity},
            reasons=[] if before else ["the run is not finished"],
            gaps={name: Reason("{n} samples have no completion", n=count) for name, count in gaps.items()},
            into=into,
        )
        if before is None:
            return Rescored(results, into.path, None, [])
        changed = _changed_samples(scores_before, _sample_scores(into, suite))
        return Rescored(results, into.path, before, _find_changes(before, results, changed))


def _into(directory: RunDirectory, config: Config, given: Config) -> RunDirectory:
    """Where the scores go: `out=`, or the run itself, which `out=` may name by the same words as `run=`."""
    runs = {Path(place).expanduser().resolve() for place in (given.run or ".", directory.path)}
    if given.out is None or Path(given.out).expanduser().resolve() in runs:
        return directory
    made = {"id": directory.path.name, "model": config.model.name if config.model else None}
    return output_directory(given.out, given_suite(config.suite), made)


def _kept_suite(
    directory: RunDirectory, config: Config, before: Results | None
) -> tuple[LoadedSuite, dict[str, int]]:
    """The run's datasets, made of the kept samples, and how many samples of each have no completion."""
    suite, samples = given_suite(config.suite), config.samples
    absent = before.partial.datasets if before else {}
    facts = before.run.get("datasets", {}) if before else {}
    # The references of pfgen are no part of a run.
    loaded = load_suite(suite, config.data, say=lambda line: None) if suite.pfgen else None
    tasks, missing, gaps = [], {}, {}
    for spec in suite_specs(suite):
        kept = directory.records(spec.name)
        if loaded is None:
            records = _evaluated(kept.values(), sample_limit(config.data.limit), samples)
        else:
            # It asks trial by trial, and scores what there is of each question.
            asked = loaded.tasks[0].samples
            records = [one for one in asked if not kept.keys().isdisjoint(spec.ids(one.id, samples))]
        answers = sum(key in kept for one in records for key in spec.ids(one.id, samples))
        rates = before.datasets.get(spec.name) if before else None
        if rates and answers < rates.n * samples:
            gaps[spec.name] = rates.n * samples - answers
        if records:
            sha256 = facts.get(spec.name, {}).get("sha256", {})
            tasks.append(Task(spec, few_shots=(), samples=tuple(records), sha256=sha256))
        else:
            missing[spec.name] = absent.get(spec.name, "no completion is kept")
    if not tasks:
        what = f"has all of its {samples} answers" if samples > 1 else "has an answer"
        raise InputError(
            f"no question of the run {what}",
            where=directory.path / "samples",
            fix="run the same command again",
        )
    warnings = tuple(w for w in before.run.get("warnings", ()) if not of_regrading(w)) if before else ()
    bundled = suite.data is SuiteData.bundled
    questions = loaded.questions if loaded else ()
    return LoadedSuite(suite.name, tuple(tasks), missing, warnings, bundled, questions), gaps


def kept_config(path: Path) -> Config:
    """The configuration a run was made by: its config.yaml.

    Raises:
        InputError: no such file, or it does not fit this version.
    """
    if not path.is_file():
        raise InputError(
            "not a run directory: its config.yaml is not there",
            where=path.parent,
            fix="run=results/<model>/<suite>/<run id>, as the run printed it",
        )
    return read_options(path, Config, "the run's configuration", mend=_of_today)


def _replace_scoring_options(config: Config, given: Config) -> None:
    check_suite_options(given_suite(config.suite), given.given, config.samples)
    for option in given.given:
        if option in _OTHER_OPTIONS:
            continue
        if not option.startswith(_SCORING_OPTIONS):
            raise InputError(
                f"{option} cannot change here: it decided the completions that are kept",
                where=f"option {option}",
                fix="leave it out, or make a new run with it",
            )
        source: Any = given
        target: Any = config
        *path, name = option.split(".")
        for part in path:
            source, target = getattr(source, part), getattr(target, part)
        setattr(target, name, getattr(source, name))
    config.offline, config.mirror = given.offline, given.mirror or config.mirror
    if "reasoning.parser" in given.given:
        # The run's own tags and pattern stay where the new rule reads them.
        unread = {"start", "end", "pattern"}.difference(options_of(config.reasoning.parser.value))
        for name in unread:
            if f"reasoning.{name}" not in given.given:
                setattr(config.reasoning, name, getattr(ReasoningConfig(), name))


def _identity(directory: RunDirectory, before: Results | None) -> dict[str, Any]:
    """What decided the run's completions, from its results or, unfinished, from environment.json."""
    if before and "identity" in before.run:
        return dict(before.run["identity"])
    return dict((kept_environment(directory.path) or {}).get("identity") or {})


def _sample_scores(directory: RunDirectory, suite: LoadedSuite) -> SampleScores:
    return {task.name: read_log(directory.scores_path(task.name))[0] for task in suite.tasks}


def _kept_results(directory: RunDirectory) -> Results | None:
    """The results the run has; None when there are none, or damaged ones, or another version's."""
    try:
        return read_results(directory.results_path)
    except InputError:
        # An MT-Bench run has no completions that this could score.
        if (directory.path / "mt_bench.json").exists():
            raise
        return None


def _evaluated(records: Iterable[SampleRecord], limit: int, samples: int) -> list[Sample]:
    """The questions the run's last command evaluated, in the order of the dataset; `samples` of each."""
    questions: dict[int, list[tuple[str, SampleRecord]]] = {}
    for record in records:
        key = record.id if samples == 1 else record.id.rpartition("/")[0]
        questions.setdefault(int(key.rpartition("/")[2]), []).append((key, record))
    return [
        Sample(id=key, input=record.input, gold=record.gold)
        for index, given in sorted(questions.items())
        for key, record in given[:1]
        if (limit == 0 or index < limit) and len(given) >= samples
    ]


def _check_complete(
    folder: Path, suite: LoadedSuite, gaps: Mapping[str, int], before: Results | None
) -> None:
    if before is None:
        raise InputError(
            "the run is not finished: it has no whole results.json of this version",
            where=folder,
            fix="run the same command again, or score what is there: allow_missing=true",
        )
    lost = sorted(suite.missing.keys() - before.partial.datasets.keys())
    names = [f"{name} ({count} samples)" for name, count in gaps.items() if name not in lost] + lost
    if names:
        raise InputError(
            f"completions are missing or damaged: {listed(names, 5)}",
            where=folder / "samples",
            fix="run the same command again, or score what is there: allow_missing=true",
        )


def _of_today(content: dict[Any, Any]) -> dict[Any, Any]:
    """A kept configuration without what earlier versions had: no completion or score depends on it."""
    kept = {key: value for key, value in content.items() if key not in _PASSED_OVER}
    engine = kept.get("engine")
    if isinstance(engine, dict) and engine.get("server") == "evalkit":
        kept["engine"] = {**engine, "server": "auto"}
    return kept


def _find_changes(before: Results, after: Results, changed: Mapping[str, int]) -> list[Change]:
    """The values that differ, in the order scores, categories, average.

    Args:
        before: the earlier results.
        after: the results of the new scoring.
        changed: by `<dataset>_<metric>`, how many samples changed (`_changed_samples`).
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


def _changed_samples(before: SampleScores, after: SampleScores) -> dict[str, int]:
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
