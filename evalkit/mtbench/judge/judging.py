"""The verb judge: a run's answers -> judgments -> tables, calling only for what was never judged."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.config import Config
from evalkit.core.durable import remove_file, write_checked_json
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.core.types import Judgment
from evalkit.mtbench.data import Books, pinned_files
from evalkit.mtbench.fastchat_logs import read_answers
from evalkit.mtbench.folder import Header, MtBenchFolder, answers_of, open_folder, turns_of
from evalkit.mtbench.judge.ask import AskResult
from evalkit.mtbench.judge.calls import JudgeCall, cached_reply_of, judgment_of, plan_calls
from evalkit.mtbench.judge.dispatch import JudgeReplies, ask_judge, open_judge
from evalkit.mtbench.judge.judges import Judge, judging_preset
from evalkit.mtbench.judge.store import CachedReply
from evalkit.mtbench.presets import DEFAULT_PRESET, Preset, load_preset, preset_option
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
class JudgingPlan:
    """Everything known before the first call.

    `missing` says what cannot be asked, and why. `kept` are the replies that the run folder holds
    from an earlier judging.
    """

    folder: MtBenchFolder
    header: Header
    preset: Preset
    books: Books
    judge: Judge
    calls: tuple[JudgeCall, ...]
    missing: tuple[str, ...]
    kept: tuple[CachedReply, ...]

    def judgments(self, replies: JudgeReplies) -> list[Judgment]:
        """The reply to every call as a judgment."""
        return [judgment_of(call, self.judge.label, replies.by_id[call.id]) for call in self.calls]


@dataclass(frozen=True)
class JudgingResult:
    """The results of a judging; its `failed` judgments are asked again by the next one."""

    content: dict[str, Any]
    failed: int


def plan_judging(config: Config) -> JudgingPlan:
    """Reads the run, its preset and its judge, and plans the calls.

    Raises:
        InputError: no run or answers, an unknown preset, an incomplete judge.
        FetchError: a file of the preset cannot be fetched.
    """
    folder, header = _folder(config)
    preset = judging_preset(config.preset or header.preset, config.judge)
    books = Books(preset, pinned_files(config), config.language or header.language)
    judge = open_judge(config, preset)
    answers = answers_of(folder.turns())
    if not answers:
        raise InputError("the run has no answers to judge", where=folder.path)
    calls, missing = plan_calls(answers, books, preset, judge)
    kept = [cached_reply_of(judgment) for judgment in folder.judgments(judge.label)]
    replies = tuple(reply for reply in kept if reply is not None)
    return JudgingPlan(folder, header, preset, books, judge, tuple(calls), tuple(missing), replies)


def _folder(config: Config) -> tuple[MtBenchFolder, Header]:
    if config.answers is None:
        folder = open_folder(config.run)
        return folder, folder.header()
    if config.run is not None or config.out is None:
        raise InputError("answers= are judged into a folder of their own", fix="out=DIR, and no run=")
    answers = read_answers(Path(config.answers).expanduser())
    if not answers:
        raise InputError("there is no answer in the file", where=config.answers)
    name = config.preset or DEFAULT_PRESET
    books = Books(judging_preset(name, config.judge), pinned_files(config), config.language)
    categories = {}
    for answer in answers:
        question = books.of(answer.question_id).questions.get(answer.question_id)
        if question is None:
            raise InputError(f"question {answer.question_id} is not in the preset's question file")
        categories[answer.question_id] = question.category
    languages = {books.language(answer.question_id) for answer in answers}
    header = Header(
        preset=preset_option(name),
        preset_sha256=preset_sha256(load_preset(name)),
        language=languages.pop() if len(languages) == 1 else None,
        source="given",
        models=tuple(dict.fromkeys(answer.model for answer in answers)),
    )
    folder = MtBenchFolder(Path(config.out).expanduser())
    folder.write_header(header)
    folder.write_turns(turns_of(answers, categories))
    return folder, header


def judge_run(plan: JudgingPlan, config: Config, *, say: Callable[[str], None]) -> JudgingResult | None:
    """Judges a run and writes its judgments and results.json; None while a batch is under way.

    Raises:
        EvalkitError: the service refused, the budget is spent, or the disk is full; what was judged
            is in the store, and the run is unchanged.
    """
    replies = ask_judge(plan.judge, config, plan.calls, plan.folder.path, say, plan.kept)
    if replies is None:
        return None
    judgments = plan.judgments(replies)
    content = _results(plan, judgments, replies.asked, config)
    # results.json means done, so it is removed before the run is changed.
    remove_file(plan.folder.results_path)
    plan.folder.write_judgments(plan.judge.label, judgments)
    write_checked_json(plan.folder.results_path, content)
    return JudgingResult(content, sum(judgment.status == "api_error" for judgment in judgments))


def _results(
    plan: JudgingPlan, judgments: Sequence[Judgment], asked: AskResult, config: Config
) -> dict[str, Any]:
    judge, options = plan.judge, plan.judge.config
    tables, scores, partial = {}, {}, list(plan.missing)
    turns = plan.folder.turns()
    wanted = len(plan.books.in_language(plan.header.language or "ja").questions)
    for model in dict.fromkeys(judgment.model for judgment in judgments):
        own = [judgment for judgment in judgments if judgment.model == model]
        tables[model] = model_table(
            own,
            scored(own, plan.preset),
            plan.preset,
            resamples=config.metrics.resamples,
            repeats=options.repeats,
            reduce=options.reduce,
        )
        scores[model] = as_logged(own)
        missing = missing_turns(scores[model], plan.preset, wanted, plan.preset.sampling.answers)
        partial += [Reason("{name}: {reason}", name=model, reason=reason) for reason in missing]
        if failed := sum(judgment.status == "api_error" for judgment in own):
            partial.append(Reason("{model}: {n} judgments failed at the service", model=model, n=failed))
        errors = answer_counts([turn for turn in turns if turn.model == model])["errors"]
        if errors:
            text = "{model}: {n} turns count as empty: the engine could not answer them"
            partial.append(Reason(text, model=model, n=errors))
    # Other judge prompts do not change how the answers were made.
    asked_for = load_preset(config.preset or plan.header.preset)
    same = plan.header.preset_sha256 == preset_sha256(asked_for)
    made = {"source": plan.header.source, "preset": plan.preset.name if same else plan.header.preset}
    price = judge.price_in(config.mode)
    return results_json(
        plan.preset,
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
        answers={
            model: answer_counts([turn for turn in turns if turn.model == model]) | made
            for model in plan.header.models
        },
        cost={
            "judgments": len(judgments),
            "calls": asked.calls,
            "input_tokens": asked.input_tokens,
            "output_tokens": asked.output_tokens,
            "dollars": price.of(asked.input_tokens, asked.output_tokens) if price else None,
        },
    )
