"""The verb pairwise: answers of several models, compared two by two in both orders."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from evalkit.core.config import Config, PairSource
from evalkit.core.durable import write_checked_json, write_text_atomic
from evalkit.core.errors import InputError
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Judgment
from evalkit.mtbench.data import Books, pinned_files
from evalkit.mtbench.folder import MtBenchFolder, answers_of, open_folder
from evalkit.mtbench.judge.calls import Ask, keys_of
from evalkit.mtbench.judge.dispatch import Answers, Desk, ask_all, open_desk
from evalkit.mtbench.logs import read_answers
from evalkit.mtbench.pairwise import Match, Side, game_sides, pairwise_json, side_by_ratings
from evalkit.mtbench.presets import DEFAULT_PRESET, Preset, load_preset
from evalkit.mtbench.questions import Answer
from evalkit.mtbench.ratings import parse_pair
from evalkit.mtbench.tables.model_tables import preset_record


@dataclass(frozen=True)
class Pairing:
    """One match that is to be judged: the two games are asks of their own."""

    question_id: int
    turn: int
    model_1: str
    model_2: str
    prompt: str
    format: str
    games: tuple[Ask, Ask]
    lengths: tuple[int, int]


@dataclass(frozen=True)
class PairwiseJob:
    """Everything known before the first call; `desk` is None when ratings decide."""

    folder: Path
    preset: Preset
    desk: Desk | None
    pairings: tuple[Pairing, ...]
    rated: tuple[Match, ...]
    missing: tuple[str, ...]

    @property
    def asks(self) -> list[Ask]:
        """Both games of every match."""
        return [game for pairing in self.pairings for game in pairing.games]


def prepare_pairwise(config: Config) -> PairwiseJob:
    """Collects the answers of the runs (or `answers=`) and pairs the models.

    Raises:
        InputError: fewer than two models, an unknown baseline, or runs of different presets.
    """
    folders = [open_folder(word, "pairwise") for word in config.folders]
    names = {folder.header().preset for folder in folders}
    if config.preset is None and len(names) > 1:
        raise InputError(
            f"the runs were made for different presets: {', '.join(sorted(names))}",
            fix="preset= the one whose questions and prompts are to be used",
        )
    preset = load_preset(config.preset or (names.pop() if names else DEFAULT_PRESET))
    answers = _answers(config, folders)
    pairs = list(_pairs(list(answers), config.pairwise.baseline))
    identity = {
        "preset": preset.name,
        "answers": {m: sorted(map(_plain, a.values())) for m, a in answers.items()},
    }
    default = Path("results") / "pairwise" / text_sha256(canonical_json(identity))[:12]
    out = Path(config.out).expanduser() if config.out else default
    if config.pairwise.source is PairSource.ratings:
        return PairwiseJob(out, preset, None, (), tuple(_rated(folders, config, pairs)), ())
    desk = open_desk(config, preset, out)
    books = Books(preset, pinned_files(config), config.language)
    pairings, missing = _pairings(pairs, answers, books, preset, desk)
    return PairwiseJob(out, preset, desk, tuple(pairings), (), tuple(missing))


def pairwise(job: PairwiseJob, config: Config, *, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Judges the matches and writes results.json and a log in FastChat's form; None: a batch waits.

    Raises:
        EvalkitError: the service refused or the budget is spent; what was judged is kept.
    """
    matches, more = job.rated, {}
    if job.desk is not None:
        answers = ask_all(job.desk, config, job.asks, say)
        if answers is None:
            return None
        matches = tuple(_match(pairing, answers) for pairing in job.pairings)
        _write_log(job, job.desk, answers, matches)
        failed = sum(answers.by_id[ask.id].status == "api_error" for ask in job.asks)
        judge = job.desk.judge
        more = {
            "judge": {"label": judge.label, **judge.identity, "parameters": judge.parameters},
            "calls": answers.asked.calls,
            "failed": failed,
        }
    content = {
        "schema_version": 1,
        "kind": "mt_bench_pairwise",
        "preset": preset_record(job.preset),
        "source": config.pairwise.source.value,
        "baseline": config.pairwise.baseline,
        "pairwise": pairwise_json(matches),
        "missing": list(job.missing),
        **more,
    }
    write_checked_json(job.folder / "results.json", content)
    return content


def _answers(config: Config, folders: Sequence[MtBenchFolder]) -> dict[str, dict[int, Answer]]:
    listed = [answer for folder in folders for answer in answers_of(folder.turns())]
    if config.answers is not None:
        listed += read_answers(Path(config.answers).expanduser())
    answers: dict[str, dict[int, Answer]] = {}
    for answer in listed:
        if answer.choice == 0:
            answers.setdefault(answer.model, {})[answer.question_id] = answer
    if len(answers) < 2:
        raise InputError(
            f"two models are needed, there are answers of {', '.join(answers) or 'none'}",
            fix="pairwise RUN RUN [RUN ...]   or answers=FOLDER of FastChat answer files",
        )
    return answers


def _pairs(models: list[str], baseline: str | None) -> Iterator[tuple[str, str]]:
    if baseline is None:
        yield from combinations(models, 2)
    elif baseline not in models:
        raise InputError(
            f"there are no answers of the baseline {baseline!r}",
            where="option pairwise.baseline",
            fix=f"one of {', '.join(models)}",
        )
    else:
        yield from ((model, baseline) for model in models if model != baseline)


def _pairings(
    pairs: Sequence[tuple[str, str]],
    answers: Mapping[str, Mapping[int, Answer]],
    books: Books,
    preset: Preset,
    desk: Desk,
) -> tuple[list[Pairing], list[str]]:
    pairings, missing = [], []
    for one, two in pairs:
        shared = sorted(answers[one].keys() & answers[two].keys())
        if lost := len(answers[one].keys() ^ answers[two].keys()):
            missing.append(f"{one} and {two}: {lost} questions are answered by only one of them")
        for question_id in shared:
            first, second = answers[one][question_id].turns, answers[two][question_id].turns
            for turn in preset.turns:
                try:
                    pairings.append(_pairing(question_id, turn, (one, two), (first, second), books, desk))
                except InputError as error:
                    missing.append(f"{one} and {two}: {error.what}")
    return pairings, missing


def _pairing(
    question_id: int,
    turn: int,
    models: tuple[str, str],
    turns: tuple[tuple[str, ...], tuple[str, ...]],
    books: Books,
    desk: Desk,
) -> Pairing:
    book = books.of(question_id)
    prompt, straight = book.pair(question_id, turn, *turns)
    _, swapped = book.pair(question_id, turn, *reversed(turns))
    category = book.questions[question_id].category
    games = [
        Ask(
            id=f"{question_id}/{turn}/{game}/{models[0]}/{models[1]}",
            model=f"{models[0]} and {models[1]}",
            question_id=question_id,
            category=category,
            turn=turn,
            answer=0,
            repeat=0,
            prompt=prompt,
            messages=messages,
            keys=keys_of(desk.judge, messages, 0),
        )
        for game, messages in ((1, straight), (2, swapped))
    ]
    lengths = (len(turns[0][turn - 1]), len(turns[1][turn - 1]))
    return Pairing(
        question_id, turn, *models, prompt, book.prompts[prompt].output_format, (games[0], games[1]), lengths
    )


def _match(pairing: Pairing, answers: Answers) -> Match:
    first, second = (parse_pair(_said(answers, game), pairing.format) for game in pairing.games)
    sides = game_sides(first, second)
    return Match(pairing.question_id, pairing.turn, pairing.model_1, pairing.model_2, *sides, pairing.lengths)


def _said(answers: Answers, game: Ask) -> str | None:
    # What is left of an answer that was cut or refused is no verdict.
    stored = answers.by_id[game.id]
    return stored.text if stored.status == "ok" else None


def _rated(
    folders: Sequence[MtBenchFolder], config: Config, pairs: Sequence[tuple[str, str]]
) -> Iterator[Match]:
    """Matches decided by the single ratings that the runs hold."""
    label = config.judge.name if config.judge else None
    ratings: dict[str, dict[tuple[int, int], Judgment]] = {}
    for folder in folders:
        judges = folder.judges()
        chosen = folder.find_judge(label) if label else judges[0] if len(judges) == 1 else None
        if chosen is None:
            raise InputError(
                f"whose ratings? The run was judged by {', '.join(judges) or 'nobody'}",
                where=folder.path,
                fix="judge=NAME of one that has judged every run",
            )
        for judgment in folder.judgments(chosen):
            own = ratings.setdefault(judgment.model, {})
            own.setdefault((judgment.question_id, judgment.turn), judgment)
    for one, two in pairs:
        for key in sorted(ratings.get(one, {}).keys() & ratings.get(two, {}).keys()):
            side: Side = side_by_ratings(ratings[one][key].rating, ratings[two][key].rating)
            yield Match(*key, one, two, side, side)


def _write_log(job: PairwiseJob, desk: Desk, answers: Answers, matches: Sequence[Match]) -> None:
    rows = []
    for pairing, match in zip(job.pairings, matches, strict=True):
        row: dict[str, Any] = {
            "question_id": pairing.question_id,
            "model_1": pairing.model_1,
            "model_2": pairing.model_2,
            "g1_winner": match.game_1,
            "g2_winner": match.game_2,
            "judge": [desk.judge.label, pairing.prompt],
            "turn": pairing.turn,
        }
        for number, game in enumerate(pairing.games, start=1):
            row[f"g{number}_user_prompt"] = game.messages[-1].content
            row[f"g{number}_judgment"] = _said(answers, game)
        rows.append(row)
    name = MtBenchFolder(job.folder).judgments_path(f"{desk.judge.label}_pair").name
    text = "".join(f"{canonical_json(row)}\n" for row in rows)
    write_text_atomic(job.folder / name, text)


def _plain(answer: Answer) -> list[Any]:
    return list(asdict(answer).values())
