"""The verb judge: a run's answers -> judgments -> tables, calling only for what was never judged."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.core.config import Config
from evalkit.core.durable import remove_file, write_checked_json
from evalkit.core.reasons import Reason
from evalkit.core.types import Judgment
from evalkit.mtbench.judge.ask import Asked
from evalkit.mtbench.judge.calls import judgment_of
from evalkit.mtbench.judge.dispatch import ask_all
from evalkit.mtbench.judge.job import Job
from evalkit.mtbench.tables.model_tables import (
    answer_counts,
    as_logged,
    missing_turns,
    model_table,
    preset_sha256,
    results_json,
    scored,
)


@dataclass(frozen=True)
class Outcome:
    """What a judging came to; `failed` judgments are asked again by the next one."""

    job: Job
    content: dict[str, Any]
    asked: Asked
    failed: int


def judge_run(job: Job, config: Config, *, say: Callable[[str], None]) -> Outcome | None:
    """Judges a run and writes its judgments and results.json; None while a batch is under way.

    Raises:
        EvalkitError: the service refused, the budget is spent, or the disk is full; what was judged
            is in the store, and the run is as it was.
    """
    made = make_judgments(job, config, say=say)
    if made is None:
        return None
    judgments, asked = made
    content = _results(job, judgments, asked, config)
    # results.json means done, so it goes before the run is changed.
    remove_file(job.folder.results_path)
    job.folder.write_judgments(job.desk.judge.label, judgments)
    write_checked_json(job.folder.results_path, content)
    failed = sum(judgment.status == "api_error" for judgment in judgments)
    return Outcome(job, content, asked, failed)


def make_judgments(
    job: Job, config: Config, *, say: Callable[[str], None]
) -> tuple[list[Judgment], Asked] | None:
    """The judgments of a job, made where they are not kept; None while a batch is under way."""
    answers = ask_all(job.desk, config, job.plan.asks, say, job.kept)
    if answers is None:
        return None
    judgments = [judgment_of(ask, job.desk.judge, answers.by_id[ask.id]) for ask in job.plan.asks]
    return judgments, answers.asked


def _results(job: Job, judgments: Sequence[Judgment], asked: Asked, config: Config) -> dict[str, Any]:
    options = job.desk.judge.config
    tables, scores, partial = {}, {}, list(job.plan.missing)
    turns = job.folder.turns()
    wanted = len(job.books.in_language(job.header.language or "ja").questions)
    for model in dict.fromkeys(judgment.model for judgment in judgments):
        own = [judgment for judgment in judgments if judgment.model == model]
        rows = scored(own, job.preset)
        tables[model] = model_table(
            own,
            rows,
            job.preset,
            resamples=config.metrics.resamples,
            repeats=options.repeats,
            reduce=options.reduce,
        )
        scores[model] = as_logged(own)
        missing = missing_turns(scores[model], job.preset, wanted, job.preset.sampling.answers)
        partial += [Reason("{name}: {reason}", name=model, reason=reason) for reason in missing]
        if failed := sum(judgment.status == "api_error" for judgment in own):
            partial.append(Reason("{model}: {n} judgments failed at the service", model=model, n=failed))
        errors = answer_counts([turn for turn in turns if turn.model == model])["errors"]
        if errors:
            text = "{model}: {n} turns count as empty: the engine could not answer them"
            partial.append(Reason(text, model=model, n=errors))
    return results_json(
        job.preset,
        tables,
        scores,
        partial=partial,
        reduce=options.reduce,
        judge=_judge_record(job, judgments),
        answers=_answer_record(job),
        cost=_cost_record(job, asked, len(judgments), config),
    )


def _judge_record(job: Job, judgments: Sequence[Judgment]) -> dict[str, Any]:
    judge = job.desk.judge
    return {
        "label": judge.label,
        **judge.identity,
        "parameters": judge.parameters,
        "repeats": judge.config.repeats,
        "reduce": judge.config.reduce.value,
        "answered_by": dict(Counter(judgment.served_model or "?" for judgment in judgments)),
    }


def _answer_record(job: Job) -> dict[str, Any]:
    turns = job.folder.turns()
    same = job.header.preset_sha256 == preset_sha256(job.preset)
    made = {"source": job.header.source, "preset": job.preset.name if same else job.header.preset}
    return {
        model: answer_counts([turn for turn in turns if turn.model == model]) | made
        for model in job.header.models
    }


def _cost_record(job: Job, asked: Asked, judgments: int, config: Config) -> dict[str, Any]:
    price = job.desk.price_in(config.mode)
    return {
        "judgments": judgments,
        "calls": asked.calls,
        "input_tokens": asked.input_tokens,
        "output_tokens": asked.output_tokens,
        "dollars": price.of(asked.input_tokens, asked.output_tokens) if price else None,
    }


def say_on_stderr(line: str) -> None:
    """Says one line to the person who waits."""
    print(line, file=sys.stderr, flush=True)
