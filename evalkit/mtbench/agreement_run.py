"""The verb agreement: files and runs of several judges, compared two by two."""

from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from evalkit.config import Config
from evalkit.durable import write_json_atomic
from evalkit.errors import InputError
from evalkit.mtbench.agreement import (
    RatingAgreement,
    Vote,
    VoteAgreement,
    compare_ratings,
    read_votes,
    vote_agreement,
)
from evalkit.mtbench.data import Books, pinned_files
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.mtbench.logs import jsonl_files, read_judgments
from evalkit.mtbench.presets import DEFAULT_PRESET, load_preset
from evalkit.mtbench.replay import replay_singles
from evalkit.reading import read_rows
from evalkit.types import Judgment


@dataclass(frozen=True)
class Agreement:
    """Agreement of votes, and of ratings by (reference, other)."""

    votes: list[VoteAgreement]
    ratings: dict[tuple[str, str], dict[str, RatingAgreement]]


def agreement(config: Config) -> Agreement:
    """Compares every two judges found in `config.folders`.

    Raises:
        InputError: nothing named, or fewer than two judges or votes to compare.
    """
    if not config.folders:
        raise InputError("no votes or ratings are given", fix="agreement FILE_OR_RUN [FILE_OR_RUN ...]")
    votes: list[Vote] = []
    ratings: dict[str, list[Judgment]] = {}
    for word in config.folders:
        path = Path(word).expanduser()
        if (path / "mt_bench.json").is_file():
            folder = MtBenchFolder(path)
            for judge in folder.judges():
                ratings[_free(judge, path, ratings)] = folder.judgments(judge)
        elif _holds_ratings(path):
            judgments = _logged(path, config)
            ratings[_free(judgments[0].judge, path, ratings)] = judgments
        else:
            votes += read_votes(path)
    found = Agreement(
        votes=vote_agreement(votes),
        ratings={
            (one, two): compare_ratings(ratings[one], ratings[two]) for one, two in combinations(ratings, 2)
        },
    )
    if not found.votes and not found.ratings:
        raise InputError("there are no two judges to compare", where=", ".join(config.folders))
    if config.out is not None:
        write_json_atomic(Path(config.out).expanduser(), _json(found))
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


def _logged(path: Path, config: Config) -> list[Judgment]:
    preset = load_preset(config.preset or DEFAULT_PRESET)
    books = Books(preset, pinned_files(config), config.language)
    parts = replay_singles(read_judgments(path).singles, books.of, None)
    return [judgment for part in parts for judgment in part.judgments]


def _free(judge: str, path: Path, taken: dict[str, list[Judgment]]) -> str:
    # Two logs of one judge are two judges here: that is how its noise is measured.
    if judge not in taken:
        return judge
    name = f"{judge} ({path.name})"
    return name if name not in taken else f"{judge} ({path})"
