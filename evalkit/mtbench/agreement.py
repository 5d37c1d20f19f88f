"""The verb agreement: how far judges agree in ratings of the same answers and votes on the same pairs.

Source: section 9 of the MT-Bench protocol notes (FastChat's compute_agreement).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from evalkit.core.durable import write_json_atomic
from evalkit.core.errors import InputError
from evalkit.core.files import Row, int_field, read_rows, text_field
from evalkit.core.types import Judgment
from evalkit.mtbench.data import BookOptions
from evalkit.mtbench.fastchat_logs import jsonl_files, pair_of, read_judgments
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.mtbench.replay import replay_singles
from evalkit.mtbench.tables.win_rates import Match, share, spearman

Choice = Literal["model_a", "model_b", "tie"]
FLIPPED: Mapping[Choice, Choice] = {"model_a": "model_b", "model_b": "model_a", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class RatingAgreement:
    """Two judges on the same answers: `n` turns that both rated.

    `exact` and `within_one` are shares; `offset` is the mean of other minus reference, `deviation`
    the sample standard deviation of that difference. None where there is too little to say.
    """

    n: int
    only_one: int
    exact: float | None
    within_one: float | None
    rank_correlation: float | None
    offset: float | None
    deviation: float | None
    mean_reference: float | None
    mean_other: float | None


def compare_ratings(reference: Sequence[Judgment], other: Sequence[Judgment]) -> dict[str, RatingAgreement]:
    """`all`, then each category. The first rating of a (model, question, turn, answer) counts."""
    first, second = _first_ratings(reference), _first_ratings(other)
    categories = sorted({judgment.category for judgment in reference})
    shared: dict[str, list[tuple[float, float]]] = {name: [] for name in ("all", *categories)}
    only_one: Counter[str] = Counter()
    for key in first.keys() & second.keys():
        (category, one), (_, two) = first[key], second[key]
        for scope in ("all", category):
            if one is None or two is None:
                only_one[scope] += (one is None) != (two is None)
            else:
                shared[scope].append((one, two))
    return {scope: _agreement(sorted(pairs), only_one[scope]) for scope, pairs in shared.items()}


def _first_ratings(
    judgments: Iterable[Judgment],
) -> dict[tuple[str, int, int, int], tuple[str, float | None]]:
    ratings: dict[tuple[str, int, int, int], tuple[str, float | None]] = {}
    for judgment in judgments:
        key = (judgment.model, judgment.question_id, judgment.turn, judgment.answer)
        ratings.setdefault(key, (judgment.category, judgment.rating))
    return ratings


def _agreement(pairs: Sequence[tuple[float, float]], only_one: int) -> RatingAgreement:
    differences = [other - reference for reference, other in pairs]
    return RatingAgreement(
        n=len(pairs),
        only_one=only_one,
        exact=share(differences.count(0), len(pairs)),
        within_one=share(sum(abs(difference) <= 1 for difference in differences), len(pairs)),
        rank_correlation=spearman([one for one, _ in pairs], [two for _, two in pairs]),
        offset=fmean(differences) if differences else None,
        deviation=stdev(differences) if len(differences) > 1 else None,
        mean_reference=fmean(one for one, _ in pairs) if pairs else None,
        mean_other=fmean(two for _, two in pairs) if pairs else None,
    )


@dataclass(frozen=True, slots=True)
class Vote:
    """One judge's choice between two models' answers to one turn; `judge` is its kind."""

    question_id: int
    turn: int
    model_a: str
    model_b: str
    judge: str
    choice: Choice


@dataclass(frozen=True, slots=True)
class VoteAgreement:
    """Two kinds of judges in one turn: the share of equal votes, with ties and without.

    Without ties: pairs of votes in which either is a tie are left out.
    """

    judges: tuple[str, str]
    turn: int
    n: int
    agree: float | None
    n_without_ties: int
    agree_without_ties: float | None


def read_votes(path: Path) -> list[Vote]:
    """The votes of a file (or every *.jsonl of a folder): human votes, or FastChat's pairwise logs.

    Human votes have question_id, turn, model_a, model_b, winner and judge. Matches without a verdict
    are no votes.

    Raises:
        InputError: a row that is neither.
    """
    votes = []
    for file in jsonl_files(path):
        for place, row in read_rows(file, mend=True):
            vote = _pair_vote(row, place) if "g1_winner" in row else _given_vote(row, place)
            if vote is not None:
                votes.append(vote)
    return votes


def kind_of_judge(judge: object) -> str | None:
    """`gpt4-pair`, `human` or `author` as FastChat names them; other judges by their own name."""
    if isinstance(judge, list) and len(judge) == 2 and all(isinstance(part, str) for part in judge):
        name, prompt = judge
        paired = str(prompt).startswith("pair")
        return "gpt4-pair" if name == "gpt-4" and paired else f"{name}-pair" if paired else str(name)
    if not isinstance(judge, str):
        return None
    for start, kind in (("expert", "human"), ("author", "author")):
        if judge.startswith(start):
            return kind
    return judge


def vote_agreement(votes: Iterable[Vote]) -> list[VoteAgreement]:
    """The agreement of every two kinds of judges, and of the judges within a kind, by turn."""
    cast: dict[int, dict[tuple[int, str, str], dict[str, list[Choice]]]] = {}
    for vote in votes:
        swapped = vote.model_a > vote.model_b
        models = (vote.model_b, vote.model_a) if swapped else (vote.model_a, vote.model_b)
        choice = FLIPPED[vote.choice] if swapped else vote.choice
        matches = cast.setdefault(vote.turn, {})
        matches.setdefault((vote.question_id, *models), {}).setdefault(vote.judge, []).append(choice)
    found = []
    for turn, matches in sorted(cast.items()):
        kinds = sorted({kind for by_kind in matches.values() for kind in by_kind})
        for one, two in combinations_with_replacement(kinds, 2):
            pairs: list[tuple[Choice, Choice]] = []
            for by_kind in matches.values():
                first, second = by_kind.get(one, []), by_kind.get(two, [])
                pairs += list(combinations(first, 2)) if one == two else list(product(first, second))
            if pairs:
                found.append(_votes(pairs, (one, two), turn))
    return found


def _votes(pairs: Sequence[tuple[Choice, Choice]], judges: tuple[str, str], turn: int) -> VoteAgreement:
    decided = [pair for pair in pairs if "tie" not in pair]
    return VoteAgreement(
        judges=judges,
        turn=turn,
        n=len(pairs),
        agree=share(sum(one == two for one, two in pairs), len(pairs)),
        n_without_ties=len(decided),
        agree_without_ties=share(sum(one == two for one, two in decided), len(decided)),
    )


def _pair_vote(row: Row, place: str) -> Vote | None:
    pair = pair_of(row, place)
    outcome = Match(pair.question_id, pair.turn, pair.model_1, pair.model_2, *pair.winners).outcome
    if outcome == "error":
        return None
    choice: Choice = "tie" if outcome == "tie" else "model_a" if outcome == "model_1" else "model_b"
    kind = kind_of_judge([pair.judge, pair.prompt_name])
    assert kind is not None
    return Vote(pair.question_id, pair.turn, pair.model_1, pair.model_2, kind, choice)


def _given_vote(row: Row, place: str) -> Vote:
    kind = kind_of_judge(row.get("judge"))
    if kind is None:
        raise InputError("the name of a judge was expected", where=f"{place}, field judge")
    winner = text_field(row, "winner", place)
    named = "tie" if "tie" in winner else winner
    choice = next((choice for choice in FLIPPED if choice == named), None)
    if choice is None:
        raise InputError(f"{winner!r} is none of model_a, model_b, tie", where=f"{place}, field winner")
    return Vote(
        question_id=int_field(row, "question_id", place),
        turn=int_field(row, "turn", place),
        model_a=text_field(row, "model_a", place),
        model_b=text_field(row, "model_b", place),
        judge=kind,
        choice=choice,
    )


@dataclass(frozen=True)
class Agreement:
    """Agreement of votes, and of ratings by (reference, other)."""

    votes: list[VoteAgreement]
    ratings: dict[tuple[str, str], dict[str, RatingAgreement]]


def agreement(paths: Sequence[Path], options: BookOptions, out: Path | None = None) -> Agreement:
    """Compares every two judges found in runs and files; writes the comparison to `out`.

    Raises:
        InputError: nothing named, or fewer than two judges or votes to compare.
    """
    if not paths:
        raise InputError("no votes or ratings are given", fix="agreement FILE_OR_RUN [FILE_OR_RUN ...]")
    votes: list[Vote] = []
    ratings: dict[str, list[Judgment]] = {}
    for path in paths:
        if (path / "mt_bench.json").is_file():
            folder = MtBenchFolder(path)
            for judge in folder.judges():
                ratings[_label_for(judge, path, ratings)] = folder.judgments(judge)
        elif _holds_ratings(path):
            parts = replay_singles(read_judgments(path).singles, options.books(), None)
            judgments = [judgment for part in parts for judgment in part.judgments]
            ratings[_label_for(judgments[0].judge, path, ratings)] = judgments
        else:
            votes += read_votes(path)
    found = Agreement(
        votes=vote_agreement(votes),
        ratings={
            (one, two): compare_ratings(ratings[one], ratings[two]) for one, two in combinations(ratings, 2)
        },
    )
    if not found.votes and not found.ratings:
        raise InputError("there are no two judges to compare", where=", ".join(map(str, paths)))
    if out is not None:
        write_json_atomic(out, _json(found))
    return found


def _json(found: Agreement) -> dict[str, Any]:
    ratings = [
        {"reference": one, "other": two} | {scope: asdict(value) for scope, value in parts.items()}
        for (one, two), parts in found.ratings.items()
    ]
    return {"votes": [asdict(value) for value in found.votes], "ratings": ratings}


def _holds_ratings(path: Path) -> bool:
    for _, row in read_rows(jsonl_files(path)[0], mend=True):
        return "score" in row
    raise InputError("the file is empty", where=path)


def _label_for(judge: str, path: Path, taken: dict[str, list[Judgment]]) -> str:
    # Two logs of one judge are two judges here: that is how its noise is measured.
    if judge not in taken:
        return judge
    name = f"{judge} ({path.name})"
    return name if name not in taken else f"{judge} ({path})"
