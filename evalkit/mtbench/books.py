"""A preset's files -> prompt books: the judge prompt of a question, with its messages as the judge sees them.

Files are fetched from their pinned URLs or a mirror, and verified. Templates are filled in one pass, so
braces that come in with a question or an answer are never expanded.

Source: sections 4, 5 and 9 of the MT-Bench protocol notes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Literal

from evalkit.core.config import Config
from evalkit.core.errors import EvalkitError, InputError, UnreachableError
from evalkit.core.files import JsonObject, read_rows, text_field
from evalkit.core.text import command, did_you_mean
from evalkit.core.types import Message
from evalkit.mtbench.fastchat import LANGUAGES, Language, Question, questions_from, references_from
from evalkit.mtbench.folder import Header, Source
from evalkit.mtbench.presets import (
    DEFAULT_PRESET,
    PinnedFile,
    Preset,
    load_preset,
    preset_names,
    preset_option,
)
from evalkit.mtbench.ratings import VERDICT_FORMAT
from evalkit.records import unpacked
from evalkit.sources.mirror import MANIFEST, Mirror
from evalkit.sources.pins import Pin

# The prompts by name: the fields of a template, those it must have first.
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "single-v1": (("answer",), ("question",)),
    "single-math-v1": (("answer",), ("question", "ref_answer_1")),
    "single-v1-multi-turn": (("answer_2",), ("question_1", "answer_1", "question_2")),
    "single-math-v1-multi-turn": (
        ("answer_2",),
        ("question_1", "answer_1", "question_2", "ref_answer_1", "ref_answer_2"),
    ),
    "pair-v2": (("answer_a", "answer_b"), ("question",)),
    "pair-math-v1": (("answer_a", "answer_b"), ("question", "ref_answer_1")),
    "pair-v2-multi-turn": (
        ("answer_a_2", "answer_b_2"),
        ("question_1", "question_2", "answer_a_1", "answer_b_1"),
    ),
    "pair-math-v1-multi-turn": (
        ("answer_a_2", "answer_b_2"),
        ("question_1", "question_2", "answer_a_1", "answer_b_1", "ref_answer_1", "ref_answer_2"),
    ),
}
_ALL_FIELDS = frozenset(field for needed, more in _FIELDS.values() for field in needed + more)
PromptKind = Literal["single", "pair"]
# Returns the local path of a pinned file, or raises FetchError.
FindFile = Callable[[PinnedFile], Path]


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One row of a judge prompt file; `output_format` is the form of the answer it asks for."""

    name: str
    system: str
    template: str
    output_format: str = VERDICT_FORMAT

    def messages(self, fields: Mapping[str, str]) -> tuple[Message, Message]:
        """The system and the user message with `fields` filled into the template."""
        return Message("system", self.system), Message("user", self.template.format_map(fields))


@dataclass(frozen=True)
class PromptBook:
    """The judge prompts of one file by name, with the questions and references they are filled with.

    `single` and `pair` raise InputError for an unknown question, and for a prompt, a turn or a reference
    that is missing.
    """

    prompts: Mapping[str, JudgePrompt]
    questions: Mapping[int, Question]
    references: Mapping[int, tuple[str, ...]]

    def single(
        self, question_id: int, turn: int, answers: tuple[str, ...]
    ) -> tuple[str, tuple[Message, ...]]:
        """The prompt's name and messages that rate turn 1 or 2 of an answer."""
        return self._filled("single-v1", "single-math-v1", question_id, turn, {"answer": answers})

    def pair(
        self, question_id: int, turn: int, first: tuple[str, ...], second: tuple[str, ...]
    ) -> tuple[str, tuple[Message, ...]]:
        """The prompt's name and messages that compare assistant A (`first`) with B (`second`)."""
        sides = {"answer_a": first, "answer_b": second}
        return self._filled("pair-v2", "pair-math-v1", question_id, turn, sides)

    def _filled(
        self,
        general: str,
        with_reference: str,
        question_id: int,
        turn: int,
        sides: Mapping[str, tuple[str, ...]],
    ) -> tuple[str, tuple[Message, ...]]:
        """The prompt's name and messages; `sides` are the answers by the name of their template field."""
        question = self.questions.get(question_id)
        if question is None:
            raise InputError(f"question {question_id} is not in the preset's question file")
        name = with_reference if question.needs_reference else general
        name = name if turn == 1 else f"{name}-multi-turn"
        if name not in self.prompts:
            raise InputError(f"the preset's judge prompts have no {name!r}")
        for answers in sides.values():
            _need_turns(answers, turn, f"answer to question {question_id}")
        if turn == 1:
            fields = {"question": question.turns[0]} | {side: answers[0] for side, answers in sides.items()}
        else:
            fields = {f"question_{number}": question.turns[number - 1] for number in (1, 2)}
            for side, answers in sides.items():
                fields |= {f"{side}_{number}": answers[number - 1] for number in (1, 2)}
        if question.needs_reference:
            if (reference := self.references.get(question_id)) is None:
                raise InputError(f"question {question_id} ({question.category}) has no reference answer")
            _need_turns(reference, turn, f"reference answer to question {question_id}")
            fields |= {f"ref_answer_{number}": reference[number - 1] for number in range(1, turn + 1)}
        return name, self.prompts[name].messages(fields)


def prompts_from(
    rows: Iterable[tuple[str, JsonObject]], system_ends: Mapping[str, str] | None = None
) -> dict[str, JudgePrompt]:
    """Judge prompt rows by name.

    Args:
        rows: of a judge prompt file.
        system_ends: the line breaks at the end of some system prompts, by name, in place of the file's.

    Raises:
        InputError: a field is missing, or a template has an unknown field or lacks the answer.
    """
    prompts = {}
    for place, row in rows:
        name, system = text_field(row, "name", place), text_field(row, "system_prompt", place)
        if system_ends and name in system_ends:
            system = system.rstrip("\n") + system_ends[name]
        prompt = JudgePrompt(
            name=name,
            system=system,
            template=text_field(row, "prompt_template", place),
            output_format=str(row.get("output_format", VERDICT_FORMAT)),
        )
        _check_template(prompt, place)
        prompts[name] = prompt
    return prompts


def _check_template(prompt: JudgePrompt, place: str) -> None:
    where = f"{place}, field prompt_template"
    try:
        parts = list(Formatter().parse(prompt.template))
    except ValueError as error:
        raise InputError(f"not a template: {error}", where=where) from None
    needed, more = _FIELDS.get(prompt.name, ((), tuple(_ALL_FIELDS)))
    for _, field, form, conversion in parts:
        # Plain names only: `{answer.x}` or `{answer!r}` would reach into the value.
        if field is not None and (field not in needed + more or form or conversion):
            raise InputError(
                f"unknown template field {{{field}}}",
                where=where,
                fix=f"known fields of {prompt.name}: {', '.join(sorted(needed + more))}",
            )
    used = {field for _, field, _, _ in parts}
    if missing := [field for field in needed if field not in used]:
        raise InputError(
            f"the template shows the judge no {{{missing[0]}}}", where=where, fix=f"add {{{missing[0]}}}"
        )


def prompt_names(kind: PromptKind, turns: Sequence[int]) -> list[str]:
    """The names of the prompts that rate one answer or compare two, in these turns."""
    wanted = [name for name in _FIELDS if name.startswith(f"{kind}-")]
    return [name for name in wanted if 2 in turns or not name.endswith("-multi-turn")]


def _need_turns(turns: tuple[str, ...], turn: int, what: str) -> None:
    if len(turns) < turn:
        raise InputError(f"the {what} has {len(turns)} turn(s), turn {turn} is asked for")


class Books:
    """The prompt books of a preset, one per language, read when first needed.

    `name` is what names the preset in a run: that of a shipped one, or the path of a file. What reads a
    book raises FetchError when a file cannot be fetched or is not the pinned one.
    """

    def __init__(
        self, preset: Preset, files: FindFile, language: str | None = None, *, name: str | None = None
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
        """
        return self.in_language(self.language(question_id))

    def question(self, question_id: int) -> Question:
        """A question.

        Raises:
            InputError: the preset does not have it.
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

    def size(self, question_ids: Iterable[int]) -> int:
        """The number of questions in the sets, one per language, that these are from."""
        languages = {self.language(question_id) for question_id in question_ids}
        return sum(len(self.in_language(language).questions) for language in languages)

    def header(self, source: Source, models: Sequence[str], question_ids: Iterable[int]) -> Header:
        """The header of a run with answers to these questions.

        Judge prompts that `judge.prompts=` names are not in it: they do not change how answers were made.
        """
        languages = {self.language(question_id) for question_id in question_ids}
        language = languages.pop() if len(languages) == 1 else None
        return Header(self.name, load_preset(self.name).sha256, language, source, tuple(models))

    def in_language(self, language: Language) -> PromptBook:
        """The judge prompts with the questions and references of one language."""
        if language not in self._books:
            try:
                self._books[language] = self._read(language)
            except UnreachableError as error:
                own = [] if self.name in preset_names() else [f"preset={self.name}"]
                fix = f"on a machine with a network: {command('prepare', f'suite=mt-bench-{language}', *own)}"
                raise UnreachableError(error.what, where=error.where, fix=fix) from None
        return self._books[language]

    def _read(self, language: Language) -> PromptBook:
        prompts, chosen = self.preset.prompts, self.preset.sets[language]
        prompt_file = Path(prompts.file) if prompts.file else self._files(prompts)
        return PromptBook(
            prompts=prompts_from(read_rows(prompt_file), prompts.system_end),
            questions=questions_from(read_rows(self._files(chosen.questions))),
            references=references_from(read_rows(self._files(chosen.references))),
        )


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
        name, language = self.preset or preset or DEFAULT_PRESET, self.language or language
        return Books(load_preset(name, self.prompts), self.files(name), language, name=preset_option(name))

    def files(self, preset: str | None) -> "FindFile":
        """Gets the files of a preset; those of a preset of one's own may lie beside it, with a manifest."""
        files = pinned_files(self.mirror, data_dir=self.data_dir, offline=self.offline)
        folder = Path(preset).expanduser().parent if preset else Path()
        if preset is None or not Path(preset).expanduser().is_file() or not (folder / MANIFEST).is_file():
            return files
        beside, own = Mirror.open(folder).files, pinned_files(str(folder))
        return lambda file: (own if _pin(file).url in beside else files)(file)


def pinned_files(mirror: str | None, *, data_dir: str | None = None, offline: bool = False) -> FindFile:
    """Gets a preset's files from the folder `mirror`, a bundle, the cache, or the network."""
    from evalkit.sources.fetch import Fetcher

    if data_dir is not None:
        unpacked.use(Path(data_dir).expanduser())
    fetcher = Fetcher.of(mirror, offline)

    def get(file: PinnedFile) -> Path:
        pin = _pin(file)
        found = fetcher.fetch([pin])[pin]
        if isinstance(found, EvalkitError):
            raise found
        return found.path

    return get


def fetch_all(options: BookOptions, language: str) -> dict[str, Path]:
    """The files of the preset that is given, else of all that have a language, by where a cache keeps them.

    Raises:
        InputError: the preset that is given does not have the language, or none has it.
        FetchError: one of them cannot be fetched.
    """
    from evalkit.sources.fetch import Fetcher

    names = [options.preset] if options.preset else preset_names()
    wanted = [preset for preset in map(load_preset, names) if options.preset or language in preset.sets]
    if not wanted:
        what = f"no preset has questions in language={language}{did_you_mean(language, LANGUAGES)}"
        raise InputError(what, where="option language", fix=f"language={' or language='.join(LANGUAGES)}")
    for preset in wanted:
        preset.language([], language)
    get = options.files(options.preset)
    cached = Fetcher().cached
    return {
        f"sources/{cached(_pin(file)).name}": get(file)
        for preset in wanted
        for file in (*preset.files(), *preset.variant_files())
    }


def _pin(file: PinnedFile) -> Pin:
    return Pin(source="mt_bench", role="data", url=file.url, sha256=file.sha256)
