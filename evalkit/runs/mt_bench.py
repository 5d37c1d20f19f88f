"""A run of an MT-Bench suite: both turns of every question, resumable answer by answer."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evalkit.core.config import Config, ThoughtParser, given_model, given_suite
from evalkit.core.durable import read_checked_json, write_checked_json
from evalkit.core.progress import Say, phase, watch
from evalkit.core.reasons import Reason
from evalkit.core.types import Message
from evalkit.core.words import t
from evalkit.engines.base import GENERATION_VERSION, SAMPLING_VERSION
from evalkit.engines.local.chat_template import clock_date, render_chat
from evalkit.engines.local.tokenizer import tokenizer_of
from evalkit.mtbench.books import BookOptions
from evalkit.mtbench.fastchat import Language
from evalkit.mtbench.folder import SAMPLES, Header, MtBenchFolder
from evalkit.mtbench.model_tables import answer_counts, results_json
from evalkit.mtbench.presets import Preset
from evalkit.mtbench.turns import (
    AnswerRules,
    answer_rules,
    answered,
    choose_questions,
    requests_of_turn,
    special_tokens_of,
)
from evalkit.records.run_folder import SampleRecord
from evalkit.runs.life import Opened, Outcome, Run, complete
from evalkit.tasks.thoughts import Thoughts, refuse_unread

if TYPE_CHECKING:
    from evalkit.engines.base import Engine, Identified

log = logging.getLogger(__name__)


def answer_questions(
    config: Config, *, say: Say, opened: Opened = lambda folder: None
) -> Outcome[dict[str, Any]]:
    """Has a model answer an MT-Bench suite, continuing where an earlier call stopped.

    Raises:
        InputError: bad options, or a model without a chat template; nothing was started.
        FetchError: the question file cannot be fetched.
        EvalkitError: something failed on the way; finished turns are kept.
    """
    from evalkit.engines import check

    with phase(t("looking for the model")):
        check(given_model(config.model), config.engine, offline=config.data.offline)
    with phase(t("reading the model's files and its tokenizer")):
        run = MtBenchRun(config)
    if run.tokenizer is not None:
        _check_template(run.preset, run.tokenizer)
    if run.thoughts is not None and config.reasoning.parser is ThoughtParser.auto:
        say(t("reasoning.parser={rule}, by the chat template", rule=run.thoughts.rule))
    if run.thoughts is None and run.tokenizer is None:
        refuse_unread(config.given)
    return complete(run, say=say, opened=opened)


class MtBenchRun(Run[dict[str, Any]]):
    """The answers of a model to MT-Bench's questions."""

    def __init__(self, config: Config) -> None:
        from evalkit.engines import identify

        model, suite = given_model(config.model), given_suite(config.suite)
        books = BookOptions.of(config).books(suite.preset)
        self._chosen, self.preset = books.name, books.preset
        self._language = self.preset.language([], config.language or suite.mt_bench)
        book = books.in_language(self._language)
        self._all_questions = len(book.questions)
        self._questions = choose_questions(list(book.questions.values()), max(config.limit or 0, 0))
        identified = identify(model, config.engine, config.dtype, offline=config.data.offline)
        self.tokenizer = tokenizer_of(identified.model)
        self.thoughts = Thoughts.of(config.reasoning, self.tokenizer, chat=True)
        identity = _identity(self.preset, self._language, identified, self.tokenizer)
        if self.thoughts is not None:
            identity["reasoning"] = self.thoughts.identity
        if model.chat_template_args:
            identity["template_args"] = model.chat_template_args
        super().__init__(config, identified, identity)
        self._folder = MtBenchFolder(self.directory.path)
        self._kept: dict[str, SampleRecord] = {}
        self._rules: AnswerRules | None = None

    @property
    def follow_generation_config(self) -> bool:
        """Never: the preset decides the sampling; the rules add what the model's own configuration says."""
        return False

    def recover(self, say: Say) -> tuple[int, int]:
        """Counts turns; the turns of damaged lines are missing."""
        too_long = self._asked_again()
        if damaged := self.directory.recover(SAMPLES, too_long):
            log.warning(
                "%d damaged lines of an earlier stop are dropped, their turns are asked again", damaged
            )
        if too_long:
            text = "{n} prompts were too long for the server; its context has grown, and they are asked again"
            say(t(text, n=len(too_long)))
        self._kept = self.directory.records(SAMPLES)
        return len(self._kept), self._missing(self._kept.values())

    def kept_results(self) -> dict[str, Any] | None:
        """results.json, also with the tables of a judge, when every turn that is asked for is kept."""
        try:
            results = read_checked_json(self.directory.results_path)
        except (OSError, ValueError):
            return None
        records = self.directory.records(SAMPLES)
        return None if self._asked_again() or self._missing(records.values()) else results

    def _asked_again(self) -> list[str]:
        """The ids of turns that were too long for the server and may fit now, and of later ones on them."""
        if not self.has_more_context:
            return []
        questions = {question.id for question in self._questions}
        kept = self.directory.records(SAMPLES).values()
        turns = [one for one in kept if one.question_id in questions]
        too_long = {(one.question_id, one.answer, one.turn) for one in turns if one.over_context}
        return [
            one.id
            for one in turns
            if any((one.question_id, one.answer, turn) in too_long for turn in range(1, one.turn + 1))
        ]

    def _missing(self, kept: Iterable[SampleRecord]) -> int:
        """How many of the turns that are asked for are not kept."""
        have = Counter((record.question_id, record.turn) for record in kept)
        wanted = [(question.id, turn) for question in self._questions for turn in self.preset.turns]
        return sum(max(0, self.preset.sampling.answers - have[key]) for key in wanted)

    def write_files(self, *, keep: bool) -> None:
        """Writes config.yaml and mt_bench.json."""
        super().write_files(keep=keep)
        if not (keep and self._folder.has_header()):
            models = (self.identified.model.name,)
            header = Header(self._chosen, self.preset.sha256, self._language, "generated", models)
            self._folder.write_header(header)

    def engine_started(self, described: dict[str, Any]) -> dict[str, Any]:
        """Fixes the rules of the answers, which depend on the model's generation_config."""
        rules = answer_rules(self.preset, self.tokenizer, described.get("generation_config") or {})
        if self.preset.system_message is not None and rules.system_message is None:
            log.warning("the chat template takes no system message: none is sent")
        self._rules = rules
        return {"answers": {**asdict(rules), "length": rules.length.value}}

    def generate(self, engine: "Engine") -> Iterator[tuple[str, SampleRecord]]:
        """Yields all first turns, then the second turns that continue them."""
        assert self._rules is not None
        model, tokenizer = self.identified.model.name, self.tokenizer
        special_tokens = special_tokens_of(tokenizer)
        for turn in self.preset.turns:
            asks = requests_of_turn(
                turn, model, self._questions, self._rules, tokenizer, self._kept, self.thoughts
            )
            if not asks:
                continue
            log.info("turn %d: %d answers to make", turn, len(asks))
            by_id = {ask.request.id: ask for ask in asks}
            requests = [ask.request for ask in asks]
            title = f"{t('generating')}, {t(f'turn {turn}')}"
            for completion in watch(engine.generate(requests), requests, title):
                record = answered(
                    by_id[completion.id],
                    completion,
                    special_tokens,
                    self.thoughts,
                    tokenizer,
                    keeps_special=self.identified.family != "api",
                )
                self._kept[record.id] = record
                yield SAMPLES, record

    def finish(self) -> dict[str, Any]:
        """Writes results.json before any judging: the answers' counts and no table."""
        turns = list(self._kept.values())
        wanted = len(self.preset.turns) * self._all_questions * self.preset.sampling.answers
        reasons = ["the answers are not judged yet"]
        if wanted > len(turns):
            reasons.append(Reason("{n} turns of the question set are not answered", n=wanted - len(turns)))
        counts = {self.identified.model.name: answer_counts(turns)}
        results = results_json(self.preset, {}, {}, partial=reasons, answers=counts)
        write_checked_json(self.directory.results_path, results)
        return results


def _check_template(preset: Preset, tokenizer: Any) -> None:
    """Refuses an unsuitable chat template, also for the second turn, before a model is loaded."""
    rules = answer_rules(preset, tokenizer, {})
    turns = [Message("user", "1"), Message("assistant", "2"), Message("user", "3")]
    if rules.system_message is not None:
        turns.insert(0, Message("system", rules.system_message))
    render_chat(turns if len(preset.turns) > 1 else turns[:-2], tokenizer)


def _identity(
    preset: Preset, language: Language, identified: "Identified", tokenizer: Any | None
) -> dict[str, Any]:
    # What a server writes for today is not ours to choose.
    date = clock_date(tokenizer) if identified.family != "api" else None
    return {
        **({"template_date": date} if date else {}),
        "generation_version": GENERATION_VERSION,
        "sampling_version": SAMPLING_VERSION,
        "mt_bench": preset.name,
        "language": language,
        "questions": preset.sets[language].questions.sha256,
        "sampling": preset.sampling.identity,
        "length": {
            "rule": preset.length.rule.value if preset.length.rule else None,
            "tokens": preset.length.tokens,
        },
        "system_message": preset.system_message,
        "model": identified.model.identity,
        "dtype": identified.dtype,
        "engine_family": identified.family,
    }
