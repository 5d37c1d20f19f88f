"""A run of an MT-Bench suite: both turns of every question, resumable answer by answer."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.core.config import Config
from evalkit.core.durable import (
    Appender,
    is_whole_text,
    read_checked_json,
    read_log,
    remove_file,
    write_checked_json,
    write_lines_atomic,
)
from evalkit.core.errors import InputError
from evalkit.core.progress import watch
from evalkit.core.reasons import Reason
from evalkit.core.signals import signals_stop_the_run, stop_if_signalled
from evalkit.core.text import folder_name
from evalkit.core.types import Message
from evalkit.core.words import t
from evalkit.engines.base import GENERATION_VERSION, SAMPLING_VERSION
from evalkit.engines.local.chat_template import clock_date, render_chat
from evalkit.mtbench.answers.turns import (
    TurnAsk,
    answer_rules,
    answered,
    asks_of_turn,
    choose_questions,
    special_tokens_of,
)
from evalkit.mtbench.data import Books, pinned_files
from evalkit.mtbench.folder import Header, MtBenchFolder
from evalkit.mtbench.presets import DEFAULT_PRESET, Preset, load_preset, preset_option
from evalkit.mtbench.questions import Language, Question
from evalkit.mtbench.tables.model_tables import answer_counts, preset_sha256, results_json
from evalkit.records.environment import (
    CONFIG,
    ENVIRONMENT,
    describe_environment,
    kept_environment,
    write_config,
)
from evalkit.records.run_folder import RunDirectory, SampleRecord, run_id

if TYPE_CHECKING:
    from evalkit.engines.base import Engine, Identified
    from evalkit.engines.models import ResolvedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerOutcome:
    """What answering came to: turns made by this call, turns kept, and the content of results.json."""

    folder: Path
    generated: int
    kept: int
    content: dict[str, Any]


def answer_questions(
    config: Config, *, say: Callable[[str], None], opened: Callable[[Path], None] = lambda folder: None
) -> AnswerOutcome:
    """Has a model answer an MT-Bench suite, going on where an earlier call stopped.

    Raises:
        InputError: bad options, or a model without a chat template; nothing was started.
        FetchError: the question file cannot be had.
        EvalkitError: something failed on the way; finished turns are kept.
    """
    from evalkit.core.logs import log_to

    planned = _plan(config)
    preset, questions, directory = planned.preset, planned.questions, planned.directory
    model = planned.identified.model
    tokenizer = planned.tokenizer
    _check_template(preset, tokenizer)
    folder = MtBenchFolder(directory.path)
    with directory, log_to(directory.path / "run.log"), signals_stop_the_run():
        opened(directory.path)
        say(t("run: {folder}", folder=directory.path))
        kept = _recover(folder)
        before = len(kept)
        environment = {"identity": planned.identity, **describe_environment()}
        complete = _complete(kept, questions, preset)
        if not complete:
            # results.json means done, so it goes before anything is added to the run.
            remove_file(folder.results_path)
        header = Header(planned.chosen, preset_sha256(preset), planned.language, "generated", (model.name,))
        _start_files(folder, config, header, environment, keep=complete)
        if not complete:
            _generate(config, preset, model, tokenizer, questions, folder, kept, environment)
        content = _kept_content(folder)
        if content is None:
            content = _unjudged(kept.values(), preset, model.name, planned.all_questions)
            write_checked_json(folder.results_path, content)
        return AnswerOutcome(directory.path, len(kept) - before, before, content)


def finished_answers(config: Config) -> Path | None:
    """The run directory when every turn that a command asks for is kept, else None; loads no model."""
    planned = _plan(config)
    folder = MtBenchFolder(planned.directory.path)
    kept = {record.id: record for record in folder.turns()} if folder.samples_path.exists() else {}
    done = _kept_content(folder) is not None and _complete(kept, planned.questions, planned.preset)
    return folder.path if done else None


@dataclass(frozen=True)
class _Planned:
    """What a command asks for. `chosen` is the name of the preset as it was given."""

    chosen: str
    preset: Preset
    language: Language
    questions: Sequence[Question]
    all_questions: int
    identified: "Identified"
    tokenizer: Any | None
    identity: dict[str, Any]
    directory: RunDirectory


def _plan(config: Config) -> _Planned:
    from evalkit.engines import identify

    if config.model is None:
        raise InputError("no model is given", fix="model=1.8b-instruct   (python -m evalkit list models)")
    assert config.suite is not None
    chosen = preset_option(config.preset or config.suite.preset or DEFAULT_PRESET)
    preset = load_preset(chosen)
    language = preset.language([], config.language or config.suite.mt_bench)
    book = Books(preset, pinned_files(config)).in_language(language)
    questions = choose_questions(list(book.questions.values()), max(config.limit or 0, 0))
    identified = identify(config)
    tokenizer = _tokenizer(identified)
    identity = _identity(preset, language, identified, tokenizer)
    path = Path(config.out or "results").expanduser() / identified.model.label
    directory = RunDirectory(path / folder_name(config.suite.name) / run_id(identity))
    return _Planned(
        chosen,
        preset,
        language,
        questions,
        len(book.questions),
        identified,
        tokenizer,
        identity,
        directory,
    )


def _tokenizer(identified: "Identified") -> Any | None:
    """The model's tokenizer; None where only a server of another kind than evalkit's has it."""
    from evalkit.engines.local.tokenizer import load_tokenizer

    if identified.family == "api" and not identified.model.has_tokenizer:
        return None
    return load_tokenizer(identified.model)


def _check_template(preset: Preset, tokenizer: Any | None) -> None:
    """Refuses a chat template that will not do, also for the second turn, before a model is loaded."""
    if tokenizer is None:
        return
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
        "sampling": asdict(preset.sampling),
        "length": {
            "rule": preset.length.rule.value if preset.length.rule else None,
            "tokens": preset.length.tokens,
        },
        "system_message": preset.system_message,
        "model": identified.model.identity,
        "dtype": identified.dtype,
        "engine_family": identified.family,
    }


def _recover(folder: MtBenchFolder) -> dict[str, SampleRecord]:
    rows, damaged = read_log(folder.samples_path)
    if damaged:
        log.warning("%d damaged lines of an earlier stop are dropped, their turns are asked again", damaged)
        write_lines_atomic(folder.samples_path, rows.values())
    return {record.id: record for record in folder.turns()}


def _complete(kept: Mapping[str, SampleRecord], questions: Sequence[Question], preset: Preset) -> bool:
    have = Counter((record.question_id, record.turn) for record in kept.values())
    wanted = [(question.id, turn) for question in questions for turn in preset.turns]
    return all(have[key] >= preset.sampling.answers for key in wanted)


def _start_files(
    folder: MtBenchFolder, config: Config, header: Header, environment: dict[str, Any], *, keep: bool
) -> None:
    """Writes what a run begins with; `keep`: only what is missing or damaged."""
    if not (keep and is_whole_text(folder.path / CONFIG)):
        write_config(config, folder.path)
    if not (keep and folder.has_header()):
        folder.write_header(header)
    # What is there names the engine that made the kept answers: it stays until one is started.
    if kept_environment(folder.path) is None:
        write_checked_json(folder.path / ENVIRONMENT, environment)


def _kept_content(folder: MtBenchFolder) -> dict[str, Any] | None:
    try:
        return read_checked_json(folder.results_path)
    except (OSError, ValueError):
        return None


def _generate(
    config: Config,
    preset: Preset,
    model: "ResolvedModel",
    tokenizer: Any | None,
    questions: Sequence[Question],
    folder: MtBenchFolder,
    kept: dict[str, SampleRecord],
    environment: dict[str, Any],
) -> None:
    from evalkit.engines import build_engine

    # The preset decides the sampling; what the model's own configuration adds is taken up by the rules.
    own = replace(config, generation=replace(config.generation, from_model=False))
    with build_engine(own, model) as engine:
        described = engine.describe()
        rules = answer_rules(preset, tokenizer, described.get("generation_config") or {})
        if preset.system_message is not None and rules.system_message is None:
            log.warning("the chat template takes no system message: none is sent")
        used = {**asdict(rules), "length": rules.length.value}
        write_checked_json(folder.path / ENVIRONMENT, environment | {"engine": described, "answers": used})
        special_tokens = special_tokens_of(tokenizer)
        for turn in preset.turns:
            asks = asks_of_turn(turn, model.name, questions, rules, tokenizer, kept)
            if asks:
                log.info("turn %d: %d answers to make", turn, len(asks))
                _answer_turn(engine, asks, special_tokens, folder, kept)


def _answer_turn(
    engine: "Engine",
    asks: Sequence[TurnAsk],
    special_tokens: Sequence[str],
    folder: MtBenchFolder,
    kept: dict[str, SampleRecord],
) -> None:
    by_id = {ask.request.id: ask for ask in asks}
    appender = Appender(folder.samples_path)
    try:
        for completion in watch(engine.generate([ask.request for ask in asks]), len(asks)):
            record = answered(by_id[completion.id], completion, special_tokens)
            appender.append(record.line())
            kept[record.id] = record
            stop_if_signalled()
    finally:
        appender.close()


def _unjudged(turns: Iterable[SampleRecord], preset: Preset, model: str, questions: int) -> dict[str, Any]:
    """results.json before any judging: the answers' counts and no table."""
    listed = list(turns)
    missing = len(preset.turns) * questions * preset.sampling.answers - len(listed)
    reasons = ["the answers are not judged yet"]
    if missing > 0:
        reasons.append(Reason("{n} turns of the question set are not answered", n=missing))
    return results_json(preset, {}, {}, partial=reasons, answers={model: answer_counts(listed)})
