"""The verb replay: logged judgments -> a run, parsed and rendered again and compared byte for byte.

The tables use the scores as they were logged, every row by itself, as the originals count them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from evalkit.core.config import Config
from evalkit.core.durable import remove_file, write_checked_json
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Judgment, JudgmentStatus, Message
from evalkit.mtbench.data import Books, pinned_files
from evalkit.mtbench.fastchat_logs import (
    JudgmentLog,
    LoggedPair,
    LoggedSingle,
    answers_by_model,
    jsonl_files,
    read_answers,
    read_judgments,
)
from evalkit.mtbench.folder import Header, MtBenchFolder, logged_label, turns_of
from evalkit.mtbench.judge_prompts import PromptBook
from evalkit.mtbench.pairwise import Match, game_sides, pairwise_json
from evalkit.mtbench.presets import DEFAULT_PRESET, Preset, load_preset, preset_option
from evalkit.mtbench.questions import Language, ModelAnswer
from evalkit.mtbench.ratings import (
    HIGHEST,
    LOWEST,
    VERDICT_FORMAT,
    Rating,
    parse_pair,
    parse_rating,
    parse_strict,
)
from evalkit.mtbench.rules import MINUS_ONE, Scored
from evalkit.mtbench.tables.model_tables import missing_turns, model_table, preset_sha256, results_json

# What FastChat writes where the judge could not be asked.
API_ERROR_TEXT = "$ERROR$"

Answers = Mapping[str, Mapping[int, ModelAnswer]]
BookOf = Callable[[int], PromptBook]


@dataclass(frozen=True)
class Fidelity:
    """How much of a log is reproduced.

    `scores_*`: logged scores against the text parsed again (for pairwise logs: winners of games).
    `prompts_*`: logged prompts against prompts rendered again, out of those whose answers are there;
    None when no answers were given. `not_rendered`: the reasons of the others, with their numbers.
    """

    rows: int
    duplicates: int
    scores_compared: int
    scores_equal: int
    prompts_compared: int | None
    prompts_equal: int | None
    not_rendered: dict[str, int]


@dataclass(frozen=True)
class Replayed:
    """One model's part of a replayed log; `scores` are as logged, `judgments` parsed again."""

    model: str
    scores: tuple[Scored, ...]
    judgments: tuple[Judgment, ...]
    fidelity: Fidelity


def replay_singles(rows: Sequence[LoggedSingle], book_of: BookOf, answers: Answers | None) -> list[Replayed]:
    """The single ratings of a log, one result per model in order of appearance.

    Raises:
        InputError: a question that is in none of the preset's question files.
    """
    by_model: dict[str, list[LoggedSingle]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    return [_replay_model(model, part, book_of, answers) for model, part in by_model.items()]


def _replay_model(model: str, rows: list[LoggedSingle], book_of: BookOf, answers: Answers | None) -> Replayed:
    judgments, scores = [], []
    compared, equal = 0, 0
    renderings = _Renderings()
    seen: Counter[tuple[int, int]] = Counter()
    for row in rows:
        key = (row.question_id, row.turn)
        category = _category(book_of, row.question_id)
        judgment = _judgment_of(row, category, seen[key])
        seen[key] += 1
        judgments.append(judgment)
        value = MINUS_ONE if judgment.rating is None else judgment.rating
        scores.append(Scored(row.question_id, category, row.turn, row.score))
        if row.judgment is not None:
            compared += 1
            equal += value == row.score
        if answers is not None:
            renderings.compare(row.user_prompt, partial(_render, row, book_of, answers))
    return Replayed(
        model=model,
        scores=tuple(scores),
        judgments=tuple(judgments),
        fidelity=renderings.fidelity(len(rows), len(rows) - len(seen), compared, equal, answers is not None),
    )


@dataclass(frozen=True)
class ReplayedPairs:
    """The pairwise part of a replayed log: the matches as logged."""

    matches: tuple[Match, ...]
    fidelity: Fidelity


def replay_pairs(rows: Sequence[LoggedPair], book_of: BookOf, answers: Answers | None) -> ReplayedPairs:
    """The pairwise matches of a log; two games each.

    Raises:
        InputError: a question that is in none of the preset's question files.
    """
    matches = []
    compared, equal = 0, 0
    renderings = _Renderings()
    for row in rows:
        _category(book_of, row.question_id)
        prompt = book_of(row.question_id).prompts.get(row.prompt_name)
        form = prompt.output_format if prompt else VERDICT_FORMAT
        read = game_sides(*(parse_pair(text, form) for text in row.judgments))
        lengths = _lengths(row, answers)
        names = (row.question_id, row.turn, row.model_1, row.model_2)
        matches.append(Match(*names, *row.winners, lengths))
        for game in (0, 1):
            if row.judgments[game] is not None:
                compared += 1
                equal += read[game] == row.winners[game]
            if answers is not None:
                renderings.compare(row.user_prompts[game], partial(_render_game, row, game, book_of, answers))
    keys = {(row.question_id, row.turn, row.model_1, row.model_2) for row in rows}
    return ReplayedPairs(
        matches=tuple(matches),
        fidelity=renderings.fidelity(len(rows), len(rows) - len(keys), compared, equal, answers is not None),
    )


class _Renderings:
    """Counts the prompts that are equal to the logged ones, and why others could not be rendered."""

    def __init__(self) -> None:
        self.compared = 0
        self.equal = 0
        self.failures: Counter[str] = Counter()

    def compare(self, logged: str | None, render: Callable[[], tuple[Message, ...]]) -> None:
        if logged is None:
            self.failures["the log has no prompt"] += 1
            return
        try:
            rendered = render()
        except InputError as error:
            self.failures[error.what] += 1
            return
        self.compared += 1
        self.equal += rendered[-1].content == logged

    def fidelity(self, rows: int, duplicates: int, compared: int, equal: int, rendered: bool) -> Fidelity:
        return Fidelity(
            rows=rows,
            duplicates=duplicates,
            scores_compared=compared,
            scores_equal=equal,
            prompts_compared=self.compared if rendered else None,
            prompts_equal=self.equal if rendered else None,
            not_rendered=dict(self.failures),
        )


def _judgment_of(row: LoggedSingle, category: str, occurrence: int) -> Judgment:
    rating = parse_rating(row.judgment) if row.judgment is not None else _of_score(row.score)
    status: JudgmentStatus = "api_error" if row.judgment == API_ERROR_TEXT else rating.status
    return Judgment(
        id=f"{row.model}/{row.question_id}/{row.turn}/{occurrence}",
        model=row.model,
        question_id=row.question_id,
        category=category,
        turn=row.turn,
        judge=logged_label(row.judge),
        prompt=row.prompt_name,
        text=row.judgment,
        status=status,
        rating=rating.value,
        rule=rating.rule,
        strict=parse_strict(row.judgment).value,
    )


def _of_score(score: float) -> Rating:
    if score == MINUS_ONE:
        return Rating(None, "unparsed", "none")
    return Rating(score, "ok" if LOWEST <= score <= HIGHEST else "out_of_range", "none")


def _category(book_of: BookOf, question_id: int) -> str:
    question = book_of(question_id).questions.get(question_id)
    if question is None:
        raise InputError(
            f"question {question_id} is not in the preset's question file",
            where="field question_id",
            fix="preset= or language= another one",
        )
    return question.category


def _turns(answers: Answers, model: str, question_id: int) -> tuple[str, ...]:
    answer = answers.get(model, {}).get(question_id)
    if answer is None:
        raise InputError(
            f"no answers of {model}" if model not in answers else f"an answer of {model} is missing"
        )
    return answer.turns


def _render(row: LoggedSingle, book_of: BookOf, answers: Answers) -> tuple[Message, ...]:
    turns = _turns(answers, row.model, row.question_id)
    return book_of(row.question_id).single(row.question_id, row.turn, turns)[1]


def _render_game(row: LoggedPair, game: int, book_of: BookOf, answers: Answers) -> tuple[Message, ...]:
    sides = [_turns(answers, model, row.question_id) for model in (row.model_1, row.model_2)]
    first, second = sides if game == 0 else reversed(sides)
    return book_of(row.question_id).pair(row.question_id, row.turn, first, second)[1]


def _lengths(row: LoggedPair, answers: Answers | None) -> tuple[int, int] | None:
    try:
        sides = [_turns(answers or {}, model, row.question_id) for model in (row.model_1, row.model_2)]
    except InputError:
        return None
    if any(len(turns) < row.turn for turns in sides):
        return None
    return len(sides[0][row.turn - 1]), len(sides[1][row.turn - 1])


def replay(config: Config) -> tuple[Path, dict[str, Any]]:
    """Reads `judgments=` (and `answers=`) into a run; returns its folder and its results.

    Raises:
        InputError: no log, a malformed row, or a question the preset does not have.
        FetchError: a file of the preset cannot be fetched.
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
    given: list[ModelAnswer] | None,
    singles: list[Replayed],
    books: Books,
) -> None:
    # results.json means done, so it is removed before the run is changed.
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
