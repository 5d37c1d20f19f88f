"""Pairwise matches -> win rates, and the biases of the judge by position and length.

Source: section 9 of the MT-Bench protocol notes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evalkit.mtbench.ratings import Side, Winner, winner_of

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
    rates = {}
    for model, record in counts.items():
        wins, losses, ties = record["win"], record["loss"], record["tie"]
        n = wins + losses + ties
        rates[model] = WinRate(n, wins, losses, ties, wins / n, losses / n, (wins + 0.5 * ties) / n)
    return dict(sorted(rates.items(), key=lambda item: (-item[1].win_rate_adjusted, item[0])))


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
        first=share(games.count("model_1"), len(games)),
        second=share(games.count("model_2"), len(games)),
        tie=share(games.count("tie"), len(games)),
        matches=len(judged),
        errors=len(matches) - len(judged),
        consistent=share(sum(match.game_1 == match.game_2 for match in judged), len(judged)),
        favours_first=share(verdicts.count(("model_1", "model_1")), len(judged)),
        favours_second=share(verdicts.count(("model_2", "model_2")), len(judged)),
        longer_wins=share(sum(won == (sizes[0] > sizes[1]) for won, sizes in decided), len(decided)),
        length_correlation=_length_correlation(judged),
    )


def share(part: int, whole: int) -> float | None:
    """A part of a whole; None where there is nothing."""
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
