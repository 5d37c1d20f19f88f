"""The verb judge: a run's answers -> judgments -> tables, calling only for what was never judged."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.config import JudgeMode
from evalkit.core.durable import remove_file, write_checked_json
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.core.types import Judgment
from evalkit.mtbench.books import BookOptions, Books
from evalkit.mtbench.fastchat import read_answers
from evalkit.mtbench.folder import KINDS, Header, MtBenchFolder, answers_of, turns_of
from evalkit.mtbench.judge.calls import (
    AskingResult,
    JudgeCall,
    JudgeReplies,
    cached_reply_of,
    judgment_of,
    plan_calls,
)
from evalkit.mtbench.judge.judges import Judge
from evalkit.mtbench.judge.store import CachedReply
from evalkit.mtbench.model_tables import (
    answer_counts,
    as_logged,
    missing_turns,
    model_table,
    results_json,
    scored,
)
from evalkit.mtbench.presets import load_preset
from evalkit.records.run_folder import SampleRecord
from evalkit.tasks.answers import choose_rule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgingPlan:
    """Everything known before the first call.

    `missing` says what cannot be asked, and why. `kept` are the replies that the run folder holds
    from an earlier judging.
    """

    folder: MtBenchFolder
    header: Header
    books: Books
    judge: Judge
    calls: tuple[JudgeCall, ...]
    missing: tuple[str, ...]
    kept: tuple[CachedReply, ...]

    def judgments(self, replies: JudgeReplies) -> list[Judgment]:
        """The reply to every call as a judgment."""
        return [judgment_of(self.judge, call, replies.by_id[call.id]) for call in self.calls]


def plan_judging(
    folder: MtBenchFolder, header: Header, turns: Sequence[SampleRecord], books: Books, judge: Judge
) -> JudgingPlan:
    """Plans the calls for the answered `turns` of a run.

    Raises:
        InputError: no answers, or an answer to a question the preset does not have.
        FetchError: a file of the preset cannot be fetched.
    """
    answers = answers_of(turns)
    if not answers:
        raise InputError("the run has no answers to judge", where=folder.path)
    calls, missing = plan_calls(answers, books, judge)
    kept = [cached_reply_of(one) for kind in KINDS for one in folder.judgments(judge.label, kind)]
    replies = tuple(reply for reply in kept if reply is not None)
    return JudgingPlan(folder, header, books, judge, tuple(calls), tuple(missing), replies)


def given_answers(path: Path, options: BookOptions) -> tuple[Header, list[SampleRecord]]:
    """FastChat's answer files as the header and the turns of a run of their own.

    Raises:
        InputError: no answer in them, or one to a question the preset does not have.
        FetchError: a file of the preset cannot be fetched.
    """
    answers = read_answers(path)
    if not answers:
        raise InputError("there is no answer in the file", where=path)
    books = options.books()
    categories = {answer.question_id: books.question(answer.question_id).category for answer in answers}
    models = list(dict.fromkeys(answer.model for answer in answers))
    return books.header("given", models, categories), turns_of(answers, categories)


def write_results(
    plan: JudgingPlan, replies: JudgeReplies, mode: JudgeMode, resamples: int
) -> dict[str, Any]:
    """Writes the judgments of a run and its results.json; returns the latter. `mode` decides the price."""
    judgments = plan.judgments(replies)
    if plan.judge.thoughts is None and (n := sum(choose_rule(one.text) != "none" for one in judgments)):
        log.warning("%d judgments have the marks of a thought, and no rule splits them: judge.parser=", n)
    content = _results(plan, judgments, replies.asked, mode, resamples)
    # results.json means done, so it is removed before the run is changed.
    remove_file(plan.folder.results_path)
    plan.folder.write_judgments(plan.judge.label, judgments)
    write_checked_json(plan.folder.results_path, content)
    return content


def _results(
    plan: JudgingPlan, judgments: Sequence[Judgment], asked: AskingResult, mode: JudgeMode, resamples: int
) -> dict[str, Any]:
    judge, options, preset = plan.judge, plan.judge.config, plan.books.preset
    tables, scores, partial, counts = {}, {}, list(plan.missing), {}
    turns = plan.folder.turns()
    for model in dict.fromkeys((*plan.header.models, *(judgment.model for judgment in judgments))):
        counts[model] = answer_counts([turn for turn in turns if turn.model == model])
    for model in dict.fromkeys(judgment.model for judgment in judgments):
        own = [judgment for judgment in judgments if judgment.model == model]
        tables[model] = model_table(
            own,
            scored(own, preset),
            preset,
            resamples=resamples,
            repeats=options.repeats,
            reduce=options.reduce,
        )
        scores[model] = as_logged(own)
        wanted = plan.books.size(judgment.question_id for judgment in own)
        partial += missing_turns(model, scores[model], preset, wanted, preset.sampling.answers)
        if failed := sum(judgment.status == "api_error" for judgment in own):
            partial.append(Reason("{model}: {n} judgments failed at the service", model=model, n=failed))
        if errors := counts[model]["errors"]:
            text = "{model}: {n} turns count as empty: the engine could not answer them"
            partial.append(Reason(text, model=model, n=errors))
    # Other judge prompts do not change how the answers were made.
    same = plan.header.preset_sha256 == load_preset(plan.books.name).sha256
    made = {"source": plan.header.source, "preset": preset.name if same else plan.header.preset}
    price = judge.price_in(mode)
    return results_json(
        preset,
        tables,
        scores,
        partial=partial,
        reduce=options.reduce,
        judge={
            **judge.record(),
            "repeats": options.repeats,
            "reduce": options.reduce.value,
            "answered_by": dict(Counter(judgment.served_model or "?" for judgment in judgments)),
        },
        answers={model: counts[model] | made for model in plan.header.models},
        cost={
            "judgments": len(judgments),
            "calls": asked.calls,
            "input_tokens": asked.input_tokens,
            "output_tokens": asked.output_tokens,
            "dollars": price.of(asked.input_tokens, asked.output_tokens) if price else None,
        },
    )
