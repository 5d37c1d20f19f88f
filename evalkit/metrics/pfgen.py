"""pfgen-bench: how well an answer's words fit 1,000 reference texts per aspect, without a judge.

An answer has three parts. Fluency counts the n-grams it shares with the references, truthfulness the share
of its characters within known trigrams, helpfulness the keywords it names. The scale is not 0 to 1: the
published ground truth scores 1.05. Source of the rules: docs/protocol/pfgen.md.

The order of float operations and of rounding is part of the protocol: published figures are reproduced to
the last digit.
"""

import logging
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalkit.core.assets import cache_dir
from evalkit.core.durable import atomic_file
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.text import canonical_json, text_sha256
from evalkit.metrics.intervals import FloatArray, IntArray

VERSION = "pfgen-1"
# Increment when the content of the kept tables changes.
TABLES_VERSION = 1
LONGEST_NGRAM = 10
# Characters of an answer that can count; and the text of trigrams, which has `^` and `$` around it.
LONGEST_ANSWER = 200
# From this length on an answer loses 2 % with each character.
FREE_LENGTH = 100
_MARKS = "^$、。・「」『』（）【】［］〈〉《》"
_NEVER = 9999
_CODE_BITS = 12

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One question of the benchmark.

    Attributes:
        id: `Q01` to `Q50`.
        text: the question.
        category: `math` and the like.
        keywords: the conditions of helpfulness, as in the data.
        references: the reference texts of each aspect, in the data's order.
    """

    id: str
    text: str
    category: str
    keywords: tuple[dict[str, Any], ...]
    references: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """The score of one answer; the values of an aspect are divided by the number of aspects.

    Attributes:
        fluency: by aspect.
        truthfulness: by aspect.
        helpfulness: 0 to 1.
        score: the three parts' mean.
        length: characters.
        missing: the keywords not named within the part of the answer that scores best.
        excess: characters over 100 of that part.
    """

    fluency: dict[str, float]
    truthfulness: dict[str, float]
    helpfulness: float
    score: float
    length: int
    missing: tuple[str, ...]
    excess: int


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tables:
    """In how many references of each aspect every n-gram of a question occurs, as a trie in arrays.

    Attributes:
        aspects: the K aspects.
        alphabet: int64 [A], the sorted characters of the references; code i + 1 is character i.
        codes: per level n = 1 to 10, uint16 [M_n]: the last character of each n-gram, in sorted order.
        children: per level, uint16 [M_(n-1)]: how many n-grams continue each (n-1)-gram.
        counts: per level, uint16 [M_n, K].
        baseline: float64 [K], the references' mean of fluency before division.
        references: int64 [K], references of each aspect.
    """

    aspects: tuple[str, ...]
    alphabet: IntArray
    codes: list[NDArray[np.uint16]]
    children: list[NDArray[np.uint16]]
    counts: list[NDArray[np.uint16]]
    baseline: FloatArray
    references: IntArray

    def __post_init__(self) -> None:
        # The last key is found for what is greater than all others, and equals nothing.
        keys = [
            np.append(np.repeat(np.arange(len(children)), children) << 16 | codes, np.iinfo(np.int64).max)
            for codes, children in zip(self.codes, self.children, strict=True)
        ]
        object.__setattr__(self, "_keys", keys)

    @classmethod
    def build(cls, references: Mapping[str, Sequence[str]]) -> "Tables":
        """The tables of one question's references.

        Raises:
            InputError: 4,096 or more different characters.
        """
        texts = [text for aspect in references.values() for text in aspect]
        sizes = np.array([len(aspect) for aspect in references.values()])
        aspect_of = np.repeat(np.arange(len(sizes)), sizes)
        points = _points(texts, max(map(len, texts)) + LONGEST_NGRAM)
        alphabet = np.unique(points[points >= 0])
        if len(alphabet) >= 1 << _CODE_BITS:
            raise InputError(f"the references of a question have {len(alphabet)} different characters")
        width, flat = points.shape[1], _codes(points, alphabet).ravel()
        ends = np.repeat([len(text) for text in texts], width) - np.tile(np.arange(width), len(texts))
        places = np.flatnonzero(flat)
        # Ten characters are two words of five; sorted by them, equal n-grams of any length are neighbours.
        words = [np.zeros(len(places), dtype=np.int64) for _ in range(2)]
        for shift in range(LONGEST_NGRAM):
            words[shift // 5] = words[shift // 5] << _CODE_BITS | flat[places + shift]
        order = np.lexsort((words[1], words[0]))
        places, words = places[order], [word[order] for word in words]
        levels: list[tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint16]]] = []
        gains = np.zeros((len(flat), len(sizes)), dtype=np.int64)
        begins = np.zeros(len(places), dtype=bool)
        begins[:1] = True
        parents, known = np.zeros(len(places), dtype=np.int64), 1
        for n in range(1, LONGEST_NGRAM + 1):
            prefix = words[n > 5] >> _CODE_BITS * (5 - n if n <= 5 else 10 - n)
            begins[1:] |= prefix[1:] != prefix[:-1]
            whole = ends[places] >= n
            node = np.cumsum(begins & whole) - 1
            number = int(node[-1]) + 1
            head = np.flatnonzero(begins & whole)
            occurrences = np.sort(node[whole] * len(flat) + places[whole])
            nodes, spots = occurrences // len(flat), occurrences % len(flat)
            # An n-gram counts once in each text, where it first occurs.
            texts_of = occurrences // width
            first = np.flatnonzero(np.diff(texts_of, prepend=-1))
            nodes, spots = nodes[first], spots[first]
            aspects = aspect_of[spots // width]
            counts = np.bincount(nodes * len(sizes) + aspects, minlength=number * len(sizes))
            gains[spots + n, aspects] += counts[nodes * len(sizes) + aspects]
            levels.append(
                (
                    flat[places[head] + n - 1].astype(np.uint16),
                    np.bincount(parents[head], minlength=known).astype(np.uint16),
                    counts.reshape(number, len(sizes)).astype(np.uint16),
                )
            )
            parents, known = node, number
        codes, children, counts_of = (list(part) for part in zip(*levels, strict=True))
        best = _best_fluency(gains.reshape(len(texts), width, -1), np.ones(len(sizes)))
        totals = [np.cumsum(best[aspect_of == k, k])[-1] for k in range(len(sizes))]
        return cls(tuple(references), alphabet, codes, children, counts_of, np.array(totals) / sizes, sizes)

    def save(self, path: Path) -> None:
        """Writes the tables, whole or not at all."""
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                aspects=np.array(self.aspects),
                alphabet=self.alphabet,
                sizes=np.array([len(level) for level in self.codes]),
                codes=np.concatenate(self.codes),
                children=np.concatenate(self.children),
                counts=np.concatenate(self.counts),
                baseline=self.baseline,
                references=self.references,
            )

    @classmethod
    def load(cls, path: Path) -> "Tables | None":
        """Tables that `save` wrote; None where there are none, or they are damaged."""
        try:
            with np.load(path) as file:
                sizes = file["sizes"]
                ends, parents = np.cumsum(sizes)[:-1], np.cumsum([1, *sizes[:-1]])[:-1]
                return cls(
                    tuple(map(str, file["aspects"])),
                    file["alphabet"],
                    np.split(file["codes"], ends),
                    np.split(file["children"], parents),
                    np.split(file["counts"], ends),
                    file["baseline"],
                    file["references"],
                )
        except FileNotFoundError:
            return None
        # Every member has a checksum; a damaged directory shows in many ways.
        except (OSError, ValueError, KeyError, IndexError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            log.warning("damaged tables are built anew: %s (%s)", path, error)
            return None

    def _occurrences(self, codes: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
        """Per level: where in the flat codes [T * W] an n-gram of the references begins, and which."""
        places = np.flatnonzero(codes)
        nodes = np.zeros(len(places), dtype=np.int64)
        keys_of: list[IntArray] = vars(self)["_keys"]
        for n, keys in enumerate(keys_of):
            wanted = nodes << 16 | codes[places + n]
            found = np.searchsorted(keys, wanted)
            right = keys[found] == wanted
            places, nodes = places[right], found[right]
            yield places, nodes

    def fluency(self, texts: Sequence[str]) -> FloatArray:
        """[T, K], before division by K."""
        points = _points([text[:LONGEST_ANSWER] for text in texts], LONGEST_ANSWER + LONGEST_NGRAM)
        flat, width = _codes(points, self.alphabet).ravel(), points.shape[1]
        gains = np.zeros((len(flat), len(self.aspects)), dtype=np.int64)
        for n, (places, nodes) in enumerate(self._occurrences(flat), start=1):
            counts = self.counts[n - 1]
            _, first = np.unique(places // width * len(counts) + nodes, return_index=True)
            gains[places[first] + n] += counts[nodes[first]]
        return _best_fluency(gains.reshape(len(texts), width, -1), self.baseline)

    def truthfulness(self, texts: Sequence[str]) -> FloatArray:
        """[T, K], before division by K."""
        marked = [f"^{text}$"[: LONGEST_ANSWER + 2] for text in texts]
        points = _points(marked, LONGEST_ANSWER + 2 + LONGEST_NGRAM)
        flat = _codes(points, self.alphabet).ravel()
        cover = np.zeros((len(flat), len(self.aspects)), dtype=np.int64)
        *_, (places, nodes) = (level for _, level in zip(range(3), self._occurrences(flat), strict=False))
        for shift in range(3):
            cover[places + shift] = np.maximum(cover[places + shift], self.counts[2][nodes])
        cover = cover.reshape(*points.shape, -1)
        kept = (points >= 0) & ~np.isin(points, [ord(mark) for mark in _MARKS])
        shares = np.minimum(1.0, cover / self.references * 200.0) * kept[:, :, None]
        number = np.cumsum(kept, axis=1)
        means = np.cumsum(shares, axis=1) / np.maximum(number, 1)[:, :, None]
        means *= _discount(points.shape[1])[None, :, None]
        place = np.arange(points.shape[1])
        last = kept & (number == number[:, -1:])
        counted = kept & (last | (place >= FREE_LENGTH))
        values: FloatArray = np.where(counted[:, :, None], means, 0.0).max(axis=1)
        return values


def _discount(length: int) -> FloatArray:
    """[length]: what a text that ends at each place keeps."""
    return 1 - np.maximum(np.arange(length) - FREE_LENGTH, 0) / 50


def _best_fluency(gains: IntArray, baseline: FloatArray) -> FloatArray:
    """[T, K] from what each end position adds: [T, W, K]."""
    totals = np.cumsum(gains[:, : LONGEST_ANSWER + 1], axis=1)
    best: FloatArray = (totals * _discount(totals.shape[1])[None, :, None] / baseline).max(axis=1)
    return np.maximum(best, 0.0)


def _points(texts: Sequence[str], width: int) -> IntArray:
    """The code points of texts, [T, width]; -1 after their ends."""
    points = np.full((len(texts), width), -1, dtype=np.int64)
    for row, text in zip(points, texts, strict=True):
        row[: len(text)] = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return points


def _codes(points: IntArray, alphabet: IntArray) -> IntArray:
    """The place of each code point in the alphabet, from 1; 0 where it is not there."""
    places = np.minimum(np.searchsorted(alphabet, points), len(alphabet) - 1)
    return np.where(alphabet[places] == points, places + 1, 0)


def table_path(question: Question, folder: Path | None = None) -> Path:
    """Where the tables of a question's references are kept: in `folder`, or None: in the cache folder."""
    references = [[aspect, list(texts)] for aspect, texts in question.references.items()]
    name = f"{question.id}-{text_sha256(canonical_json(references))[:16]}-{TABLES_VERSION}.npz"
    return (folder or cache_dir() / "pfgen") / name


def tables_of(question: Question, *, folder: Path | None = None) -> Tables:
    """The tables of a question: the kept ones of the same references, else built and kept in `folder`."""
    path = table_path(question, folder)
    tables = Tables.load(path)
    if tables is None:
        tables = Tables.build(question.references)
        try:
            tables.save(path)
        # They cost time later, not the scores now.
        except EvalkitError as error:
            log.warning("the tables of pfgen cannot be kept: %s", error)
    return tables


# --- one answer ----------------------------------------------------------------------------------


def score_answers(question: Question, tables: Tables, answers: Sequence[str]) -> list[AnswerScore]:
    """The scores of answers to one question, in order."""
    if not answers:
        return []
    aspects, number = tables.aspects, len(tables.aspects)
    scores = []
    for text, fluency, truthfulness in zip(
        answers, tables.fluency(answers).tolist(), tables.truthfulness(answers).tolist(), strict=True
    ):
        fluent, true = (
            {aspect: round(value / number, 6) for aspect, value in zip(aspects, values, strict=True)}
            for values in (fluency, truthfulness)
        )
        kept, missing, excess = helpfulness(question.keywords, text)
        kept = round(kept, 5)
        score = round((math.fsum(fluent.values()) + math.fsum(true.values()) + kept) / 3, 5)
        scores.append(AnswerScore(fluent, true, kept, score, len(text), missing, excess))
    return scores


def helpfulness(keywords: Sequence[dict[str, Any]], text: str) -> tuple[float, tuple[str, ...], int]:
    """The value, the keywords missing and the characters over 100, at the best place to stop reading."""
    text = text[:LONGEST_ANSWER]
    weights = _discount(len(text) + 1)
    weights = weights[weights >= 0]
    ends = [(*_end(keyword, text), 1 - keyword.get("importance", 1.0)) for keyword in keywords]
    for end, _, kept in ends:
        weights[:end] *= kept
    best = len(weights) - 1 - int(np.argmax(weights[::-1]))
    value, missing = float(weights[best]), tuple(name for end, name, _ in ends if best < end)
    return value, missing, max(best - FREE_LENGTH, 0) if value else 0


def _end(keyword: dict[str, Any], text: str) -> tuple[int, str]:
    """Where a condition is met, and the keyword that decides it."""
    if "t" in keyword:
        found = re.search(keyword["t"], text)
        return (found.end() if found else _NEVER), keyword["t"]
    parts = [_end(part, text) for part in keyword.get("and") or keyword["or"]]
    choose: Callable[..., tuple[int, str]] = max if "and" in keyword else min
    return choose(parts, key=lambda part: part[0])


# --- a set of answers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class QuestionFigures:
    """The published figures of the answers to one question, rounded as published.

    Attributes:
        score: mean.
        score_std: population standard deviation.
        length: mean characters.
        length_std: population standard deviation.
        fluency: mean by aspect.
        truthfulness: mean by aspect.
        helpfulness: mean.
        average: the score again, with one digit more.
    """

    score: float
    score_std: float
    length: float
    length_std: float
    fluency: dict[str, float]
    truthfulness: dict[str, float]
    helpfulness: float
    average: float

    @classmethod
    def of(cls, scores: Sequence[AnswerScore]) -> "QuestionFigures":
        """The figures of one or more answers."""
        falling = sorted(scores, key=lambda one: one.score, reverse=True)
        aspects = falling[0].fluency

        def mean(values: Iterable[float]) -> float:
            return round(math.fsum(values) / len(falling), 5)

        return cls(
            *_mean_and_std([one.score for one in falling], 4),
            *_mean_and_std([one.length for one in falling], 1),
            {aspect: mean(one.fluency[aspect] for one in falling) for aspect in aspects},
            {aspect: mean(one.truthfulness[aspect] for one in falling) for aspect in aspects},
            mean(one.helpfulness for one in falling),
            mean(one.score for one in falling),
        )


@dataclass(frozen=True)
class SetFigures(QuestionFigures):
    """The published figures of a set of answers, rounded as published.

    `score` and `score_std` are those of the trials' means over questions. In published files, which are
    sorted, the i-th answers of all questions are no trial, and `score_std` is not the spread of trials.

    Attributes:
        trials: the smallest number of answers of a question.
        questions: the figures of each question.
    """

    trials: int
    questions: dict[str, QuestionFigures]


def set_figures(answers: Mapping[str, Sequence[AnswerScore]]) -> SetFigures:
    """The figures of a set: each question's scores, one or more, in the order of its trials."""
    questions = {key: QuestionFigures.of(answers[key]) for key in sorted(answers)}
    trials = zip(*([one.score for one in answers[key]] for key in questions), strict=False)
    lengths = [one.length for key in questions for one in answers[key]]

    def total(values: Iterable[float]) -> float:
        # The published running sum is rounded after each question.
        return reduce(lambda so_far, value: round(so_far + value / len(questions), 5), values, 0.0)

    def by_aspect(parts: Sequence[dict[str, float]]) -> dict[str, float]:
        aspects = dict.fromkeys(aspect for part in parts for aspect in part)
        return {aspect: total(part[aspect] for part in parts if aspect in part) for aspect in aspects}

    return SetFigures(
        *_mean_and_std([math.fsum(trial) / len(trial) for trial in trials], 4),
        *_mean_and_std(lengths, 1),
        by_aspect([one.fluency for one in questions.values()]),
        by_aspect([one.truthfulness for one in questions.values()]),
        total(one.helpfulness for one in questions.values()),
        total(one.average for one in questions.values()),
        min(map(len, answers.values())),
        questions,
    )


def category_scores(
    questions: Sequence[Question], answers: Mapping[str, Sequence[AnswerScore]]
) -> dict[str, float]:
    """The mean over each category's questions of the mean score of their answers."""
    means: dict[str, list[float]] = {}
    for question in questions:
        scores = [one.score for one in answers[question.id]]
        means.setdefault(question.category, []).append(math.fsum(scores) / len(scores))
    return {category: math.fsum(values) / len(values) for category, values in means.items()}


def _mean_and_std(values: Sequence[float], digits: int) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return round(mean, digits), round(std, digits)
