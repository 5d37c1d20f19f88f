"""A run of a suite, in one page: load, prompt, generate, score, report."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.core.config import Config, Parser, PromptForm, SuiteData, is_offline
from evalkit.core.durable import is_whole_text
from evalkit.core.errors import InputError
from evalkit.core.progress import watch
from evalkit.core.reasons import Reason
from evalkit.core.signals import stop_if_signalled
from evalkit.core.types import Request
from evalkit.core.words import t
from evalkit.engines.bos import appended_tokens
from evalkit.engines.local.chat_template import as_text, template_of
from evalkit.metrics.prediction import prediction
from evalkit.metrics.repeats import repeat_ids
from evalkit.records.environment import CONFIG, kept_environment, timed
from evalkit.records.results import Results, read_results
from evalkit.records.run_folder import RunDirectory, SampleRecord
from evalkit.runs.identity import protocol_record, run_identity
from evalkit.runs.life import Opened, Outcome, Run, Say, complete, finished
from evalkit.runs.regrading import Regrading, thought_warnings
from evalkit.runs.suite import LoadedSuite, asking_of, load_suite, missing_lines
from evalkit.scoring.categories import summarise, with_intervals
from evalkit.scoring.scores import TaskAnswers, score_tasks
from evalkit.scoring.write import scores_fit, write_scored
from evalkit.tasks.spec import is_task_file

if TYPE_CHECKING:
    from evalkit.engines.base import Engine
    from evalkit.engines.models import ResolvedModel

log = logging.getLogger(__name__)


def evaluate(config: Config, *, say: Say, opened: Opened = lambda folder: None) -> Outcome[Results]:
    """Evaluates a model on a suite, continuing where an earlier call of the same command stopped.

    Args:
        config: the options; `model` and `suite` are needed.
        say: receives progress messages, one line at a time.
        opened: receives the run directory once it is known and locked.

    Raises:
        InputError: bad options or data; nothing was started.
        EvalkitError: something failed on the way; finished completions are kept.
        InterruptedRunError: a signal came; finished completions are kept.
    """
    if config.model is None:
        raise InputError("no model is given", fix="model=1.8b-instruct   (python -m evalkit list models)")
    # An invalid regular expression is found now, not after hours of generation.
    prediction("", answer_regex=config.protocol.answer_regex)
    suite = load_suite(config, say=say)
    for line in (*suite.warnings, *missing_lines(suite)):
        say(line)
    run = SuiteRun(config, suite)
    if run.asking.thoughts is not None and config.reasoning.parser is Parser.auto:
        say(t("reasoning.parser={rule}, by the chat template", rule=run.asking.thoughts.rule))
    return complete(run, say=say, opened=opened)


def finished_run(config: Config, suite: LoadedSuite) -> Path | None:
    """The run directory of a command that has nothing left to do, else None; loads no model.

    Raises:
        InputError: bad options, or a model whose files are not there.
    """
    return finished(SuiteRun(config, suite))


class SuiteRun(Run[Results]):
    """A run of a suite of datasets."""

    def __init__(self, config: Config, suite: LoadedSuite) -> None:
        from evalkit.engines import identify

        assert config.model is not None and config.suite is not None
        identified = identify(config)
        model, dtype = identified.model, identified.dtype
        self._tokenizer = _tokenizer(model) if model.has_tokenizer else None
        self.asking = asking_of(config, self._tokenizer)
        chats = self.asking.chat is not None
        left_out, chat_template = [], None
        if self._tokenizer is not None:
            if chats:
                chat_template = template_of(self._tokenizer)
            elif config.engine.prompts is not PromptForm.chat:
                left_out = appended_tokens(self._tokenizer, config.protocol.bos)
        identity = run_identity(
            config,
            suite.tasks,
            model,
            self.asking,
            family=identified.family,
            dtype=dtype,
            left_out=left_out,
            chat_template=chat_template,
        )
        # A task of the user's own is found again from wherever the run is scored.
        tasks = [str(Path(name).resolve()) if is_task_file(name) else name for name in config.suite.tasks]
        config = replace(
            config,
            # A path names the model too; the run keeps that name with its options.
            model=replace(config.model, name=model.name),
            suite=replace(config.suite, tasks=tasks),
        )
        super().__init__(config, identified, identity)
        self._suite = suite
        self._pending: list[Request] = []

    def recover(self, say: Say) -> tuple[int, int]:
        """Counts the samples of all datasets and prepares the requests of those without a completion."""
        if left_out := self.identity.get("left_out"):
            log.warning("the tokenizer puts %s behind every text: the prompts go without", " ".join(left_out))
        kept = 0
        for task in self._suite.tasks:
            self.directory.recover(task.name)
            records = self.directory.records(task.name)
            for request in self.asking.requests(task):
                if request.id in records:
                    kept += 1
                else:
                    self._pending.append(request)
        missing = len(self._pending)
        if kept and missing:
            text = "continuing: {kept} of {all} completions are kept"
            say(t(text, kept=kept, all=kept + missing))
        return kept, missing

    def kept_results(self) -> Results | None:
        """results.json when it covers what is asked for, lacks no metric, and the run's files are whole."""
        directory = self.directory
        try:
            results = read_results(directory.results_path)
        except InputError:
            return None
        options = dict(results.protocol.options)
        shots = self.identity.get("task_few_shots")
        wanted = dict(protocol_record(self.config, self.identified.dtype, shots).options)
        covered, limit = options.pop("limit", None), wanted.pop("limit")
        covers = covered == 0 or (isinstance(covered, int) and 0 < limit <= covered)
        covers &= options.pop("samples", 1) >= wanted.pop("samples", 1)
        if not covers or options != wanted or results.missing_metrics or not scores_fit(directory, results):
            return None
        whole = is_whole_text(directory.path / CONFIG) and kept_environment(directory.path)
        return with_intervals(results, directory.path) if whole else None

    def generate(self, engine: "Engine") -> Iterator[tuple[str, SampleRecord]]:
        """Yields records in any order of the datasets, and times the datasets."""
        samples = {
            key: (task, sample)
            for task in self._suite.tasks
            for sample in task.samples
            for key in repeat_ids(sample.id, self.asking.samples)
        }
        prompts = {request.id: request.prompt for request in self._pending}
        completions = timed(
            engine.generate(self._pending), self.directory.path, lambda key: samples[key][0].name
        )
        for completion in watch(completions, len(self._pending)):
            task, sample = samples[completion.id]
            prompt, split = as_text(prompts[completion.id], self._tokenizer), None
            if (thoughts := self.asking.thoughts) is not None and completion.finish_reason != "error":
                split = thoughts.reply(
                    completion.raw_text,
                    completion.finish_reason,
                    # Without the tokenizer nobody knows how the server's prompt ends.
                    opened=self._tokenizer is not None and thoughts.opened(prompt),
                    served_thought=completion.served_thought,
                    output_length=task.spec.output_length,
                    tokenizer=self._tokenizer,
                )
            yield task.name, SampleRecord.of(sample, prompt, completion, split)

    def finish(self) -> Results:
        """Scores all kept completions."""
        return score_run(
            self.config,
            self._suite,
            self.directory,
            dtype=self.identified.dtype,
            run={"identity": self.identity},
        )


def _tokenizer(model: "ResolvedModel") -> Any:
    from evalkit.engines.local.tokenizer import load_tokenizer

    return load_tokenizer(model)


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
    again = Regrading.of(config, run["identity"])
    for task in suite.tasks:
        records = directory.records(task.name)
        keys = [key for sample in task.samples for key in repeat_ids(sample.id, config.samples)]
        shown = [records[key] for key in keys if key in records]
        errors += sum(record.finish_reason == "error" for record in shown)
        over_context += sum(record.over_context for record in shown)
        given = {record.id: again.answer(record, task.spec.output_length) for record in shown}
        answers.append(TaskAnswers(task.spec, task.samples, given, config.samples))
    scored = score_tasks(answers, config.protocol, config.metrics, offline=is_offline(config))
    warnings = [*suite.warnings, *again.warnings(), *thought_warnings(scored)]
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
            "warnings": warnings,
        },
    )
    for line in warnings[len(suite.warnings) :]:
        log.warning("%s", line)
    stop_if_signalled()
    write_scored(into or directory, scored, results, config.export)
    return results
