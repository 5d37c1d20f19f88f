"""Before the first call: what a judging is about, what it would ask, and what that would cost."""

from dataclasses import dataclass
from pathlib import Path

from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.mtbench.data import Books, pinned_files
from evalkit.mtbench.folder import Header, MtBenchFolder, answers_of, open_folder, turns_of
from evalkit.mtbench.judge.calls import Plan, plan_asks, stored_of
from evalkit.mtbench.judge.dispatch import Desk, open_desk
from evalkit.mtbench.judge.store import Stored
from evalkit.mtbench.logs import read_answers
from evalkit.mtbench.presets import DEFAULT_PRESET, Preset, load_preset, preset_option
from evalkit.mtbench.tables.model_tables import preset_sha256


@dataclass(frozen=True)
class Job:
    """Everything a judging needs to know before the first call.

    `kept` are the answers that the run folder holds from an earlier judging.
    """

    folder: MtBenchFolder
    header: Header
    preset: Preset
    books: Books
    desk: Desk
    plan: Plan
    kept: tuple[Stored, ...]


def prepare_job(config: Config) -> Job:
    """Reads the run, its preset and its judge, and plans what is to be asked.

    Raises:
        InputError: no run or answers, an unknown preset, an incomplete judge.
        FetchError: a file of the preset cannot be had.
    """
    folder, header = _folder(config)
    preset = load_preset(config.preset or header.preset)
    books = Books(preset, pinned_files(config), config.language or header.language)
    desk = open_desk(config, preset, folder.path)
    answers = answers_of(folder.turns())
    if not answers:
        raise InputError("the run has no answers to judge", where=folder.path)
    plan = plan_asks(answers, books, preset, desk.judge, desk.judge.config.repeats)
    kept = [stored_of(judgment) for judgment in folder.judgments(desk.judge.label)]
    own = tuple(stored for stored in kept if stored is not None)
    return Job(folder, header, preset, books, desk, plan, own)


def _folder(config: Config) -> tuple[MtBenchFolder, Header]:
    if config.answers is None:
        folder = open_folder(config.run)
        return folder, folder.header()
    if config.run is not None or config.out is None:
        raise InputError("answers= are judged into a folder of their own", fix="out=DIR, and no run=")
    answers = read_answers(Path(config.answers).expanduser())
    if not answers:
        raise InputError("there is no answer in the file", where=config.answers)
    preset = load_preset(config.preset or DEFAULT_PRESET)
    books = Books(preset, pinned_files(config), config.language)
    categories = {}
    for answer in answers:
        question = books.of(answer.question_id).questions.get(answer.question_id)
        if question is None:
            raise InputError(f"question {answer.question_id} is not in the preset's question file")
        categories[answer.question_id] = question.category
    languages = {books.language(answer.question_id) for answer in answers}
    header = Header(
        preset=preset_option(config.preset or DEFAULT_PRESET),
        preset_sha256=preset_sha256(preset),
        language=languages.pop() if len(languages) == 1 else None,
        source="given",
        models=tuple(dict.fromkeys(answer.model for answer in answers)),
    )
    folder = MtBenchFolder(Path(config.out).expanduser())
    folder.write_header(header)
    folder.write_turns(turns_of(answers, categories))
    return folder, header
