"""Scoring a run's kept completions again, and which values changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.config import Config
from evalkit.core.durable import read_log
from evalkit.core.errors import InputError
from evalkit.core.files import read_options
from evalkit.core.reasons import Reason
from evalkit.core.types import Sample
from evalkit.records.environment import kept_environment
from evalkit.records.results import Results, read_results
from evalkit.records.run_folder import RunDirectory, SampleRecord
from evalkit.runs.foreign import listed
from evalkit.runs.run import score_run
from evalkit.runs.suite import LoadedSuite, sample_limit, suite_specs
from evalkit.scoring.moves import Move, SampleScores, changed_samples, find_moves
from evalkit.tasks.load import Task
from evalkit.tasks.spec import TaskSpec

# What may change without new completions.
_SCORING_OPTIONS = (
    *("protocol.strip", "protocol.answer_regex", "metrics.", "export"),
    *("reasoning.parser", "reasoning.start", "reasoning.end", "reasoning.pattern"),
)
_OTHER_OPTIONS = ("run", "out", "offline", "allow_missing", "lang")
# Options of earlier versions and of other verbs: no completion or score depends on them.
_PASSED_OVER = ("serve", "plan")


@dataclass(frozen=True)
class KeptRun:
    """A run as it lies on disk.

    Attributes:
        config: its configuration, with the scoring options of the present command.
        suite: its datasets, made of the kept samples.
        before: the results it had, None when there were none.
        gaps: datasets with samples that have no kept completion, and how many.
    """

    directory: RunDirectory
    config: Config
    suite: LoadedSuite
    before: Results | None
    gaps: dict[str, int]


@dataclass(frozen=True)
class Rescored:
    """New results, the ones before (None: there were none), and what moved between them."""

    results: Results
    folder: Path
    before: Results | None
    moves: list[Move]


def rescore(given: Config) -> Rescored:
    """Scores the run of `run=` again, in place or into `out=`.

    Args:
        given: the configuration of this command; what its command line names of the scoring options
            replaces the run's own.

    Raises:
        InputError: no run there, an option that decided the completions, or completions that are
            missing (without `allow_missing`).
    """
    kept = open_run(Path(given.run or ".").expanduser(), given)
    into = RunDirectory(Path(given.out).expanduser()) if given.out else kept.directory
    if into.path.resolve() != kept.directory.path.resolve() and (into.path / "samples").exists():
        raise InputError("the folder belongs to another run", where=f"out={given.out}")
    with into:
        scores_before = _sample_scores(kept.directory, kept.suite)
        identity = _identity(kept)
        results = score_run(
            kept.config,
            kept.suite,
            kept.directory,
            dtype=identity.get("dtype"),
            run={**(kept.before.run if kept.before else {}), "identity": identity},
            reasons=[] if kept.before else ["the run is not finished"],
            gaps={
                name: Reason("{n} samples have no completion", n=count) for name, count in kept.gaps.items()
            },
            into=into,
        )
        if kept.before is None:
            return Rescored(results, into.path, None, [])
        changed = changed_samples(scores_before, _sample_scores(into, kept.suite))
        return Rescored(results, into.path, kept.before, find_moves(kept.before, results, changed))


def open_run(folder: Path, given: Config) -> KeptRun:
    """Reads a run directory and replaces its scoring options by those of `given`.

    Raises:
        InputError: see `rescore`.
    """
    directory = RunDirectory(folder)
    before = _kept_results(directory)
    config = kept_config(folder / "config.yaml")
    _replace_scoring_options(config, given)
    absent = before.partial.datasets if before else {}
    tasks, missing, gaps = [], {}, {}
    for spec in suite_specs(config):
        kept = directory.records(spec.name).values()
        records = _evaluated(kept, sample_limit(config.limit), config.samples)
        rates = before.datasets.get(spec.name) if before else None
        if rates and len(records) < rates.n:
            gaps[spec.name] = rates.n - len(records)
        if records:
            tasks.append(_task(spec, records))
        else:
            missing[spec.name] = absent.get(spec.name, "no completion is kept")
    if not tasks:
        raise InputError("the run has no completions", where=folder / "samples")
    if not given.allow_missing:
        _check_complete(folder, before, gaps, sorted(missing.keys() - absent.keys()))
    warnings = tuple(before.run.get("warnings", ())) if before else ()
    assert config.suite is not None
    suite = LoadedSuite(config.suite.name, tuple(tasks), missing, warnings)
    return KeptRun(directory, config, suite, before, gaps)


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
    config.offline = given.offline


def _identity(kept: KeptRun) -> dict[str, Any]:
    """What decided the run's completions, from its results or, unfinished, from environment.json."""
    if kept.before and "identity" in kept.before.run:
        return dict(kept.before.run["identity"])
    return dict((kept_environment(kept.directory.path) or {}).get("identity") or {})


def _sample_scores(directory: RunDirectory, suite: LoadedSuite) -> SampleScores:
    return {task.name: read_log(directory.scores_path(task.name))[0] for task in suite.tasks}


def _kept_results(directory: RunDirectory) -> Results | None:
    """The results the run has; None when there are none, or damaged ones, or another version's."""
    try:
        return read_results(directory.results_path)
    except InputError:
        # Another kind of run has other results, and nothing here to score again.
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


def _task(spec: TaskSpec, samples: Sequence[Sample]) -> Task:
    return Task(spec=spec, few_shots=(), samples=tuple(samples), sha256={})


def _check_complete(folder: Path, before: Results | None, gaps: Mapping[str, int], lost: list[str]) -> None:
    if before is None:
        raise InputError(
            "the run is not finished: it has no whole results.json of this version",
            where=folder,
            fix="run the same command again, or score what is there: allow_missing=true",
        )
    names = [f"{name} ({count} samples)" for name, count in gaps.items() if name not in lost] + lost
    if names:
        raise InputError(
            f"completions are missing or damaged: {listed(names)}",
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
