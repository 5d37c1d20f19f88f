"""The verb pairwise: models compared two by two, each match judged in both orders.

Source: section 9 of the MT-Bench protocol notes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from evalkit.core.config import PairwiseConfig, Reduce
from evalkit.core.durable import read_log, write_checked_json, write_lines_atomic, write_text_atomic
from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Judgment
from evalkit.mtbench.aggregate import turn_means
from evalkit.mtbench.books import Books
from evalkit.mtbench.fastchat import (
    AnswersByQuestion,
    ModelAnswer,
    answers_by_model,
    read_answers,
    refuse_overlap,
)
from evalkit.mtbench.folder import MtBenchFolder, answers_of
from evalkit.mtbench.judge.calls import JudgeCall, JudgeReplies, check_own_prompts
from evalkit.mtbench.judge.judges import Judge
from evalkit.mtbench.judge.store import CachedReply, reply_in
from evalkit.mtbench.model_tables import as_logged
from evalkit.mtbench.presets import Preset
from evalkit.mtbench.ratings import parse_pair
from evalkit.mtbench.win_rates import Match, game_sides, pairwise_json, side_by_ratings

ModelPairs = Sequence[tuple[str, str]]


def common_preset(folders: Sequence[MtBenchFolder]) -> str | None:
    """The preset that all runs were made for; None: there is no run.

    Raises:
        InputError: runs of different presets.
    """
    names = sorted({folder.header().preset for folder in folders})
    if len(names) > 1:
        raise InputError(
            f"the runs were made for different presets: {', '.join(names)}",
            fix="preset= the one whose questions and prompts are to be used",
        )
    return names[0] if names else None


def answers_to_compare(
    folders: Sequence[MtBenchFolder], path: Path | None
) -> tuple[AnswersByQuestion, list[Reason]]:
    """The first answers of runs and of FastChat's answer files, by model; and what further ones there are.

    Raises:
        InputError: fewer than two models, or two runs of one model.
    """
    listed = [(folder.path, answers_of(folder.turns())) for folder in folders]
    listed += [(path, read_answers(path))] if path else []
    refuse_overlap((one.model, one.question_id, one.choice, place) for place, own in listed for one in own)
    answers = answers_by_model(answer for _, own in listed for answer in own)
    if len(answers) < 2:
        raise InputError(
            f"two models are needed, there are answers of {', '.join(answers) or 'none'}",
            fix="pairwise RUN RUN [RUN ...]   or answers=FOLDER of FastChat answer files",
        )
    further = Counter(answer.model for _, own in listed for answer in own if answer.choice > 0)
    text = "{model}: {n} answers beside the first to a question"
    return answers, [Reason(text, model=model, n=n) for model, n in further.items()]


def pair_models(models: Sequence[str], baseline: str | None) -> ModelPairs:
    """Every pair of models, or each model with the baseline.

    Raises:
        InputError: an unknown baseline.
    """
    if baseline is None:
        return list(combinations(models, 2))
    if baseline not in models:
        raise InputError(
            f"there are no answers of the baseline {baseline!r}",
            where="option pairwise.baseline",
            fix=f"one of {', '.join(models)}",
        )
    return [(model, baseline) for model in models if model != baseline]


def default_folder(
    preset: Preset, answers: AnswersByQuestion, options: PairwiseConfig, judge: object
) -> Path:
    """Where the results are written unless `out=` says otherwise; `judge` names who decides, as JSON."""
    identity = {
        "preset": preset.name,
        "judge": judge,
        "source": options.source.value,
        "baseline": options.baseline,
        "answers": {
            model: sorted(list(asdict(answer).values()) for answer in own.values())
            for model, own in answers.items()
        },
        **({"prompts": preset.own_prompts} if preset.own_prompts else {}),
    }
    return Path("results") / "pairwise" / text_sha256(canonical_json(identity))[:12]


@dataclass(frozen=True)
class Pairing:
    """One match that is to be judged, with a call for each of its two games.

    `format` is the form of the verdict the prompt asks for, `lengths` the characters of the answers.
    """

    models: tuple[str, str]
    games: tuple[JudgeCall, JudgeCall]
    format: str
    lengths: tuple[int, int]


@dataclass(frozen=True)
class PairwisePlan:
    """The matches to be judged; `missing` says what cannot be asked, and why."""

    judge: Judge
    pairings: tuple[Pairing, ...]
    missing: tuple[str, ...]

    @property
    def calls(self) -> list[JudgeCall]:
        """Both games of every match."""
        return [game for pairing in self.pairings for game in pairing.games]

    def verdict(self, replies: JudgeReplies, game: JudgeCall) -> str | None:
        """The text of a game's verdict; None where the reply was cut or refused."""
        return self.judge.answer_in(replies.by_id[game.id])

    def matches(self, replies: JudgeReplies) -> list[Match]:
        """Every match as it was judged."""
        matches = []
        for pairing in self.pairings:
            texts = (self.verdict(replies, game) for game in pairing.games)
            sides = game_sides(*(parse_pair(text, pairing.format) for text in texts))
            game = pairing.games[0]
            matches.append(Match(game.question_id, game.turn, *pairing.models, *sides, pairing.lengths))
        return matches


def plan_pairwise(
    pairs: ModelPairs, answers: AnswersByQuestion, books: Books, judge: Judge, missing: Sequence[str] = ()
) -> PairwisePlan:
    """Plans both games of every match; `missing`: what is left out beside what the plan finds.

    Raises:
        InputError: no match, `judge.repeats`, or a local judge prompt file that lacks a prompt.
        FetchError: a file of the preset cannot be fetched.
    """
    if judge.config.repeats > 1:
        raise InputError(
            "a match is judged once in each order", where="option judge.repeats", fix="leave it out"
        )
    pairings, missing = [], list(missing)
    for models in pairs:
        first, second = (answers[model] for model in models)
        if lost := len(first.keys() ^ second.keys()):
            text = "{one} and {two}: {n} questions are answered by only one of them"
            missing.append(Reason(text, one=models[0], two=models[1], n=lost))
        for question_id in sorted(first.keys() & second.keys()):
            check_own_prompts(books.of(question_id), books.preset, "pair")
            sides = (first[question_id], second[question_id])
            for turn in books.preset.turns:
                try:
                    pairings.append(_pairing(sides, turn, books, judge))
                except InputError as error:
                    missing.append(f"{models[0]} and {models[1]}: {error.what}")
    if not pairings:
        raise InputError(f"there is no match to judge: {'; '.join(missing)}")
    return PairwisePlan(judge, tuple(pairings), tuple(missing))


def _pairing(sides: tuple[ModelAnswer, ModelAnswer], turn: int, books: Books, judge: Judge) -> Pairing:
    first, second = sides
    question_id, book = first.question_id, books.of(first.question_id)

    def game(number: int, a: ModelAnswer, b: ModelAnswer) -> JudgeCall:
        prompt, messages = book.pair(question_id, turn, a.turns, b.turns)
        return JudgeCall(
            id=f"{question_id}/{turn}/{number}/{first.model}/{second.model}",
            model=f"{first.model} and {second.model}",
            question_id=question_id,
            category=book.questions[question_id].category,
            turn=turn,
            answer=0,
            repeat=0,
            prompt=prompt,
            messages=messages,
            keys=judge.keys(messages, 0),
        )

    games = (game(1, first, second), game(2, second, first))
    return Pairing(
        models=(first.model, second.model),
        games=games,
        format=book.prompts[games[0].prompt].output_format,
        lengths=(len(first.turns[turn - 1]), len(second.turns[turn - 1])),
    )


def rated_matches(folders: Sequence[MtBenchFolder], pairs: ModelPairs, label: str | None) -> list[Match]:
    """Matches decided by the single ratings that the runs hold, by the judge `label`.

    None: the only one that has judged every run.

    Repeats are reduced as in the run's table, then the answers to a question averaged.

    Raises:
        InputError: a run has no ratings by that judge, or those of several; two runs of one model, or runs
            that were judged with other prompts or parameters; no turn was rated for two models.
    """
    found: list[tuple[Path, Judgment]] = []
    reduces: dict[str, Reduce] = {}
    first: dict[str, tuple[Path, Any]] = {}
    if label is None:
        judges = dict.fromkeys(judge for folder in folders for judge in folder.judges())
        common = [judge for judge in judges if all(folder.find_judge(judge) for folder in folders)]
        label = common[0] if len(common) == 1 else None
    for folder in folders:
        chosen = folder.find_judge(label) if label else None
        if chosen is None:
            by = (f"{', '.join(one.judges()) or 'nobody'} ({one.path})" for one in folders)
            raise InputError(
                f"whose ratings? The runs were judged by {', by '.join(by)}",
                where=f"judge={label}" if label else None,
                fix="judge=NAME of one that has judged every run",
            )
        made, reduce = folder.made_by(chosen)
        for key, value in made.items():
            other, there = first.setdefault(key, (folder.path, value))
            if there != value:
                raise InputError(
                    f"the ratings do not compare: {key} is {canonical_json(there)} in {other}, "
                    f"and {canonical_json(value)} in {folder.path}",
                    fix="judge both alike: evalkit judge run=DIR with one preset=, judge= and its options",
                )
        own = folder.judgments(chosen)
        found += [(folder.path, judgment) for judgment in own]
        reduces |= {judgment.model: reduce for judgment in own}
    refuse_overlap((one.model, one.question_id, one.answer, place) for place, one in found)
    ratings = {
        model: turn_means(as_logged([one for _, one in found if one.model == model]), reduce)
        for model, reduce in reduces.items()
    }
    matches = []
    for one, two in pairs:
        for turn in sorted(ratings.get(one, {}).keys() & ratings.get(two, {}).keys()):
            side = side_by_ratings(ratings[one][turn], ratings[two][turn])
            matches.append(Match(*turn, one, two, side, side))
    if not matches:
        raise InputError("there is no match: no turn was rated for two of the models")
    return matches


def kept_replies(folder: Path, judge: Judge) -> list[CachedReply]:
    """The replies of `judge` that `write_matches` has left in a folder."""
    rows, _ = read_log(_replies_path(folder, judge))
    return [reply for row in rows.values() if (reply := reply_in(row)) is not None]


def _replies_path(folder: Path, judge: Judge) -> Path:
    return MtBenchFolder(folder).judgments_path(f"{judge.label}_pair")


def write_matches(
    folder: Path,
    preset: Preset,
    options: PairwiseConfig,
    matches: Sequence[Match],
    judged: tuple[PairwisePlan, JudgeReplies] | None = None,
) -> dict[str, Any]:
    """Writes results.json, for judged matches also the replies and a log in FastChat's form.

    Returns the content of results.json.
    """
    content = {
        "schema_version": 1,
        "kind": "mt_bench_pairwise",
        "preset": preset.record(),
        "source": options.source.value,
        "baseline": options.baseline,
        "pairwise": pairwise_json(matches),
        "missing": [],
    }
    if judged is not None:
        plan, replies = judged
        _write_log(folder, plan, replies, matches)
        kept = (reply for reply in replies.by_id.values() if reply.status != "api_error")
        write_lines_atomic(_replies_path(folder, plan.judge), map(asdict, kept))
        content["missing"] = list(plan.missing)
        content["judge"] = plan.judge.record()
        content["calls"] = replies.asked.calls
        content["failed"] = replies.failed
    write_checked_json(folder / "results.json", content)
    return content


def _write_log(folder: Path, plan: PairwisePlan, replies: JudgeReplies, matches: Sequence[Match]) -> None:
    rows = []
    for pairing, match in zip(plan.pairings, matches, strict=True):
        row: dict[str, Any] = {
            "question_id": match.question_id,
            "model_1": match.model_1,
            "model_2": match.model_2,
            "g1_winner": match.game_1,
            "g2_winner": match.game_2,
            "judge": [plan.judge.label, pairing.games[0].prompt],
            "turn": match.turn,
        }
        for number, game in enumerate(pairing.games, start=1):
            row[f"g{number}_user_prompt"] = game.messages[-1].content
            row[f"g{number}_judgment"] = plan.verdict(replies, game)
        rows.append(row)
    name = _replies_path(folder, plan.judge).name
    write_text_atomic(folder / name, "".join(f"{canonical_json(row)}\n" for row in rows))
