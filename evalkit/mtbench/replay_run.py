"""The verb replay: log files -> a run folder with answers, judgments and results.json."""

from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from evalkit.core.config import Config
from evalkit.core.durable import remove_file, write_checked_json
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.core.text import canonical_json, text_sha256
from evalkit.mtbench.data import Books, pinned_files
from evalkit.mtbench.folder import Header, MtBenchFolder, turns_of
from evalkit.mtbench.logs import JudgmentLog, answers_by_model, jsonl_files, read_answers, read_judgments
from evalkit.mtbench.pairwise import pairwise_json
from evalkit.mtbench.presets import DEFAULT_PRESET, Preset, load_preset, preset_option
from evalkit.mtbench.questions import Answer, Language
from evalkit.mtbench.replay import Replayed, replay_pairs, replay_singles
from evalkit.mtbench.tables.model_tables import missing_turns, model_table, preset_sha256, results_json


def replay(config: Config) -> tuple[Path, dict[str, Any]]:
    """Reads `judgments=` (and `answers=`) into a run; returns its folder and its results.

    Raises:
        InputError: no log, a malformed row, or a question the preset does not have.
        FetchError: a file of the preset cannot be had.
    """
    if config.judgments is None:
        raise InputError("no judgments are given", fix="judgments=FILE.jsonl")
    chosen = preset_option(config.preset or DEFAULT_PRESET)
    preset = load_preset(chosen)
    log_path = Path(config.judgments).expanduser()
    answers_path = Path(config.answers).expanduser() if config.answers else None
    log = read_judgments(log_path)
    given = read_answers(answers_path) if answers_path else None
    books = Books(preset, pinned_files(config), config.language)
    answers = answers_by_model(given) if given is not None else None
    singles = replay_singles(log.singles, books.of, answers)
    more: dict[str, Any] = {"replay": {part.model: asdict(part.fidelity) for part in singles}}
    if log.pairs:
        pairs = replay_pairs(log.pairs, books.of, answers)
        more["pairwise"] = pairwise_json(pairs.matches) | {"replay": asdict(pairs.fidelity)}
    content = results_json(
        preset,
        {
            part.model: model_table(
                part.judgments,
                part.scores,
                preset,
                resamples=config.metrics.resamples,
                duplicates=part.fidelity.duplicates,
            )
            for part in singles
        },
        {part.model: part.scores for part in singles},
        partial=[reason for part in singles for reason in _missing(part, preset, books)],
        **more,
    )
    paths = [log_path, *([answers_path] if answers_path else [])]
    folder = MtBenchFolder(_folder(config, preset, paths))
    _write(folder, preset, chosen, log, given, singles, books)
    write_checked_json(folder.results_path, content)
    return folder.path, content


def _missing(part: Replayed, preset: Preset, books: Books) -> list[str]:
    wanted = sum(len(book.questions) for book in _books(part, books).values())
    return [
        Reason("{name}: {reason}", name=part.model, reason=reason)
        for reason in missing_turns(part.scores, preset, wanted)
    ]


def _books(part: Replayed, books: Books) -> dict[Language, Any]:
    languages = {books.language(row.question_id) for row in part.scores}
    return {language: books.in_language(language) for language in languages}


def _folder(config: Config, preset: Preset, paths: Iterable[Path]) -> Path:
    if config.out is not None:
        return Path(config.out).expanduser()
    files = [sha256(file.read_bytes()).hexdigest() for path in paths for file in jsonl_files(path)]
    identity = {"preset": preset_sha256(preset), "language": config.language, "files": files}
    return Path("results") / "replay" / text_sha256(canonical_json(identity))[:12]


def _write(
    folder: MtBenchFolder,
    preset: Preset,
    chosen: str,
    log: JudgmentLog,
    given: list[Answer] | None,
    singles: list[Replayed],
    books: Books,
) -> None:
    # results.json means done, so it goes before the run is changed.
    remove_file(folder.results_path)
    paired = [model for pair in log.pairs for model in (pair.model_1, pair.model_2)]
    models = tuple(dict.fromkeys([*(part.model for part in singles), *paired]))
    asked = [row.question_id for row in log.singles] + [row.question_id for row in log.pairs]
    languages = set(map(books.language, asked))
    language = languages.pop() if len(languages) == 1 else None
    folder.write_header(Header(chosen, preset_sha256(preset), language, "replayed", models))
    judged = [answer for answer in given or () if answer.model in models]
    known = {
        answer.question_id: question.category
        for answer in judged
        if (question := books.of(answer.question_id).questions.get(answer.question_id))
    }
    folder.write_turns(turns_of([answer for answer in judged if answer.question_id in known], known))
    judgments = [judgment for part in singles for judgment in part.judgments]
    for judge in dict.fromkeys(judgment.judge for judgment in judgments):
        folder.write_judgments(judge, [judgment for judgment in judgments if judgment.judge == judge])
