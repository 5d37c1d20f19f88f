"""A preset's files: fetched from their pinned URLs or a mirror, verified, and read into prompt books."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.core.config import Config, is_offline
from evalkit.core.errors import EvalkitError
from evalkit.core.files import read_rows
from evalkit.mtbench.judge_prompts import PromptBook, prompts_from
from evalkit.mtbench.presets import PinnedFile, Preset, load_preset, preset_names
from evalkit.mtbench.questions import Language, questions_from, references_from
from evalkit.records import unpacked
from evalkit.sources.pins import Pin

if TYPE_CHECKING:
    from evalkit.sources.fetch import Fetcher

# Returns the local path of a pinned file, or raises FetchError.
Files = Callable[[PinnedFile], Path]


class Books:
    """The prompt books of a preset, one per language, read when first needed."""

    def __init__(self, preset: Preset, files: Files, language: str | None = None) -> None:
        self._preset = preset
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

    def language(self, question_id: int) -> Language:
        """The language of a question: the one that was given, else by its id."""
        return self._preset.language([question_id], self._language)

    def in_language(self, language: Language) -> PromptBook:
        """The book of one language."""
        if language not in self._books:
            self._books[language] = load_book(self._preset, language, self._files)
        return self._books[language]


def load_book(preset: Preset, language: Language, files: Files) -> PromptBook:
    """The preset's judge prompts with the questions and references of one language.

    Raises:
        FetchError: a file cannot be fetched or is not the pinned one.
    """
    chosen = preset.sets[language]
    prompts = preset.prompts
    return PromptBook(
        prompts=prompts_from(read_rows(Path(prompts.file) if prompts.file else files(prompts))),
        questions=questions_from(read_rows(files(chosen.questions))),
        references=references_from(read_rows(files(chosen.references))),
    )


def pinned_files(config: Config) -> Files:
    """Gets a preset's files as the options say: from `mirror=`, a bundle, the cache, or the network."""
    if config.data_dir is not None:
        unpacked.use(Path(config.data_dir).expanduser())
    fetcher = _fetcher(config)

    def get(file: PinnedFile) -> Path:
        pin = _pin(file)
        found = fetcher.fetch([pin])[pin]
        if isinstance(found, EvalkitError):
            raise found
        return found.path

    return get


def fetch_all(config: Config, language: str) -> dict[str, Path]:
    """The files of every preset that has a language, by where a cache folder keeps them.

    Raises:
        FetchError: one of them cannot be fetched.
    """
    presets = [load_preset(config.preset)] if config.preset else map(load_preset, preset_names())
    wanted = [preset for preset in presets if language in preset.sets]
    fetcher, get = _fetcher(config), pinned_files(config)
    return {
        f"sources/{fetcher.cached(_pin(file)).name}": get(file)
        for preset in wanted
        for file in preset.files()
    }


def _fetcher(config: Config) -> "Fetcher":
    from evalkit.sources.fetch import Fetcher
    from evalkit.sources.mirror import Mirror

    mirror = Mirror.open(Path(config.mirror).expanduser()) if config.mirror else None
    return Fetcher(mirror=mirror, offline=is_offline(config))


def _pin(file: PinnedFile) -> Pin:
    return Pin(source="mt_bench", role="data", url=file.url, sha256=file.sha256)
