"""A run, in one page: load, prompt, generate, score, report."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from evalkit.config import Config, SuiteData, is_offline
from evalkit.environment import describe_environment
from evalkit.errors import InputError, InterruptedRunError
from evalkit.identity import folder_name, run_identity
from evalkit.loading import LoadedSuite, load_suite
from evalkit.logs import log_to
from evalkit.metrics.prediction import prediction
from evalkit.prompts import PromptTemplate, requests
from evalkit.records import (
    RunDirectory,
    SampleRecord,
    run_id,
    write_json_atomic,
    write_text_atomic,
)
from evalkit.results import Results, protocol_record, read_results
from evalkit.scoring.publish import write_scored
from evalkit.scoring.scores import GivenAnswer, TaskAnswers, score_tasks
from evalkit.suites import summarise
from evalkit.task_spec import is_task_file
from evalkit.timings import timed
from evalkit.types import Completion, Request, Sampling

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run came to: completions made by this call, and those kept from earlier ones."""

    folder: Path
    results: Results
    generated: int
    kept: int


def evaluate(config: Config, *, say: Say) -> Outcome:
    """Evaluates a model on a suite, going on where an earlier call of the same command stopped.

    Args:
        config: the options; `model` and `suite` are needed.
        say: takes one line at a time for the person who waits.

    Raises:
        InputError: bad options or data; nothing was started.
        EvalkitError: something failed on the way; finished completions are kept.
        InterruptedRunError: a signal came; finished completions are kept.
    """
    from evalkit.engines import engine_family, resolve_dtype
    from evalkit.models import resolve

    if config.model is None:
        raise InputError("no model is given", fix="model=1.8b-instruct   (python -m evalkit list models)")
    template = PromptTemplate.of(config.protocol)
    # A regular expression that is none is found now, not after hours of generation.
    prediction("", answer_regex=config.protocol.answer_regex)
    suite = load_suite(config, say=say)
    for line in (*suite.warnings, *(f"missing: {name} ({why})" for name, why in suite.missing.items())):
        say(line)
    model = resolve(config.model, offline=is_offline(config))
    # A path names the model too; the run keeps that name with its options.
    config = replace(config, model=replace(config.model, name=model.name))
    dtype = resolve_dtype(config)
    identity = run_identity(config, suite.tasks, model, template, family=engine_family(config), dtype=dtype)
    folder = Path(config.out or "results").expanduser() / model.label / folder_name(suite.name)
    directory = RunDirectory(folder / run_id(identity))
    with directory, log_to(directory.path / "run.log") as log, signals_stop_the_run():
        say(f"run: {directory.path}")
        kept, pending = _split_requests(config, suite, template, directory)
        if not pending and (finished := _finished_results(directory, config, dtype)):
            return Outcome(directory.path, finished, generated=0, kept=kept)
        log.info("%d completions are kept, %d are to be made", kept, len(pending))
        if pending and kept:
            say(f"continuing: {kept} of {kept + len(pending)} completions are kept")
        _start_files(directory, config)
        if pending:
            from evalkit.engines import build_engine

            environment = {"identity": identity, **describe_environment()}
            write_json_atomic(directory.path / "environment.json", environment)
            with build_engine(config, model) as engine:
                environment["engine"] = engine.describe()
                write_json_atomic(directory.path / "environment.json", environment)
                _generate(engine.generate(pending), pending, suite, directory)
        results = score_run(config, suite, directory, dtype=dtype, run={"identity": identity})
        return Outcome(directory.path, results, generated=len(pending), kept=kept)


def score_run(
    config: Config,
    suite: LoadedSuite,
    directory: RunDirectory,
    *,
    dtype: str | None,
    run: dict[str, Any],
    reasons: Sequence[str] = (),
    into: RunDirectory | None = None,
) -> Results:
    """Scores the kept completions of a run and writes scores/ and, last, results.json.

    `reasons` say why the result is partial beyond what is seen here; `into` is another directory
    to write to.
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
        reasons.append(f"{errors} samples count as wrong: the engine could not answer them")
    if config.suite and config.suite.data is SuiteData.bundled:
        reasons.append("the bundled items have the datasets' format, but they are not the benchmark")
    results = summarise(
        scored,
        protocol_record(config, dtype),
        missing_datasets=suite.missing,
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


def _finished_results(directory: RunDirectory, config: Config, dtype: str) -> Results | None:
    """results.json when it is whole, covers what is asked for now, and lacks no metric."""
    try:
        results = read_results(directory.results_path)
    except InputError:
        return None
    options = dict(results.protocol.options)
    wanted = dict(protocol_record(config, dtype).options)
    covered, limit = options.pop("limit", None), wanted.pop("limit")
    covers = covered == 0 or (isinstance(covered, int) and 0 < limit <= covered)
    return results if covers and options == wanted and not results.missing_metrics else None


def _start_files(directory: RunDirectory, config: Config) -> None:
    # results.json means done, so it goes before anything is added to the run.
    directory.results_path.unlink(missing_ok=True)
    from omegaconf import OmegaConf

    assert config.suite is not None
    # A task of the user's own is found again from wherever the run is scored.
    tasks = [str(Path(name).resolve()) if is_task_file(name) else name for name in config.suite.tasks]
    kept = replace(config, suite=replace(config.suite, tasks=tasks))
    content = OmegaConf.to_container(OmegaConf.structured(kept), enum_to_str=True)
    write_text_atomic(
        directory.path / "config.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    )


def _generate(
    completions: Iterator[Completion], pending: list[Request], suite: LoadedSuite, directory: RunDirectory
) -> None:
    from evalkit.progress import watch

    samples = {sample.id: (task.name, sample) for task in suite.tasks for sample in task.samples}
    prompts = {request.id: str(request.prompt) for request in pending}
    clocked = timed(completions, directory.path, lambda key: samples[key][0])
    for completion in watch(clocked, len(pending)):
        task_name, sample = samples[completion.id]
        directory.append(task_name, SampleRecord.of(sample, prompts[completion.id], completion))


@contextmanager
def signals_stop_the_run() -> Iterator[None]:
    """SIGTERM and SIGUSR1 (what a queue sends before it kills) end the run as Ctrl-C does: resumable."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise InterruptedRunError(
            f"stopped by {signal.Signals(number).name}; every finished completion is kept",
            fix="run the same command again: it continues",
        )

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
