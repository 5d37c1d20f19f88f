"""A preset's files: fetched from their pinned URLs or a mirror, verified, and read into prompt books."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.core.config import Config
from evalkit.core.errors import EvalkitError, InputError, UnreachableError
from evalkit.core.files import read_rows
from evalkit.core.text import command
from evalkit.mtbench.judge_prompts import JudgePrompt, PromptBook, prompts_from
from evalkit.mtbench.presets import (
    DEFAULT_PRESET,
    PinnedFile,
    Preset,
    load_preset,
    preset_names,
    preset_option,
)
from evalkit.mtbench.questions import Language, Question, questions_from, references_from
from evalkit.records import unpacked
from evalkit.sources.mirror import MANIFEST
from evalkit.sources.pins import Pin

if TYPE_CHECKING:
    from evalkit.sources.fetch import Fetcher

# Returns the local path of a pinned file, or raises FetchError.
Files = Callable[[PinnedFile], Path]


class Books:
    """The prompt books of a preset, one per language, read when first needed.

    `name` is what names the preset in a run: that of a shipped one, or the path of a file.
    """

    def __init__(
        self, preset: Preset, files: Files, language: str | None = None, *, name: str | None = None
    ) -> None:
        self.preset = preset
        self.name = name or preset.name
        self._files = files
        self._language = language
        self._books: dict[Language, PromptBook] = {}

    def of(self, question_id: int) -> PromptBook:
        """The book of a question's language, which is `language` when that was given.

        Raises:
            InputError: the preset has no questions in that language.
            FetchError: a file cannot be fetched or is not the pinned one.
        """
        return self.in_language(self.language(question_id))

    def question(self, question_id: int) -> Question:
        """A question.

        Raises:
            InputError: the preset does not have it.
            FetchError: a file cannot be fetched or is not the pinned one.
        """
        question = self.of(question_id).questions.get(question_id)
        if question is None:
            raise InputError(
                f"question {question_id} is not in the question file of the preset {self.preset.name}",
                fix="preset= the one the answers were made for, or language= another one",
            )
        return question

    def language(self, question_id: int) -> Language:
        """The language of a question: the one that was given, else by its id."""
        return self.preset.language([question_id], self._language)

    def in_language(self, language: Language) -> PromptBook:
        """The judge prompts with the questions and references of one language.

        Raises:
            FetchError: a file cannot be fetched or is not the pinned one.
        """
        if language not in self._books:
            prompts, chosen = self.preset.prompts, self.preset.sets[language]
            prompt_file = Path(prompts.file) if prompts.file else self._files(prompts)
            self._books[language] = PromptBook(
                prompts=_with_ends(prompts_from(read_rows(prompt_file)), prompts.system_end),
                questions=questions_from(read_rows(self._files(chosen.questions))),
                references=references_from(read_rows(self._files(chosen.references))),
            )
        return self._books[language]


def _with_ends(prompts: dict[str, JudgePrompt], ends: Mapping[str, str]) -> dict[str, JudgePrompt]:
    """The prompts with the line breaks that a preset puts at the end of some system prompts."""
    return {
        name: replace(prompt, system=prompt.system.rstrip("\n") + ends[name]) if name in ends else prompt
        for name, prompt in prompts.items()
    }


@dataclass(frozen=True)
class BookOptions:
    """The options that choose the questions and the judge prompts, and where their files come from.

    `preset`, `language` and `prompts` (a local judge prompt file) None: not given.
    """

    preset: str | None = None
    language: str | None = None
    prompts: str | None = None
    mirror: str | None = None
    data_dir: str | None = None
    offline: bool = False

    @classmethod
    def of(cls, config: Config) -> "BookOptions":
        """The options of a command."""
        return cls(
            preset=config.preset,
            language=config.language,
            prompts=config.judge.prompts if config.judge else None,
            mirror=config.mirror,
            data_dir=config.data_dir,
            offline=config.data.offline,
        )

    def books(self, preset: str | None = None, language: str | None = None) -> Books:
        """The books of that preset; its questions are in the language that was given, else in `language`.

        Raises:
            InputError: an unknown preset, or a judge prompt file that cannot be read.
        """
        name = self.preset or preset or DEFAULT_PRESET
        beside = Path(name).parent
        # The files of a preset of one's own may lie beside it.
        own = str(beside) if Path(name).is_file() and (beside / MANIFEST).is_file() else None
        files = pinned_files(self.mirror or own, data_dir=self.data_dir, offline=self.offline)
        language = self.language or language
        return Books(load_preset(name, self.prompts), files, language, name=preset_option(name))


def pinned_files(mirror: str | None, *, data_dir: str | None = None, offline: bool = False) -> Files:
    """Gets a preset's files from the folder `mirror`, a bundle, the cache, or the network."""
    if data_dir is not None:
        unpacked.use(Path(data_dir).expanduser())
    fetcher = _fetcher(mirror, offline=offline)

    def get(file: PinnedFile) -> Path:
        pin = _pin(file)
        try:
            found = fetcher.fetch([pin])[pin]
        except UnreachableError as error:
            found = error
        if isinstance(found, UnreachableError):
            fix = f"on a machine with a network: {command('prepare', 'suite=mt-bench-ja')}"
            raise UnreachableError(found.what, where=found.where, fix=fix)
        if isinstance(found, EvalkitError):
            raise found
        return found.path

    return get


def fetch_all(options: BookOptions, language: str) -> dict[str, Path]:
    """The files of every preset that has a language, by where a cache folder keeps them.

    Raises:
        FetchError: one of them cannot be fetched.
    """
    names = [options.preset] if options.preset else preset_names()
    wanted = [preset for preset in map(load_preset, names) if language in preset.sets]
    get = pinned_files(options.mirror, data_dir=options.data_dir, offline=options.offline)
    fetcher = _fetcher(options.mirror, offline=options.offline)
    return {
        f"sources/{fetcher.cached(_pin(file)).name}": get(file)
        for preset in wanted
        for file in (*preset.files(), *preset.variant_files())
    }


def _fetcher(mirror: str | None, *, offline: bool) -> "Fetcher":
    from evalkit.sources.fetch import Fetcher
    from evalkit.sources.mirror import Mirror

    opened = Mirror.open(Path(mirror).expanduser()) if mirror else None
    return Fetcher(mirror=opened, offline=offline)


def _pin(file: PinnedFile) -> Pin:
    return Pin(source="mt_bench", role="data", url=file.url, sha256=file.sha256)
