"""How far judges agree: the verbs agreement (votes on pairs, ratings of answers) and calibrate.

Source: sections 9 (FastChat's compute_agreement) and 11 of the MT-Bench protocol notes.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from evalkit.core.config import Reduce
from evalkit.core.durable import remove_file, write_json_atomic
from evalkit.core.errors import InputError
from evalkit.core.files import JsonObject, int_field, text_field
from evalkit.core.types import Judgment
from evalkit.mtbench.aggregate import RULES, reduced, table
from evalkit.mtbench.books import BookOptions
from evalkit.mtbench.fastchat import pair_of, read_judgments, rows_of
from evalkit.mtbench.folder import MtBenchFolder, logged_label
from evalkit.mtbench.judge.calls import JudgeReplies
from evalkit.mtbench.judging import JudgingPlan
from evalkit.mtbench.model_tables import scored
from evalkit.mtbench.replay import replay_singles
from evalkit.mtbench.win_rates import Match, share, spearman
from evalkit.records.run_folder import one_run

# Two gpt-4 runs over 113 equal prompts.
GPT4_NOISE = {"exact": 0.70, "within_one": 0.94, "deviation": 0.86}
USUAL_REFERENCE = "gpt-4"
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


def compare_ratings(
    reference: Sequence[Judgment],
    other: Sequence[Judgment],
    reduces: tuple[Reduce, Reduce] = (Reduce.mean, Reduce.mean),
) -> dict[str, RatingAgreement]:
    """`all`, then each category. `reduces`: how each judge's repeated ratings of one turn become one."""
    first, second = _ratings(reference, reduces[0]), _ratings(other, reduces[1])
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
    for key in first.keys() ^ second.keys():
        category, rating = first[key] if key in first else second[key]
        for scope in ("all", category):
            only_one[scope] += rating is not None
    return {scope: _agreement(sorted(pairs), only_one[scope]) for scope, pairs in shared.items()}


def _ratings(
    judgments: Iterable[Judgment], reduce: Reduce
) -> dict[tuple[str, int, int, int], tuple[str, float | None]]:
    """Category and rating by model, question, turn and answer; None: no rating could be read."""
    rated: dict[tuple[str, int, int, int], tuple[str, list[float]]] = {}
    for judgment in judgments:
        key = (judgment.model, judgment.question_id, judgment.turn, judgment.answer)
        _, found = rated.setdefault(key, (judgment.category, []))
        found += [] if judgment.rating is None else [judgment.rating]
    return {
        key: (category, reduced(found, reduce) if found else None) for key, (category, found) in rated.items()
    }


def _agreement(pairs: Sequence[tuple[float, float]], only_one: int) -> RatingAgreement:
    # Means of whole numbers that differ by one point do so up to rounding.
    differences = [round(other - reference, 12) for reference, other in pairs]
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
    votes = (
        _pair_vote(row, place) if "g1_winner" in row else _given_vote(row, place)
        for place, row in rows_of(path)
    )
    return [vote for vote in votes if vote is not None]


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


def _pair_vote(row: JsonObject, place: str) -> Vote | None:
    pair = pair_of(row, place)
    outcome = Match(pair.question_id, pair.turn, pair.model_1, pair.model_2, *pair.winners).outcome
    if outcome == "error":
        return None
    choice: Choice = "tie" if outcome == "tie" else "model_a" if outcome == "model_1" else "model_b"
    kind = kind_of_judge([pair.judge, pair.prompt_name])
    assert kind is not None
    return Vote(pair.question_id, pair.turn, pair.model_1, pair.model_2, kind, choice)


def _given_vote(row: JsonObject, place: str) -> Vote:
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
        InputError: nothing named, runs with other answers of one model, or fewer than two judges or votes.
    """
    if not paths:
        raise InputError("no votes or ratings are given", fix="agreement FILE_OR_RUN [FILE_OR_RUN ...]")
    votes: list[Vote] = []
    ratings: dict[str, tuple[list[Judgment], Reduce]] = {}
    answers: dict[str, tuple[str, Path]] = {}
    for path in (one_run(str(given), mt_bench=True) for given in paths):
        if (path / "mt_bench.json").is_file():
            folder = MtBenchFolder(path)
            for turn in folder.turns():
                text, other = answers.setdefault(turn.id, (turn.completion, path))
                if text != turn.completion:
                    raise InputError(
                        f"{turn.model} answers question {turn.question_id} in {other} not as in {path}",
                        fix="runs with the same answers: what is compared is how these are rated",
                    )
            for judge in folder.judges():
                made = (folder.judgments(judge), folder.made_by(judge)[1])
                ratings[_label_for(judge, path, ratings)] = made
        elif _holds_ratings(path):
            rows, books = read_judgments(path).singles, options.books()
            for name in dict.fromkeys(row.judge for row in rows):
                parts = replay_singles([row for row in rows if row.judge == name], books, None)
                judgments = [judgment for part in parts for judgment in part.judgments]
                ratings[_label_for(judgments[0].judge, path, ratings)] = (judgments, Reduce.mean)
        else:
            votes += read_votes(path)
    found = Agreement(
        votes=vote_agreement(votes),
        ratings={
            (one, two): compare_ratings(first, second, (reduce, other))
            for (one, (first, reduce)), (two, (second, other)) in combinations(ratings.items(), 2)
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
    first = next(rows_of(path), None)
    if first is None:
        raise InputError("the file is empty", where=path)
    return "score" in first[1]


def _label_for(judge: str, path: Path, taken: Container[str]) -> str:
    # Two logs of one judge are two judges here: that is how its noise is measured.
    if judge not in taken:
        return judge
    name = f"{judge} ({path.name})"
    return name if name not in taken else f"{judge} ({path})"


@dataclass(frozen=True)
class Calibration:
    """A judge compared with the reference: agreement by category, and both averages by model."""

    reference: str
    agreement: dict[str, RatingAgreement]
    averages: dict[str, dict[str, float | None]]
    path: Path


def calibrate(plan: JudgingPlan, reference: str, replies: JudgeReplies) -> Calibration:
    """Compares the new judge's replies with the judgments of `reference`.

    The run's own table and judgments are unchanged: the comparison goes to calibration/<judge>.json, the
    judgments beside it.
    """
    folder, options = plan.folder, plan.judge.config
    judgments = plan.judgments(replies)
    before = folder.judgments(reference)
    reduces = (folder.made_by(reference)[1], options.reduce)
    calibration = Calibration(
        reference=reference,
        agreement=compare_ratings(before, judgments, reduces),
        averages=_averages(plan, before, judgments, reduces),
        path=folder.judgments_path(plan.judge.label, "calibration").with_suffix(".json"),
    )
    content = {
        "kind": "mt_bench_calibration",
        "preset": plan.books.preset.record(),
        "reference": reference,
        "judge": plan.judge.record() | {"repeats": options.repeats, "reduce": options.reduce.value},
        "agreement": {scope: asdict(value) for scope, value in calibration.agreement.items()},
        "averages": calibration.averages,
        "gpt4_noise": GPT4_NOISE,
    }
    remove_file(calibration.path)
    folder.write_judgments(plan.judge.label, judgments, "calibration")
    write_json_atomic(calibration.path, content)
    return calibration


def find_reference(folder: MtBenchFolder, label: str, chosen: str | None) -> str:
    """The judge that the judge called `label` is compared with: the chosen one, gpt-4, or the only other.

    Raises:
        InputError: the run has no judgments by it, or by several others.
    """
    others = [judge for judge in folder.judges() if judge != folder.judgments_path(label).stem]
    wanted = folder.find_judge(chosen or USUAL_REFERENCE)
    if wanted == folder.judgments_path(label).stem:
        wanted = folder.find_judge(logged_label(label))
    if wanted in others:
        return wanted
    if chosen is not None:
        raise InputError(
            f"the run has no judgments by {chosen!r}",
            where=folder.path,
            fix=f"--reference {' or '.join(others) or 'one that judge or replay has made'}",
        )
    if len(others) != 1:
        what = "has no stored judgments" if not others else f"was judged by {', '.join(others)}"
        raise InputError(
            f"the run {what}: which shall {label} be compared with?",
            where=folder.path,
            fix="--reference NAME   (judge or replay makes them)",
        )
    return others[0]


def _averages(
    plan: JudgingPlan, before: list[Judgment], judgments: list[Judgment], reduces: tuple[Reduce, Reduce]
) -> dict[str, dict[str, float | None]]:
    preset = plan.books.preset
    rule = RULES[preset.aggregation]

    def average(of: list[Judgment], model: str, reduce: Reduce) -> float | None:
        own = [judgment for judgment in of if judgment.model == model]
        return table(scored(own, preset), rule, reduce)["average"]

    return {
        model: {
            "reference": average(before, model, reduces[0]),
            "other": average(judgments, model, reduces[1]),
        }
        for model in dict.fromkeys(judgment.model for judgment in judgments)
    }
