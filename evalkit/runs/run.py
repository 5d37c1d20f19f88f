"""A run, in one page: load, prompt, generate, score, report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.core.config import Config, PromptForm, SuiteData, is_offline
from evalkit.core.durable import is_whole_text, remove_file, write_checked_json
from evalkit.core.errors import InputError
from evalkit.core.logs import log_to
from evalkit.core.reasons import Reason
from evalkit.core.signals import signals_stop_the_run, stop_if_signalled
from evalkit.core.text import folder_name
from evalkit.core.types import Completion, Request, Sampling
from evalkit.core.words import t
from evalkit.metrics.prediction import prediction
from evalkit.records.environment import (
    CONFIG,
    ENVIRONMENT,
    describe_environment,
    kept_environment,
    timed,
    write_config,
)
from evalkit.records.results import Results, read_results
from evalkit.records.run_folder import RunDirectory, SampleRecord, run_id
from evalkit.runs.identity import protocol_record, run_identity
from evalkit.runs.suite import LoadedSuite, load_suite, missing_lines
from evalkit.scoring.categories import summarise, with_intervals
from evalkit.scoring.scores import GivenAnswer, TaskAnswers, score_tasks
from evalkit.scoring.write import scores_fit, write_scored
from evalkit.tasks.prompts import PromptTemplate, requests
from evalkit.tasks.spec import is_task_file

if TYPE_CHECKING:
    from evalkit.engines.base import Identified
    from evalkit.engines.models import ResolvedModel

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run came to: completions made by this call, and those kept from earlier ones."""

    folder: Path
    results: Results
    generated: int
    kept: int


def evaluate(config: Config, *, say: Say, opened: Callable[[Path], None] = lambda folder: None) -> Outcome:
    """Evaluates a model on a suite, going on where an earlier call of the same command stopped.

    Args:
        config: the options; `model` and `suite` are needed.
        say: takes one line at a time for the person who waits.
        opened: takes the run directory once it is known and locked.

    Raises:
        InputError: bad options or data; nothing was started.
        EvalkitError: something failed on the way; finished completions are kept.
        InterruptedRunError: a signal came; finished completions are kept.
    """
    from evalkit.engines import identify

    if config.model is None:
        raise InputError("no model is given", fix="model=1.8b-instruct   (python -m evalkit list models)")
    template = PromptTemplate.of(config.protocol)
    # A regular expression that is none is found now, not after hours of generation.
    prediction("", answer_regex=config.protocol.answer_regex)
    suite = load_suite(config, say=say)
    for line in (*suite.warnings, *missing_lines(suite)):
        say(line)
    identified = identify(config)
    # A path names the model too; the run keeps that name with its options.
    config = replace(config, model=replace(config.model, name=identified.model.name))
    identity, directory = _run_directory(config, suite, identified, template)
    dtype = identified.dtype
    with directory, log_to(directory.path / "run.log") as log, signals_stop_the_run():
        opened(directory.path)
        say(t("run: {folder}", folder=directory.path))
        if behind := identity.get("left_out"):
            log.warning("the tokenizer puts %s behind every text: the prompts go without", " ".join(behind))
        kept, pending = _split_requests(config, suite, template, directory)
        if not pending and (finished := _finished_results(directory, config, dtype, identity)):
            return Outcome(directory.path, finished, generated=0, kept=kept)
        log.info("%d completions are kept, %d are to be made", kept, len(pending))
        if pending and kept:
            text = "continuing: {kept} of {all} completions are kept"
            say(t(text, kept=kept, all=kept + len(pending)))
        environment = {"identity": identity, **describe_environment()}
        _start_files(directory, config, environment)
        if pending:
            from evalkit.engines import build_engine

            with build_engine(config, identified.model) as engine:
                environment["engine"] = engine.describe()
                write_checked_json(directory.path / ENVIRONMENT, environment)
                _generate(engine.generate(pending), pending, suite, directory)
        results = score_run(config, suite, directory, dtype=dtype, run={"identity": identity})
        return Outcome(directory.path, results, generated=len(pending), kept=kept)


def finished_run(config: Config, suite: LoadedSuite) -> Path | None:
    """The run directory of a command that has nothing left to do, None where it has; loads no model.

    Raises:
        InputError: bad options, or a model whose files are not there.
    """
    from evalkit.engines import identify

    identified = identify(config)
    identity, directory = _run_directory(config, suite, identified, PromptTemplate.of(config.protocol))
    return directory.path if _finished_results(directory, config, identified.dtype, identity) else None


def _run_directory(
    config: Config, suite: LoadedSuite, identified: "Identified", template: PromptTemplate
) -> tuple[dict[str, Any], RunDirectory]:
    """What identifies a run, and the directory that is named after it."""
    model, family, dtype = identified.model, identified.family, identified.dtype
    behind = _left_out(config, model)
    identity = run_identity(config, suite.tasks, model, template, family=family, dtype=dtype, left_out=behind)
    folder = Path(config.out or "results").expanduser() / model.label / folder_name(suite.name)
    return identity, RunDirectory(folder / run_id(identity))


def _left_out(config: Config, model: "ResolvedModel") -> list[str]:
    """The tokens that the model's tokenizer puts behind every text, and that no prompt ends with."""
    if not model.has_tokenizer or config.engine.prompts is PromptForm.chat:
        return []
    from evalkit.engines.bos import appended_tokens
    from evalkit.engines.local.tokenizer import load_tokenizer

    return appended_tokens(load_tokenizer(model), config.protocol.bos)


def score_run(
    config: Config,
    suite: LoadedSuite,
    directory: RunDirectory,
    *,
    dtype: str | None,
    run: dict[str, Any],
    reasons: Sequence[str] = (),
    gaps: Mapping[str, str] | None = None,
    into: RunDirectory | None = None,
) -> Results:
    """Scores the kept completions of a run and writes scores/ and, last, results.json.

    `reasons` say why the result is partial beyond what is seen here, `gaps` which datasets lack
    samples; `into` is another directory to write to.
    """
    answers = []
    errors = over_context = 0
    for task in suite.tasks:
        records = directory.records(task.name)
        shown = [records[sample.id] for sample in task.samples if sample.id in records]
        errors += sum(record.finish_reason == "error" for record in shown)
        over_context += sum(record.over_context for record in shown)
        completions = {r.id: GivenAnswer(r.completion, r.finish_reason) for r in shown}
        answers.append(TaskAnswers(task.spec, task.samples, completions))
    scored = score_tasks(answers, config.protocol, config.metrics, offline=is_offline(config))
    reasons = [*reasons]
    if errors:
        reasons.append(Reason("{n} samples count as wrong: the engine could not answer them", n=errors))
    if config.suite and config.suite.data is SuiteData.bundled:
        reasons.append("the bundled items have the datasets' format, but they are not the benchmark")
    results = summarise(
        scored,
        protocol_record(config, dtype, run["identity"].get("task_few_shots")),
        missing_datasets=suite.missing,
        gaps=gaps,
        reasons=reasons,
        run={
            "datasets": {task.name: task.facts for task in suite.tasks},
            **run,
            "id": directory.path.name,
            "suite": suite.name,
            "model": config.model.name if config.model else None,
            "samples": sum(len(task.samples) for task in suite.tasks),
            "errors": errors,
            "over_context": over_context,
            "warnings": list(suite.warnings),
        },
    )
    stop_if_signalled()
    write_scored(into or directory, scored, results, config.export)
    return results


def _split_requests(
    config: Config, suite: LoadedSuite, template: PromptTemplate, directory: RunDirectory
) -> tuple[int, list[Request]]:
    """How many of the suite's completions are kept, and the requests for the others."""
    sampling = Sampling(do_sample=config.generation.do_sample)
    kept, pending = 0, []
    for task in suite.tasks:
        directory.recover(task.name)
        records = directory.records(task.name)
        for request in requests(task, template, sampling=sampling, seed=config.seed):
            if request.id in records:
                kept += 1
            else:
                pending.append(request)
    return kept, pending


def _finished_results(
    directory: RunDirectory, config: Config, dtype: str, identity: dict[str, Any]
) -> Results | None:
    """results.json when it covers what is asked for now, lacks no metric, and the run's files are whole."""
    try:
        results = read_results(directory.results_path)
    except InputError:
        return None
    options = dict(results.protocol.options)
    wanted = dict(protocol_record(config, dtype, identity.get("task_few_shots")).options)
    covered, limit = options.pop("limit", None), wanted.pop("limit")
    covers = covered == 0 or (isinstance(covered, int) and 0 < limit <= covered)
    if not covers or options != wanted or results.missing_metrics or not scores_fit(directory, results):
        return None
    whole = is_whole_text(directory.path / CONFIG) and kept_environment(directory.path)
    return with_intervals(results, directory.path) if whole else None


def _start_files(directory: RunDirectory, config: Config, environment: dict[str, Any]) -> None:
    # results.json means done, so it goes before anything is added to the run.
    remove_file(directory.results_path)
    assert config.suite is not None
    # A task of the user's own is found again from wherever the run is scored.
    tasks = [str(Path(name).resolve()) if is_task_file(name) else name for name in config.suite.tasks]
    write_config(replace(config, suite=replace(config.suite, tasks=tasks)), directory.path)
    # What is there names the engine that made the kept completions: it stays until one is started.
    if kept_environment(directory.path) is None:
        write_checked_json(directory.path / ENVIRONMENT, environment)


def _generate(
    completions: Iterator[Completion], pending: list[Request], suite: LoadedSuite, directory: RunDirectory
) -> None:
    from evalkit.core.progress import watch

    samples = {sample.id: (task.name, sample) for task in suite.tasks for sample in task.samples}
    prompts = {request.id: str(request.prompt) for request in pending}
    clocked = timed(completions, directory.path, lambda key: samples[key][0])
    for completion in watch(clocked, len(pending)):
        task_name, sample = samples[completion.id]
        directory.append(task_name, SampleRecord.of(sample, prompts[completion.id], completion))
        stop_if_signalled()
