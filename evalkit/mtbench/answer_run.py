"""A run of an MT-Bench suite: both turns of every question, resumable answer by answer."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

from evalkit.config import Config, is_offline
from evalkit.environment import describe_environment
from evalkit.errors import InputError
from evalkit.identity import GENERATION_VERSION, folder_name
from evalkit.mtbench.answers import (
    TurnAsk,
    answer_rules,
    answered,
    asks_of_turn,
    choose_questions,
    special_tokens_of,
)
from evalkit.mtbench.data import Books, pinned_files
from evalkit.mtbench.folder import Header, MtBenchFolder, TurnRecord
from evalkit.mtbench.presets import DEFAULT_PRESET, Preset, load_preset, preset_option
from evalkit.mtbench.questions import Language, Question
from evalkit.mtbench.results import answer_counts, preset_sha256, results_json
from evalkit.progress import watch
from evalkit.records import (
    Appender,
    RunDirectory,
    read_log,
    run_id,
    write_json_atomic,
    write_lines_atomic,
    write_text_atomic,
)
from evalkit.signals import signals_stop_the_run, stop_if_signalled

if TYPE_CHECKING:
    from evalkit.engines.base import Engine
    from evalkit.models import ResolvedModel

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
    from evalkit.engines.loading import load_tokenizer
    from evalkit.logs import log_to

    planned = _plan(config)
    preset, questions, directory = planned.preset, planned.questions, planned.directory
    model = planned.model
    tokenizer = load_tokenizer(model)
    answer_rules(preset, tokenizer, {})
    folder = MtBenchFolder(directory.path)
    with directory, log_to(directory.path / "run.log"), signals_stop_the_run():
        opened(directory.path)
        say(f"run: {directory.path}")
        kept = _recover(folder)
        before = len(kept)
        if not _complete(kept, questions, preset):
            sha256 = preset_sha256(preset)
            header = Header(planned.chosen, sha256, planned.language, "generated", (model.name,))
            environment = _start_files(folder, config, header, planned.identity)
            _generate(config, preset, model, tokenizer, questions, folder, kept, environment)
        if not folder.results_path.exists():
            content = _unjudged(kept.values(), preset, model.name, planned.all_questions)
            write_json_atomic(folder.results_path, content)
        content = json.loads(folder.results_path.read_text(encoding="utf-8"))
        return AnswerOutcome(directory.path, len(kept) - before, before, content)


def finished_answers(config: Config) -> Path | None:
    """The run directory when every turn that a command asks for is kept, else None; loads no model."""
    planned = _plan(config)
    folder = MtBenchFolder(planned.directory.path)
    kept = {record.id: record for record in folder.turns()} if folder.samples_path.exists() else {}
    done = folder.results_path.exists() and _complete(kept, planned.questions, planned.preset)
    return folder.path if done else None


@dataclass(frozen=True)
class _Planned:
    """What a command asks for. `chosen` is the name of the preset as it was given."""

    chosen: str
    preset: Preset
    language: Language
    questions: Sequence[Question]
    all_questions: int
    model: "ResolvedModel"
    identity: dict[str, Any]
    directory: RunDirectory


def _plan(config: Config) -> _Planned:
    from evalkit.models import resolve

    if config.model is None:
        raise InputError("no model is given", fix="model=1.8b-instruct   (python -m evalkit list models)")
    assert config.suite is not None
    chosen = preset_option(config.preset or config.suite.preset or DEFAULT_PRESET)
    preset = load_preset(chosen)
    language = preset.language([], config.language or config.suite.mt_bench)
    book = Books(preset, pinned_files(config)).in_language(language)
    questions = choose_questions(list(book.questions.values()), max(config.limit or 0, 0))
    model = resolve(config.model, offline=is_offline(config))
    identity = _identity(config, preset, language, model)
    path = Path(config.out or "results").expanduser() / model.label / folder_name(config.suite.name)
    directory = RunDirectory(path / run_id(identity))
    return _Planned(chosen, preset, language, questions, len(book.questions), model, identity, directory)


def _identity(config: Config, preset: Preset, language: Language, model: "ResolvedModel") -> dict[str, Any]:
    from evalkit.engines import engine_family, resolve_dtype

    return {
        "generation_version": GENERATION_VERSION,
        "mt_bench": preset.name,
        "language": language,
        "questions": preset.sets[language].questions.sha256,
        "sampling": asdict(preset.sampling),
        "length": {
            "rule": preset.length.rule.value if preset.length.rule else None,
            "tokens": preset.length.tokens,
        },
        "system_message": preset.system_message,
        "model": model.identity,
        "dtype": resolve_dtype(config),
        "engine_family": engine_family(config),
    }


def _recover(folder: MtBenchFolder) -> dict[str, TurnRecord]:
    rows, damaged = read_log(folder.samples_path)
    if damaged:
        log.warning("%d damaged lines of an earlier stop are dropped, their turns are asked again", damaged)
        write_lines_atomic(folder.samples_path, rows.values())
    return {record.id: record for record in folder.turns()}


def _complete(kept: Mapping[str, TurnRecord], questions: Sequence[Question], preset: Preset) -> bool:
    have = Counter((record.question_id, record.turn) for record in kept.values())
    wanted = [(question.id, turn) for question in questions for turn in preset.turns]
    return all(have[key] >= preset.sampling.answers for key in wanted)


def _start_files(
    folder: MtBenchFolder, config: Config, header: Header, identity: dict[str, Any]
) -> dict[str, Any]:
    """Writes what a run begins with; returns the content of environment.json so far."""
    # results.json means done, so it goes before anything is added to the run.
    folder.results_path.unlink(missing_ok=True)
    content = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    write_text_atomic(folder.path / "config.yaml", text)
    folder.write_header(header)
    return {"identity": identity, **describe_environment()}


def _generate(
    config: Config,
    preset: Preset,
    model: "ResolvedModel",
    tokenizer: Any,
    questions: Sequence[Question],
    folder: MtBenchFolder,
    kept: dict[str, TurnRecord],
    environment: dict[str, Any],
) -> None:
    from evalkit.engines import build_engine

    # The preset decides the sampling; what the model's own configuration adds is taken up by the rules.
    own = replace(config, generation=replace(config.generation, from_model=False))
    with build_engine(own, model) as engine:
        described = engine.describe()
        rules = answer_rules(preset, tokenizer, described.get("generation_config") or {})
        used = {**asdict(rules), "length": rules.length.value}
        write_json_atomic(
            folder.path / "environment.json", environment | {"engine": described, "answers": used}
        )
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
    kept: dict[str, TurnRecord],
) -> None:
    by_id = {ask.request.id: ask for ask in asks}
    appender = Appender(folder.samples_path)
    try:
        for completion in watch(engine.generate([ask.request for ask in asks]), len(asks)):
            record = answered(by_id[completion.id], completion, special_tokens)
            appender.append(asdict(record))
            kept[record.id] = record
            stop_if_signalled()
    finally:
        appender.close()


def _unjudged(turns: Iterable[TurnRecord], preset: Preset, model: str, questions: int) -> dict[str, Any]:
    """results.json before any judging: the answers' counts and no table."""
    listed = list(turns)
    missing = len(preset.turns) * questions * preset.sampling.answers - len(listed)
    reasons = ["the answers are not judged yet"]
    if missing > 0:
        reasons.append(f"{missing} turns of the question set are not answered")
    return results_json(preset, {}, {}, partial=reasons, answers={model: answer_counts(listed)})
