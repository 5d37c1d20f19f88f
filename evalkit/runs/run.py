"""A run of a suite, in one page: load, prompt, generate, score, report."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.core.config import Config, PfgenMode, ThoughtParser, given_model, given_suite
from evalkit.core.durable import is_whole_text
from evalkit.core.errors import InputError
from evalkit.core.files import read_json_object
from evalkit.core.progress import Say, phase, watch
from evalkit.core.reasons import Reason
from evalkit.core.signals import stop_if_signalled
from evalkit.core.types import Completion, Request
from evalkit.core.words import t
from evalkit.engines.base import from_generation_config
from evalkit.engines.bos import appended_tokens
from evalkit.engines.local.chat_template import as_text, template_of
from evalkit.engines.local.tokenizer import tokenizer_of
from evalkit.engines.models.folder_files import generation_config
from evalkit.metrics import wanted_metrics
from evalkit.records.environment import CONFIG, kept_environment, timed
from evalkit.records.results import Results, read_results
from evalkit.records.run_folder import PROMPT_END, RunDirectory, SampleRecord, SplitRecord
from evalkit.runs.identity import protocol_record, run_identity
from evalkit.runs.life import Opened, Outcome, Run, complete
from evalkit.runs.regrading import Regrading
from evalkit.runs.suite import LoadedSuite, asking_of, check_run, load_suite
from evalkit.scoring.categories import summarise, with_intervals
from evalkit.scoring.pfgen import score_pfgen
from evalkit.scoring.scores import TaskAnswers, TaskScores, score_tasks
from evalkit.scoring.write import scores_fit, write_scored
from evalkit.tasks.load import Task
from evalkit.tasks.pfgen import DATASET as PFGEN
from evalkit.tasks.pfgen import answer_of
from evalkit.tasks.spec import TaskSpec, is_task_file
from evalkit.tasks.thoughts import Thoughts, refuse_unread, rule_for

if TYPE_CHECKING:
    from evalkit.engines.base import Engine, Identified

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
    from evalkit.engines import check

    chosen, asked = given_model(config.model), given_suite(config.suite)
    check_run(config)
    with phase(t("looking for the model")):
        check(chosen, config.engine, offline=config.data.offline)
    suite = load_suite(asked, config.data, say=say)
    for line in suite.remarks:
        say(line)
    with phase(t("reading the model's files and its tokenizer")):
        run = SuiteRun(config, suite)
    if run.asking.thoughts is not None and config.reasoning.parser is ThoughtParser.auto:
        say(t("reasoning.parser={rule}, by the chat template", rule=run.asking.thoughts.rule))
    if run.asking.thoughts is None and run.tokenizer is None:
        refuse_unread(config.given)
    outcome = complete(run, say=say, opened=opened)
    for kept, wanted in run.larger(outcome.results):
        say(t("the kept results of {kept} stand in for {asked}", kept=kept, asked=wanted))
    return outcome


class SuiteRun(Run[Results]):
    """A run of a suite of datasets."""

    def __init__(self, config: Config, suite: LoadedSuite) -> None:
        from evalkit.engines import identify

        chosen, asked = given_model(config.model), given_suite(config.suite)
        identified = identify(chosen, config.engine, config.dtype, offline=config.data.offline)
        model, left_out, chat_template = identified.model, [], None
        self.tokenizer = tokenizer_of(model)
        self.asking = asking_of(config, self.tokenizer)
        if config.samples > 1 and not asked.pfgen and config.generation.from_model:
            _check_draws(identified, config.samples)
        if self.tokenizer is not None and self.asking.chat is not None:
            chat_template = template_of(self.tokenizer)
        elif self.tokenizer is not None and not config.engine.chat_prompts:
            left_out = appended_tokens(self.tokenizer, config.protocol.bos)
        identity = run_identity(
            identified,
            suite.tasks,
            config.protocol,
            config.generation,
            config.data,
            self.asking,
            left_out=left_out,
            chat_template=chat_template,
        )
        # A task of the user's own is found again from wherever the run is scored.
        tasks = [str(Path(name).resolve()) if is_task_file(name) else name for name in asked.tasks]
        config = replace(
            config,
            # A path names the model too; the run keeps that name with its options.
            model=replace(chosen, name=model.name),
            suite=replace(asked, tasks=tasks),
        )
        super().__init__(config, identified, identity)
        self._suite = suite
        self._protocol = protocol_record(config, identity)
        self._pending: list[Request] = []

    def recover(self, say: Say) -> tuple[int, int]:
        """Counts the samples of all datasets and prepares the requests of those without a completion."""
        if left_out := self.identity.get("left_out"):
            log.warning("the tokenizer puts %s behind every text: the prompts go without", " ".join(left_out))
        kept, again = 0, 0
        for task in self._suite.tasks:
            too_long = self._asked_again(task)
            again += len(too_long)
            self.directory.recover(task.name, too_long)
            records = self.directory.records(task.name)
            for request in self.asking.requests(task):
                if request.id in records:
                    kept += 1
                else:
                    self._pending.append(request)
        missing = len(self._pending)
        if again:
            text = "{n} prompts were too long for the server; its context has grown, and they are asked again"
            say(t(text, n=again))
        if kept and missing:
            text = "continuing: {kept} of {all} completions are kept"
            say(t(text, kept=kept, all=kept + missing))
        return kept, missing

    def _asked_again(self, task: Task) -> list[str]:
        """The ids of a task's prompts that were too long for the server and may fit now."""
        if not self.has_more_context:
            return []
        kept = self.directory.records(task.name)
        asked = (key for sample in task.samples for key in task.spec.ids(sample.id, self.asking.samples))
        return [key for key in asked if key in kept and kept[key].over_context]

    def kept_results(self) -> Results | None:
        """results.json when it covers what is asked for, lacks no metric, and the run's files are whole."""
        directory = self.directory
        try:
            results = read_results(directory.results_path)
        except InputError:
            return None
        options = dict(results.protocol.options)
        wanted, usual = dict(self._protocol.options), self._protocol.usual_limit
        covered, limit = options.pop("limit", None), wanted.pop("limit")
        # More samples than the protocol takes are no stand-in for the protocol's.
        covers = covered == limit or (isinstance(covered, int) and 0 < limit <= covered <= usual)
        covers &= options.pop("samples", 1) >= wanted.pop("samples", 1)
        covers &= _trials(results).get("samples", self.config.samples) >= self.config.samples
        if not covers or options != wanted or results.missing_metrics or not scores_fit(directory, results):
            return None
        if any(self._asked_again(task) or not self._as_in_file(task, results) for task in self._suite.tasks):
            return None
        whole = is_whole_text(directory.path / CONFIG) and kept_environment(directory.path)
        return with_intervals(results, directory.path) if whole else None

    def larger(self, results: Results) -> Iterator[tuple[str, str]]:
        """The options by which kept results cover more than was asked for: `limit=100`, `limit=3`."""
        asked = {"limit": self._protocol.options["limit"], "samples": self.config.samples}
        kept = {"samples": 1, **results.protocol.options, **_trials(results)}
        for name, value in asked.items():
            if kept[name] != value:
                yield f"{name}={kept[name]}", f"{name}={value}"

    def _as_in_file(self, task: Task, results: Results) -> bool:
        """Whether an own task has the metrics that its file names now; a shipped file does not change."""
        if task.spec.data is None:
            return True
        counts = results.run.get("datasets", {}).get(task.name, {}).get("counts")
        wanted = map(results.named, wanted_metrics(task.spec.metrics, self.config.metrics))
        computed = results.datasets[task.name].metrics if task.name in results.datasets else ()
        return bool(counts == task.facts["counts"] and {*wanted} <= {*computed})

    def generate(self, engine: "Engine") -> Iterator[tuple[str, SampleRecord]]:
        """Yields records in any order of the datasets, and times the datasets."""
        samples = {
            key: (task, sample)
            for task in self._suite.tasks
            for sample in task.samples
            for key in task.spec.ids(sample.id, self.asking.samples)
        }
        asked, attempt = {request.id: request for request in self._pending}, 1
        while asked:
            requests, again = list(asked.values()), {}
            completions = timed(
                engine.generate(requests), self.directory.path, lambda key: samples[key][0].name
            )
            for completion in watch(completions, requests):
                task, sample = samples[completion.id]
                request, split = asked[completion.id], None
                prompt, failed = as_text(request.prompt, self.tokenizer), completion.finish_reason == "error"
                thoughts = rule_for(completion, self.asking.thoughts)
                if thoughts is not None and not failed:
                    split = self._split(thoughts, completion, prompt, task.spec)
                record = SampleRecord.of(sample, prompt, completion, split, attempt)
                if self.tokenizer is not None and not isinstance(request.prompt, str):
                    record = replace(record, prompt_end=prompt[-PROMPT_END:])
                other = None if failed else self.asking.again(request, record.graded, attempt)
                if other is None:
                    yield task.name, record
                else:
                    again[other.id] = other
            asked, attempt = again, attempt + 1

    def _split(
        self, thoughts: Thoughts, completion: Completion, prompt: str, spec: TaskSpec
    ) -> SplitRecord | None:
        """Thought and answer; None where the rule cannot read it: scoring says so, with all texts kept."""
        try:
            return thoughts.reply(
                completion,
                # Without the tokenizer nobody knows how the server's prompt ends.
                opened=self.tokenizer is not None and thoughts.opened(prompt),
                output_length=self.asking.limit(spec),
                tokenizer=self.tokenizer,
                ends=spec.ends,
                keeps_special=self.identified.family != "api",
            )
        except InputError:
            return None

    def finish(self) -> Results:
        """Scores all kept completions."""
        return score_run(self.config, self._suite, self.directory, run={"identity": self.identity})


def _trials(results: Results) -> dict[str, int]:
    """How many answers to each question pfgen's results cover; empty: they are no results of pfgen."""
    made = results.run.get(PFGEN, {})
    return {"samples": made["trials"]} if "trials" in made else {}


def _check_draws(identified: "Identified", samples: int) -> None:
    """Refuses several samples of a model whose own generation_config does not sample."""
    # What a server's model does, only the server knows.
    if identified.family == "api":
        return
    path = identified.model.path
    # Without the file transformers looks into config.json.
    own = {} if path is None else generation_config(path) or read_json_object(path / "config.json")
    if not from_generation_config(own).do_sample:
        raise InputError(
            f"the model's own generation_config is greedy: it gives the same answer {samples} times",
            where=f"option samples={samples}, {path / 'generation_config.json' if path else 'random model'}",
            fix="generation=swallow or generation.do_sample=true, without generation.from_model",
        )


def _kept_answers(
    suite: LoadedSuite, directory: RunDirectory, samples: int, regrading: Regrading
) -> tuple[list[TaskAnswers], list[SampleRecord]]:
    """The answers to a suite's samples, by dataset, and the records they are in."""
    answers: list[TaskAnswers] = []
    records: list[SampleRecord] = []
    for task in suite.tasks:
        kept = directory.records(task.name)
        keys = [key for sample in task.samples for key in task.spec.ids(sample.id, samples)]
        own = [kept[key] for key in keys if key in kept]
        given = {record.id: regrading.answer(record, task.spec) for record in own}
        answers.append(TaskAnswers(task.spec, task.samples, given, samples))
        records += own
    return answers, records


def score_run(
    config: Config,
    suite: LoadedSuite,
    directory: RunDirectory,
    *,
    run: Mapping[str, Any],
    reasons: Sequence[str] = (),
    gaps: Mapping[str, str] | None = None,
    into: RunDirectory | None = None,
) -> Results:
    """Scores the kept completions of a run and writes scores/ and, last, results.json.

    Args:
        config: the options that the run was made with, and those of the scoring.
        suite: the datasets and the samples that count.
        directory: the run.
        run: further entries of the result's section `run`; `identity` is what decided the completions.
        reasons: why the result is partial, beyond what is found here.
        gaps: the datasets that lack samples, with how many.
        into: another directory to write to.
    """
    identity = run["identity"]
    regrading = Regrading.of(config.reasoning, config.model, identity)
    answers, records = _kept_answers(suite, directory, config.samples, regrading)
    cut = None
    if suite.questions:
        if (made := identity.get(PFGEN)) is None:
            raise InputError(
                "the run does not say how pfgen was asked: its environment.json is lost",
                fix="run the same command again",
            )
        cut = partial(answer_of, mode=PfgenMode(made["mode"]), stop=made["stop"])
    if errors := sum(record.finish_reason == "error" for record in records):
        failed = Reason("{n} samples count as wrong: the engine could not answer them", n=errors)
        reasons = [*reasons, failed]
    scored, results = score_suite(
        config,
        suite,
        answers,
        identity,
        regrading,
        cut=cut,
        run={
            **run,
            "id": directory.path.name,
            "model": config.model.name if config.model else None,
            "errors": errors,
            "over_context": sum(record.over_context for record in records),
        },
        gaps=gaps,
        reasons=reasons,
    )
    stop_if_signalled()
    write_scored(into or directory, scored, results, config.export)
    return results


def score_suite(
    config: Config,
    suite: LoadedSuite,
    answers: Sequence[TaskAnswers],
    identity: Mapping[str, Any],
    regrading: Regrading,
    *,
    cut: Callable[[str], str] | None,
    run: Mapping[str, Any],
    gaps: Mapping[str, str] | None,
    reasons: Sequence[str] = (),
    warn: Callable[[str], None] = log.warning,
) -> tuple[list[TaskScores], Results]:
    """Scores the answers to a suite's samples; the scores of the datasets, and the whole result.

    Args:
        config, suite, gaps, reasons: see `score_run`.
        answers: by dataset.
        identity: what decided the completions, as far as it is known.
        regrading: what has made the answers.
        cut: see `score_pfgen`.
        run: further entries of the result's section `run`.
        warn: receives what to know about the answers.
    """
    details: dict[str, Any] = {}
    if suite.questions:
        scored, details = score_pfgen(suite.questions, answers[0], config.metrics.resamples, cut)
    else:
        scored = score_tasks(answers, config.protocol, config.metrics, offline=config.data.offline)
    found = [*regrading.warnings(scored)]
    for line in found:
        warn(line)
    results = summarise(
        scored,
        protocol_record(config, identity),
        missing_datasets=suite.missing,
        gaps=gaps,
        reasons=[*reasons, *suite.reasons],
        run={
            "datasets": {task.name: task.facts for task in suite.tasks},
            **run,
            **details,
            "suite": suite.name,
            "samples": sum(len(task.samples) for task in answers),
            "warnings": list(dict.fromkeys([*suite.warnings, *found])),
        },
    )
    return scored, results
