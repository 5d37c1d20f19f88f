"""suite + completions made elsewhere -> results: `score completions=`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from evalkit.core.config import Config, SuiteData, is_offline
from evalkit.core.errors import InputError
from evalkit.records.results import Results
from evalkit.records.run_folder import RunDirectory
from evalkit.runs.foreign import listed, missing_ids, read_completions
from evalkit.runs.identity import protocol_record
from evalkit.runs.suite import LoadedSuite, load_suite, sample_limit
from evalkit.scoring.categories import summarise
from evalkit.scoring.scores import GivenAnswer, TaskAnswers, score_tasks
from evalkit.scoring.write import write_scored
from evalkit.tasks.load import Task


def score_completions(config: Config, *, say: Callable[[str], None]) -> Results:
    """Scores the completions of `completions=` for a suite and writes scores/ and results.json to `out=`.

    Raises:
        InputError: missing options or data; an unknown dataset or id, a duplicate, or (without
            `allow_missing`) a sample without completion. Nothing is written then.
    """
    if config.completions is None or config.out is None:
        raise InputError("where shall the scores go? No folder is given", where="option out", fix="out=DIR")
    out = Path(config.out).expanduser()
    if (out / "samples").exists():
        raise InputError("the folder belongs to a run", where=f"out={config.out}", fix="choose another")
    # All samples, so that an id beyond the limit is known; no few-shots, as there is nothing to ask.
    suite = load_suite(replace(config, limit=0, num_few_shots=0), say=say)
    for warning in suite.warnings:
        say(warning)
    path = Path(config.completions).expanduser()
    completions = read_completions(path, suite.tasks)
    answers, missing, gaps = _matched(config, suite, completions)
    scored = score_tasks(answers, config.protocol, config.metrics, offline=is_offline(config))
    reasons = []
    if config.suite and config.suite.data is SuiteData.bundled:
        reasons.append("the bundled items have the datasets' format, but they are not the benchmark")
    results = summarise(
        scored,
        protocol_record(config),
        missing_datasets={**suite.missing, **missing},
        gaps=gaps,
        reasons=reasons,
        run={
            "completions": str(path),
            "suite": suite.name,
            "model": config.model.name if config.model else None,
            "samples": sum(len(answer.samples) for answer in answers),
            "datasets": {task.name: task.facts for task in suite.tasks},
            "warnings": list(suite.warnings),
        },
    )
    with RunDirectory(out) as directory:
        write_scored(directory, scored, results, config.export)
    return results


def _matched(
    config: Config, suite: LoadedSuite, completions: Mapping[str, Mapping[str, GivenAnswer]]
) -> tuple[list[TaskAnswers], dict[str, str], dict[str, str]]:
    """What can be scored; the datasets that cannot, with the reason; those that lack samples."""
    answers: list[TaskAnswers] = []
    missing: dict[str, str] = {}
    gaps: dict[str, str] = {}
    limit = sample_limit(config.limit)
    for task in suite.tasks:
        wanted = replace(task, samples=task.samples[:limit] if limit else task.samples)
        given = completions.get(task.name, {})
        lacking = missing_ids(wanted, given)
        if lacking and not config.allow_missing:
            raise _missing_error(config, wanted, lacking)
        if len(lacking) == len(wanted.samples):
            missing[task.name] = "there are no completions"
            continue
        if lacking:
            gaps[task.name] = f"{len(lacking)} of {len(wanted.samples)} samples have no completion"
        present = [sample for sample in wanted.samples if sample.id in given]
        answers.append(TaskAnswers(task.spec, present, given))
    if not answers:
        raise InputError(
            "none of the suite's samples has a completion", where=f"completions={config.completions}"
        )
    return answers, missing, gaps


def _missing_error(config: Config, task: Task, lacking: list[str]) -> InputError:
    whole = len(lacking) == len(task.samples)
    return InputError(
        f"there are no completions for {task.name}"
        if whole
        else f"samples without completion: {listed(lacking)}",
        where=f"completions={config.completions}",
        fix="add them, or score what is there: allow_missing=true",
    )
