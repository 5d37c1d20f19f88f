"""The verb pairwise: models compared two by two, each match judged in both orders.

Source: section 9 of the MT-Bench protocol notes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.core.config import Config, PairSource
from evalkit.core.durable import write_checked_json, write_text_atomic
from evalkit.core.errors import InputError
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Judgment
from evalkit.mtbench.data import Books, pinned_files
from evalkit.mtbench.fastchat_logs import answers_by_model, read_answers
from evalkit.mtbench.folder import MtBenchFolder, answers_of, open_folder
from evalkit.mtbench.judge.calls import JudgeCall, check_own_prompts, keys_of
from evalkit.mtbench.judge.dispatch import JudgeReplies, ask_judge, open_judge
from evalkit.mtbench.judge.judges import Judge, judging_preset
from evalkit.mtbench.judge_prompts import PromptBook
from evalkit.mtbench.presets import DEFAULT_PRESET, Preset
from evalkit.mtbench.questions import ModelAnswer
from evalkit.mtbench.ratings import Side, Winner, parse_pair, winner_of
from evalkit.mtbench.tables.model_tables import preset_record

_FIRST_GAME: Mapping[Winner, Side] = {"A": "model_1", "B": "model_2", "tie": "tie", "error": "error"}
# In game 2 the answers are swapped: assistant A is model 2.
_SECOND_GAME: Mapping[Winner, Side] = {"A": "model_2", "B": "model_1", "tie": "tie", "error": "error"}


@dataclass(frozen=True, slots=True)
class Match:
    """One turn of one question played by two models, judged in both orders.

    `lengths` are the characters of the two answers to that turn, where they are known.
    """

    question_id: int
    turn: int
    model_1: str
    model_2: str
    game_1: Side
    game_2: Side
    lengths: tuple[int, int] | None = None

    @property
    def outcome(self) -> Side:
        """The winner both games agree on, else a tie; error when a game has no verdict."""
        if "error" in (self.game_1, self.game_2):
            return "error"
        return self.game_1 if self.game_1 == self.game_2 else "tie"


@dataclass(frozen=True, slots=True)
class WinRate:
    """The record of one model over its matches; matches with an error are not in `n`."""

    n: int
    wins: int
    losses: int
    ties: int
    win_rate: float
    loss_rate: float
    win_rate_adjusted: float


@dataclass(frozen=True, slots=True)
class Bias:
    """Biases of the judge by position and length of the answers.

    `first`, `second`, `tie`: the shares of the games' verdicts by position. `consistent`: the share
    of matches in which both orders give the same verdict; the others favour the first or the second
    position, or are a verdict in one order and a tie in the other. `longer_wins`: the share of
    decided matches whose winner wrote the longer answer; `length_correlation`: Spearman's rho of
    length difference and outcome. None where there is too little data.
    """

    games: int
    first: float | None
    second: float | None
    tie: float | None
    matches: int
    errors: int
    consistent: float | None
    favours_first: float | None
    favours_second: float | None
    longer_wins: float | None
    length_correlation: float | None


def game_sides(first: Winner, second: Winner) -> tuple[Side, Side]:
    """The verdicts of game 1 and of the swapped game 2 as models."""
    return _FIRST_GAME[first], _SECOND_GAME[second]


def side_by_ratings(rating_1: float | None, rating_2: float | None) -> Side:
    """The winner by single ratings: a difference up to 0.1 is a tie, a missing rating an error."""
    if rating_1 is None or rating_2 is None:
        return "error"
    return _FIRST_GAME[winner_of(rating_1, rating_2)]


def win_rates(matches: Iterable[Match]) -> dict[str, WinRate]:
    """The record of every model, best adjusted win rate first."""
    counts: dict[str, dict[str, int]] = {}
    for match in matches:
        outcome = match.outcome
        if outcome == "error":
            continue
        for side, model in (("model_1", match.model_1), ("model_2", match.model_2)):
            record = counts.setdefault(model, {"win": 0, "loss": 0, "tie": 0})
            record["tie" if outcome == "tie" else "win" if outcome == side else "loss"] += 1
    rates = {model: _rate(record["win"], record["loss"], record["tie"]) for model, record in counts.items()}
    return dict(sorted(rates.items(), key=lambda item: (-item[1].win_rate_adjusted, item[0])))


def _rate(wins: int, losses: int, ties: int) -> WinRate:
    n = wins + losses + ties
    return WinRate(n, wins, losses, ties, wins / n, losses / n, (wins + 0.5 * ties) / n)


def bias(matches: Sequence[Match]) -> Bias:
    """Position and length bias over `matches`."""
    judged = [match for match in matches if match.outcome != "error"]
    verdicts = [
        (match.game_1, {"model_1": "model_2", "model_2": "model_1"}.get(match.game_2, "tie"))
        for match in judged
    ]
    # After this mapping "model_1" means the first position in both games.
    games = [verdict for pair in verdicts for verdict in pair]
    decided = [
        (match.outcome == "model_1", match.lengths)
        for match in judged
        if match.outcome in ("model_1", "model_2") and match.lengths and match.lengths[0] != match.lengths[1]
    ]
    return Bias(
        games=len(games),
        first=_share(games.count("model_1"), len(games)),
        second=_share(games.count("model_2"), len(games)),
        tie=_share(games.count("tie"), len(games)),
        matches=len(judged),
        errors=len(matches) - len(judged),
        consistent=_share(sum(match.game_1 == match.game_2 for match in judged), len(judged)),
        favours_first=_share(verdicts.count(("model_1", "model_1")), len(judged)),
        favours_second=_share(verdicts.count(("model_2", "model_2")), len(judged)),
        longer_wins=_share(sum(won == (sizes[0] > sizes[1]) for won, sizes in decided), len(decided)),
        length_correlation=_length_correlation(judged),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _length_correlation(judged: Sequence[Match]) -> float | None:
    points = [
        (match.lengths[0] - match.lengths[1], {"model_1": 1.0, "tie": 0.5}.get(match.outcome, 0.0))
        for match in judged
        if match.lengths
    ]
    return spearman([x for x, _ in points], [y for _, y in points])


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rho with mean ranks for ties; None for fewer than 3 points or a constant side."""
    from scipy.stats import rankdata

    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def pairwise_json(matches: Sequence[Match]) -> dict[str, Any]:
    """Win rates and biases over all matches and by turn, ready for JSON."""
    parts = {"all": list(matches)}
    parts |= {f"turn_{turn}": [match for match in matches if match.turn == turn] for turn in (1, 2)}
    return {
        scope: {
            "win_rates": {model: asdict(rate) for model, rate in win_rates(part).items()},
            "bias": asdict(bias(part)),
        }
        for scope, part in parts.items()
    }


@dataclass(frozen=True)
class Pairing:
    """One match that is to be judged, with a call for each of its two games."""

    question_id: int
    turn: int
    model_1: str
    model_2: str
    prompt: str
    format: str
    games: tuple[JudgeCall, JudgeCall]
    lengths: tuple[int, int]


@dataclass(frozen=True)
class PairwisePlan:
    """Everything known before the first call; `judge` is None when ratings decide."""

    folder: Path
    preset: Preset
    judge: Judge | None
    pairings: tuple[Pairing, ...]
    rated: tuple[Match, ...]
    missing: tuple[str, ...]

    @property
    def calls(self) -> list[JudgeCall]:
        """Both games of every match."""
        return [game for pairing in self.pairings for game in pairing.games]


def plan_pairwise(config: Config) -> PairwisePlan:
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
    preset = judging_preset(config.preset or (names.pop() if names else DEFAULT_PRESET), config.judge)
    answers = _answers(config, folders)
    pairs = list(_pairs(list(answers), config.pairwise.baseline))
    identity = {
        "preset": preset.name,
        "answers": {
            model: sorted(list(asdict(answer).values()) for answer in own.values())
            for model, own in answers.items()
        },
        **({"prompts": preset.own_prompts} if preset.own_prompts else {}),
    }
    default = Path("results") / "pairwise" / text_sha256(canonical_json(identity))[:12]
    out = Path(config.out).expanduser() if config.out else default
    if config.pairwise.source is PairSource.ratings:
        return PairwisePlan(out, preset, None, (), tuple(_rated(folders, config, pairs)), ())
    judge = open_judge(config, preset)
    books = Books(preset, pinned_files(config), config.language)
    pairings, missing = _pairings(pairs, answers, books, preset, judge)
    return PairwisePlan(out, preset, judge, tuple(pairings), (), tuple(missing))


def compare(plan: PairwisePlan, config: Config, *, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Judges the matches and writes results.json and a log in FastChat's form.

    None while a batch is under way.

    Raises:
        EvalkitError: the service refused or the budget is spent; what was judged is kept.
    """
    matches, more = plan.rated, {}
    if plan.judge is not None:
        replies = ask_judge(plan.judge, config, plan.calls, plan.folder, say)
        if replies is None:
            return None
        matches = tuple(_match(pairing, replies) for pairing in plan.pairings)
        _write_log(plan, plan.judge, replies, matches)
        more = {
            "judge": plan.judge.record(),
            "calls": replies.asked.calls,
            "failed": sum(reply.status == "api_error" for reply in replies.by_id.values()),
        }
    content = {
        "schema_version": 1,
        "kind": "mt_bench_pairwise",
        "preset": preset_record(plan.preset),
        "source": config.pairwise.source.value,
        "baseline": config.pairwise.baseline,
        "pairwise": pairwise_json(matches),
        "missing": list(plan.missing),
        **more,
    }
    write_checked_json(plan.folder / "results.json", content)
    return content


def _answers(config: Config, folders: Sequence[MtBenchFolder]) -> dict[str, dict[int, ModelAnswer]]:
    listed = [answer for folder in folders for answer in answers_of(folder.turns())]
    if config.answers is not None:
        listed += read_answers(Path(config.answers).expanduser())
    answers = answers_by_model(listed)
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
    answers: Mapping[str, Mapping[int, ModelAnswer]],
    books: Books,
    preset: Preset,
    judge: Judge,
) -> tuple[list[Pairing], list[str]]:
    pairings, missing = [], []
    for one, two in pairs:
        shared = sorted(answers[one].keys() & answers[two].keys())
        if lost := len(answers[one].keys() ^ answers[two].keys()):
            missing.append(f"{one} and {two}: {lost} questions are answered by only one of them")
        for question_id in shared:
            first, second = answers[one][question_id].turns, answers[two][question_id].turns
            book = books.of(question_id)
            check_own_prompts(book, preset, "pair")
            for turn in preset.turns:
                try:
                    pairings.append(
                        _pairing(question_id, turn, (one, two), (first, second), book, preset, judge)
                    )
                except InputError as error:
                    missing.append(f"{one} and {two}: {error.what}")
    return pairings, missing


def _pairing(
    question_id: int,
    turn: int,
    models: tuple[str, str],
    turns: tuple[tuple[str, ...], tuple[str, ...]],
    book: PromptBook,
    preset: Preset,
    judge: Judge,
) -> Pairing:
    prompt, straight = book.pair(question_id, turn, *turns)
    _, swapped = book.pair(question_id, turn, *reversed(turns))
    category = book.questions[question_id].category
    games = [
        JudgeCall(
            id=f"{question_id}/{turn}/{game}/{models[0]}/{models[1]}",
            model=f"{models[0]} and {models[1]}",
            question_id=question_id,
            category=category,
            turn=turn,
            answer=0,
            repeat=0,
            prompt=prompt,
            messages=messages,
            keys=keys_of(judge, messages, 0, preset.own_prompts),
        )
        for game, messages in ((1, straight), (2, swapped))
    ]
    lengths = (len(turns[0][turn - 1]), len(turns[1][turn - 1]))
    return Pairing(
        question_id, turn, *models, prompt, book.prompts[prompt].output_format, (games[0], games[1]), lengths
    )


def _match(pairing: Pairing, replies: JudgeReplies) -> Match:
    first, second = (parse_pair(_whole_text(replies, game), pairing.format) for game in pairing.games)
    sides = game_sides(first, second)
    return Match(pairing.question_id, pairing.turn, pairing.model_1, pairing.model_2, *sides, pairing.lengths)


def _whole_text(replies: JudgeReplies, game: JudgeCall) -> str | None:
    # What is left of a reply that was cut or refused is no verdict.
    reply = replies.by_id[game.id]
    return reply.text if reply.status == "ok" else None


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


def _write_log(plan: PairwisePlan, judge: Judge, replies: JudgeReplies, matches: Sequence[Match]) -> None:
    rows = []
    for pairing, match in zip(plan.pairings, matches, strict=True):
        row: dict[str, Any] = {
            "question_id": pairing.question_id,
            "model_1": pairing.model_1,
            "model_2": pairing.model_2,
            "g1_winner": match.game_1,
            "g2_winner": match.game_2,
            "judge": [judge.label, pairing.prompt],
            "turn": pairing.turn,
        }
        for number, game in enumerate(pairing.games, start=1):
            row[f"g{number}_user_prompt"] = game.messages[-1].content
            row[f"g{number}_judgment"] = _whole_text(replies, game)
        rows.append(row)
    name = MtBenchFolder(plan.folder).judgments_path(f"{judge.label}_pair").name
    text = "".join(f"{canonical_json(row)}\n" for row in rows)
    write_text_atomic(plan.folder / name, text)
