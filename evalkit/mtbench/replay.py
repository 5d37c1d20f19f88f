"""The verb replay: logged judgments -> a run, parsed and rendered again and compared byte for byte.

The tables use the scores as they were logged, every row by itself, as the originals count them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evalkit.core.durable import remove_file, write_checked_json
from evalkit.core.errors import InputError
from evalkit.core.files import file_sha256
from evalkit.core.reasons import Reason
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Judgment, JudgmentStatus
from evalkit.mtbench.aggregate import MINUS_ONE, Scored
from evalkit.mtbench.books import BookOptions, Books
from evalkit.mtbench.fastchat import (
    AnswersByQuestion,
    JudgmentLog,
    LoggedPair,
    LoggedSingle,
    ModelAnswer,
    answers_by_model,
    jsonl_files,
    read_answers,
    read_judgments,
)
from evalkit.mtbench.folder import MtBenchFolder, logged_label, turns_of
from evalkit.mtbench.model_tables import missing_turns, model_table, results_json
from evalkit.mtbench.presets import Preset
from evalkit.mtbench.ratings import (
    HIGHEST,
    LOWEST,
    VERDICT_FORMAT,
    Rating,
    parse_pair,
    parse_strict,
)
from evalkit.mtbench.win_rates import Match, game_sides, pairwise_json

# What FastChat writes where the judge could not be asked.
API_ERROR_TEXT = "$ERROR$"


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


def replay_singles(
    rows: Sequence[LoggedSingle], books: Books, answers: AnswersByQuestion | None
) -> list[Replayed]:
    """The single ratings of a log, one result per model in order of appearance.

    Raises:
        InputError: a question that is in none of the preset's question files.
    """
    by_model: dict[str, list[LoggedSingle]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    return [_replay_model(model, part, books, answers) for model, part in by_model.items()]


def _replay_model(
    model: str, rows: list[LoggedSingle], books: Books, answers: AnswersByQuestion | None
) -> Replayed:
    judgments, scores, equal = [], [], []
    seen: Counter[tuple[int, int]] = Counter()
    for row in rows:
        key = (row.question_id, row.turn)
        category = books.question(row.question_id).category
        judgment = _judgment_of(row, category, seen[key], books.preset)
        seen[key] += 1
        judgments.append(judgment)
        scores.append(Scored(row.question_id, category, row.turn, row.score))
        if row.judgment is not None:
            equal.append((MINUS_ONE if judgment.rating is None else judgment.rating) == row.score)
    prompts = None
    if answers is not None:
        prompts = [_same_prompt(row.user_prompt, row, (model,), books, answers) for row in rows]
    fidelity = _fidelity(len(rows), len(seen), equal, prompts)
    return Replayed(model, tuple(scores), tuple(judgments), fidelity)


@dataclass(frozen=True)
class ReplayedPairs:
    """The pairwise part of a replayed log: the matches as logged."""

    matches: tuple[Match, ...]
    fidelity: Fidelity


def replay_pairs(
    rows: Sequence[LoggedPair], books: Books, answers: AnswersByQuestion | None
) -> ReplayedPairs:
    """The pairwise matches of a log; two games each.

    Raises:
        InputError: a question that is in none of the preset's question files.
    """
    matches, equal = [], []
    prompts: list[bool | str] = []
    for row in rows:
        books.question(row.question_id)
        prompt = books.of(row.question_id).prompts.get(row.prompt_name)
        form = prompt.output_format if prompt else VERDICT_FORMAT
        read = game_sides(*(parse_pair(text, form) for text in row.judgments))
        models = (row.model_1, row.model_2)
        matches.append(Match(row.question_id, row.turn, *models, *row.winners, _lengths(row, answers)))
        # In game 2 the answers are swapped.
        for game, shown in enumerate((models, models[::-1])):
            if row.judgments[game] is not None:
                equal.append(read[game] == row.winners[game])
            if answers is not None:
                prompts.append(_same_prompt(row.user_prompts[game], row, shown, books, answers))
    keys = {(row.question_id, row.turn, row.model_1, row.model_2) for row in rows}
    fidelity = _fidelity(len(rows), len(keys), equal, None if answers is None else prompts)
    return ReplayedPairs(tuple(matches), fidelity)


def _same_prompt(
    logged: str | None,
    row: LoggedSingle | LoggedPair,
    models: Sequence[str],
    books: Books,
    answers: AnswersByQuestion,
) -> bool | str:
    """Whether the prompt that shows the answers of `models` is the logged one, or why it is not rendered."""
    if logged is None:
        return "the log has no prompt"
    book = books.of(row.question_id)
    try:
        sides = [_turns(answers, model, row.question_id) for model in models]
        if isinstance(row, LoggedSingle):
            _, messages = book.single(row.question_id, row.turn, sides[0])
        else:
            _, messages = book.pair(row.question_id, row.turn, sides[0], sides[1])
    except InputError as error:
        return error.what
    return messages[-1].content == logged


def _fidelity(
    rows: int, distinct: int, scores: Sequence[bool], prompts: Sequence[bool | str] | None
) -> Fidelity:
    rendered = [found for found in prompts or () if isinstance(found, bool)]
    return Fidelity(
        rows=rows,
        duplicates=rows - distinct,
        scores_compared=len(scores),
        scores_equal=sum(scores),
        prompts_compared=None if prompts is None else len(rendered),
        prompts_equal=None if prompts is None else sum(rendered),
        not_rendered=dict(Counter(found for found in prompts or () if isinstance(found, str))),
    )


def _judgment_of(row: LoggedSingle, category: str, occurrence: int, preset: Preset) -> Judgment:
    rating = preset.rating(row.judgment) if row.judgment is not None else _of_score(row.score)
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


def _turns(answers: AnswersByQuestion, model: str, question_id: int) -> tuple[str, ...]:
    answer = answers.get(model, {}).get(question_id)
    if answer is None:
        raise InputError(
            f"no answers of {model}" if model not in answers else f"an answer of {model} is missing"
        )
    return answer.turns


def _lengths(row: LoggedPair, answers: AnswersByQuestion | None) -> tuple[int, int] | None:
    try:
        first, second = (_turns(answers or {}, one, row.question_id) for one in (row.model_1, row.model_2))
        return len(first[row.turn - 1]), len(second[row.turn - 1])
    except (InputError, IndexError):
        return None


def replay(
    judgments: Path, answers: Path | None, options: BookOptions, *, out: Path | None, resamples: int
) -> tuple[Path, dict[str, Any]]:
    """Reads judgment logs into a run; returns its folder and its results.

    `judgments` and `answers` are files or folders of files. `answers` None: prompts are not rendered again;
    `out` None: the folder of the run is named by the content of the files.

    Raises:
        InputError: a malformed row, a question the preset does not have, several judges of one model, or
            `out` belongs to another run.
        FetchError: a file of the preset cannot be fetched.
    """
    books = options.books()
    preset = books.preset
    log = read_judgments(judgments)
    _refuse_several_judges(log, judgments)
    given = read_answers(answers) if answers else None
    paths = [judgments, *([answers] if answers else [])]
    folder = MtBenchFolder(out or _default_folder(preset, options.language, paths))
    folder.refuse_another("mt_bench", "replayed")
    by_model = answers_by_model(given) if given is not None else None
    singles = replay_singles(log.singles, books, by_model)
    more: dict[str, Any] = {"replay": {part.model: asdict(part.fidelity) for part in singles}}
    if log.pairs:
        pairs = replay_pairs(log.pairs, books, by_model)
        more["pairwise"] = pairwise_json(pairs.matches) | {"replay": asdict(pairs.fidelity)}
    tables = {
        part.model: model_table(
            part.judgments, part.scores, preset, resamples=resamples, duplicates=part.fidelity.duplicates
        )
        for part in singles
    }
    content = results_json(
        preset,
        tables,
        {part.model: part.scores for part in singles},
        partial=[reason for part in singles for reason in _missing(part, books)],
        **more,
    )
    _write(folder, books, log, given or [], singles)
    write_checked_json(folder.results_path, content)
    return folder.path, content


def _refuse_several_judges(log: JudgmentLog, path: Path) -> None:
    """Raises InputError where a table would mix the judgments of several judges."""
    by_model: dict[str, dict[str, None]] = {}
    for row in log.singles:
        by_model.setdefault(row.model, {})[row.judge] = None
    for what, judges in (*by_model.items(), ("the pairs", {row.judge: None for row in log.pairs})):
        if len(judges) > 1:
            raise InputError(
                f"{what}: judged by several judges, {', '.join(judges)}",
                where=f"judgments={path}",
                fix="judgments= the log of one of them, a run for each; agreement compares them",
            )


def _missing(part: Replayed, books: Books) -> list[Reason]:
    wanted = books.size(row.question_id for row in part.scores)
    return missing_turns(part.model, part.scores, books.preset, wanted)


def _default_folder(preset: Preset, language: str | None, paths: Sequence[Path]) -> Path:
    files = [file_sha256(file) for path in paths for file in jsonl_files(path)]
    identity = {"preset": preset.sha256, "language": language, "files": files}
    return Path("results") / "replay" / text_sha256(canonical_json(identity))[:12]


def _write(
    folder: MtBenchFolder,
    books: Books,
    log: JudgmentLog,
    answers: Sequence[ModelAnswer],
    singles: Sequence[Replayed],
) -> None:
    # results.json means done, so it is removed before the run is changed.
    remove_file(folder.results_path)
    paired = [model for pair in log.pairs for model in (pair.model_1, pair.model_2)]
    models = list(dict.fromkeys([*(part.model for part in singles), *paired]))
    asked = [*(row.question_id for row in log.singles), *(row.question_id for row in log.pairs)]
    folder.write_header(books.header("replayed", models, asked))
    known = {
        answer.question_id: question.category
        for answer in answers
        if answer.model in models
        and (question := books.of(answer.question_id).questions.get(answer.question_id))
    }
    kept = [answer for answer in answers if answer.model in models and answer.question_id in known]
    folder.write_turns(turns_of(kept, known))
    judgments = [judgment for part in singles for judgment in part.judgments]
    for judge in dict.fromkeys(judgment.judge for judgment in judgments):
        folder.write_judgments(judge, [judgment for judgment in judgments if judgment.judge == judge])
