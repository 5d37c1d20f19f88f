"""Several samples of each question: avg@n, pass@k, the seeds of the samples, intervals.

The question is the unit of every statistic. Its samples give one value, `question_values`; the mean over the
questions is the figure, intervals resample questions (`measure`), and a paired test takes the values of two
models on the same questions (`evalkit.leaderboard.paired`).
"""

import math
from collections.abc import Iterable, Sequence
from hashlib import sha256

from evalkit.core.errors import InputError
from evalkit.core.text import canonical_json
from evalkit.metrics import intervals as statistics
from evalkit.metrics.intervals import Interval, Spread


def check_repeats(n: int, ks: Iterable[int]) -> None:
    """Whether pass@k of n samples of each question can be computed for these k.

    Raises:
        InputError: a k is not within 1 to n.
    """
    for k in ks:
        _check_k(k, n)


def repeat_ids(sample_id: str, samples: int) -> list[str]:
    """The ids of a question's answers: its own, or with several `ID/1`, `ID/2` and so on."""
    return [sample_id] if samples == 1 else [f"{sample_id}/{repeat}" for repeat in range(1, samples + 1)]


def sample_seed(run_seed: int, sample_id: str, repeat: int) -> int:
    """The seed of one sample, 0 to 2^31 - 1, which every engine and server takes.

    It depends on nothing else, so that order, batches and resuming do not change it.
    """
    digest = sha256(canonical_json([run_seed, sample_id, repeat]).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def repeated_name(metric: str, *, n: int, k: int | None = None) -> str:
    """The name of a metric over n samples of each question: `exact_match_avg@4`, `exact_match_pass@2`."""
    return f"{metric}_avg@{n}" if k is None else f"{metric}_pass@{k}"


def single_name(metric: str) -> str:
    """The metric that a name of `repeated_name` repeats; another name is its own."""
    return metric.partition("_avg@")[0].partition("_pass@")[0]


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold at least one of the `right` ones.

    1 - C(n - right, k) / C(n, k), the unbiased estimator of Chen et al. (2021), computed in integers and
    rounded once.

    Raises:
        InputError: k is not within 1 to n.
    """
    _check_k(k, n)
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - right, k)) / subsets


def question_values(questions: Iterable[Sequence[float]], k: int | None = None) -> list[float]:
    """One value per question from its samples' scores: their mean, or with k pass@k.

    Raises:
        InputError: with k, a score that is neither 0 nor 1, or a question with fewer than k samples.
    """
    if k is None:
        return [math.fsum(scores) / len(scores) for scores in questions]
    return [pass_at_k(len(scores), _right(scores), k) for scores in questions]


def measure(
    questions: Sequence[Sequence[float]],
    resamples: int,
    *,
    k: int | None = None,
    binary: bool = False,
    scale: Interval | None = None,
) -> tuple[float, Spread]:
    """avg@n, or with k pass@k, over one or more questions, and how sure it is.

    Args:
        questions: each question's scores, one per sample.
        resamples: of the bootstrap over the questions; a question's samples stay together.
        k: of pass@k.
        binary: the metric gives 0 and 1 alone.
        scale: the least and the greatest score the metric gives.

    Raises:
        InputError: as `question_values`.
    """
    values = question_values(questions, k)
    # One sample, or pass@k of exactly k: the question's value is a single right or wrong.
    single = all(len(scores) == (k or 1) for scores in questions)
    spread = statistics.of_mean(
        values,
        resamples,
        binary=single and (binary or k is not None),
        scale=scale if k is None else (0.0, 1.0),
    )
    return math.fsum(values) / len(values), spread


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise InputError(
            f"pass@{k} of {n} samples of each question is not defined",
            where=f"pass@{k}",
            fix=f"a k from 1 to {n}, or samples={k} or more" if k > n else f"a k from 1 to {n}",
        )


def _right(scores: Sequence[float]) -> int:
    if any(score not in (0, 1) for score in scores):
        raise InputError(
            "pass@k needs scores of 0 and 1", where=f"scores {list(scores)}", fix="avg@n for other metrics"
        )
    return int(sum(scores))
