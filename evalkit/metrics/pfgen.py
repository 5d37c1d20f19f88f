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
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalkit.core.assets import cache_dir
from evalkit.core.durable import atomic_file
from evalkit.core.errors import EvalkitError
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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One question of the benchmark: `Q01` to `Q50`.

    `keywords` are the conditions of helpfulness as in the data, `references` the texts of each aspect.
    """

    id: str
    text: str
    category: str
    keywords: tuple[dict[str, Any], ...]
    references: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """The score of one answer: the mean of its three parts.

    Fluency and truthfulness are by aspect, each value divided by the number of aspects; helpfulness is 0 to
    1, the length in characters. `missing` are the keywords not named within the part of the answer that
    scores best, `excess` the characters over 100 of that part.
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

    Its levels are those of n = 1 to 10, one after the other.

    Attributes:
        aspects: the K aspects.
        alphabet: int64 [A], the sorted characters of the references; code i + 1 is character i.
        sizes: int64 [10], the n-grams of each level.
        codes: uint16 [N], the last character of each n-gram, sorted within its level.
        children: uint16 [N], how many n-grams continue each (n-1)-gram.
        counts: uint16 [N, K].
        baseline: float64 [K], the references' mean of fluency before division.
        references: int64 [K], references of each aspect.
    """

    aspects: NDArray[np.str_]
    alphabet: IntArray
    sizes: IntArray
    codes: NDArray[np.uint16]
    children: NDArray[np.uint16]
    counts: NDArray[np.uint16]
    baseline: FloatArray
    references: IntArray

    @cached_property
    def levels(self) -> list[tuple[IntArray, NDArray[np.uint16]]]:
        """Per level: each n-gram's (n-1)-gram and last character as one sorted number, and the counts."""
        ends, parents = np.cumsum(self.sizes)[:-1], np.cumsum([1, *self.sizes[:-1]])[:-1]
        split = zip(np.split(self.codes, ends), np.split(self.children, parents), strict=True)
        # The last key is found for what is greater than all others, and equals nothing.
        keys = [
            np.append(np.repeat(np.arange(len(children)), children) << 16 | codes, np.iinfo(np.int64).max)
            for codes, children in split
        ]
        return list(zip(keys, np.split(self.counts, ends), strict=True))

    @classmethod
    def build(cls, references: Mapping[str, Sequence[str]]) -> "Tables":
        """The tables of one question's references."""
        texts = [text for aspect in references.values() for text in aspect]
        numbers = np.array([len(aspect) for aspect in references.values()])
        aspect_of = np.repeat(np.arange(len(numbers)), numbers)
        points = _points(texts, max(map(len, texts)) + LONGEST_NGRAM)
        alphabet = np.unique(points[points >= 0])
        flat, width = _codes(points, alphabet).ravel(), points.shape[1]
        gains = np.zeros((len(flat), len(numbers)), dtype=np.int64)
        places, nodes = np.flatnonzero(flat), np.zeros(np.count_nonzero(flat), dtype=np.int64)
        known = 1
        levels: list[tuple[IntArray, IntArray, IntArray]] = []
        for n in range(LONGEST_NGRAM):
            whole = flat[places + n] > 0
            places, nodes = places[whole], nodes[whole]
            # Sorted by n-gram, then by place: equal ones are neighbours.
            occurrences = np.sort((nodes << 16 | flat[places + n]) * len(flat) + places)
            keys, places = np.divmod(occurrences, len(flat))
            new = np.diff(keys, prepend=-1) > 0
            nodes = np.cumsum(new) - 1
            # An n-gram counts once in each text, where it first occurs.
            first = np.flatnonzero(np.diff(occurrences // width, prepend=-1))
            aspects = aspect_of[places[first] // width]
            followers = np.bincount(keys[new] >> 16, minlength=known)
            known = int(np.count_nonzero(new))
            cells = nodes[first] * len(numbers) + aspects
            found = np.bincount(cells, minlength=known * len(numbers))
            gains[places[first] + n + 1, aspects] += found[cells]
            levels.append((keys[new] & 0xFFFF, followers, found.reshape(known, len(numbers))))
        codes, children, counts = (
            np.concatenate(part).astype(np.uint16) for part in zip(*levels, strict=True)
        )
        sizes = np.array([len(level) for level, _, _ in levels])
        best = _best_fluency(gains.reshape(len(texts), width, -1), np.ones(len(numbers)))
        totals = [np.cumsum(best[aspect_of == k, k])[-1] for k in range(len(numbers))]
        baseline = np.array(totals) / numbers
        return cls(np.array([*references]), alphabet, sizes, codes, children, counts, baseline, numbers)

    def save(self, path: Path) -> None:
        """Writes the tables, whole or not at all."""
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **{one.name: getattr(self, one.name) for one in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Tables | None":
        """Tables that `save` wrote; None where there are none, or they are damaged."""
        try:
            with np.load(path) as file:
                return cls(**{one.name: file[one.name] for one in fields(cls)})
        except FileNotFoundError:
            return None
        # Every member has a checksum; a damaged directory shows in many ways.
        except (OSError, ValueError, KeyError, IndexError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            log.warning("damaged tables are built anew: %s (%s)", path, error)
            return None

    def _occurrences(self, codes: IntArray, longest: int) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
        """Per level: where in the flat codes [T * W] a known n-gram begins, which one, and its counts."""
        places = np.flatnonzero(codes)
        nodes = np.zeros(len(places), dtype=np.int64)
        for n, (keys, counts) in enumerate(self.levels[:longest]):
            wanted = nodes << 16 | codes[places + n]
            found = np.searchsorted(keys, wanted)
            right = keys[found] == wanted
            places, nodes = places[right], found[right]
            yield places, nodes, counts[nodes]

    def fluency(self, texts: Sequence[str]) -> FloatArray:
        """[T, K], before division by K."""
        points = _points([text[:LONGEST_ANSWER] for text in texts], LONGEST_ANSWER + LONGEST_NGRAM)
        flat, width = _codes(points, self.alphabet).ravel(), points.shape[1]
        gains = np.zeros((len(flat), len(self.aspects)), dtype=np.int64)
        for n, (places, nodes, counts) in enumerate(self._occurrences(flat, LONGEST_NGRAM), start=1):
            _, first = np.unique(places // width << 32 | nodes, return_index=True)
            gains[places[first] + n] += counts[first]
        return _best_fluency(gains.reshape(len(texts), width, -1), self.baseline)

    def truthfulness(self, texts: Sequence[str]) -> FloatArray:
        """[T, K], before division by K."""
        marked = [f"^{text}$"[: LONGEST_ANSWER + 2] for text in texts]
        points = _points(marked, LONGEST_ANSWER + 2 + LONGEST_NGRAM)
        flat = _codes(points, self.alphabet).ravel()
        cover = np.zeros((len(flat), len(self.aspects)), dtype=np.int64)
        *_, (places, _, counts) = self._occurrences(flat, 3)
        for shift in range(3):
            cover[places + shift] = np.maximum(cover[places + shift], counts)
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
    aspects, number = tables.aspects.tolist(), len(tables.aspects)
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
class Figures:
    """The published figures of a set of answers, or of those to one question, rounded as published.

    Means and population standard deviations (`_std`) over answers; fluency and truthfulness by aspect;
    `average` is the score with one digit more. `score` and `score_std` of a set are those of the trials'
    means over questions. In published files, which are sorted, the i-th answers of all questions are no
    trial, and `score_std` is not the spread of trials.
    """

    score: float
    score_std: float
    length: float
    length_std: float
    fluency: dict[str, float]
    truthfulness: dict[str, float]
    helpfulness: float
    average: float


def question_figures(scores: Sequence[AnswerScore]) -> Figures:
    """The figures of one or more answers to a question."""

    def mean(values: Iterable[float]) -> float:
        return round(math.fsum(values) / len(scores), 5)

    return Figures(
        *_mean_and_std([one.score for one in scores], 4),
        *_mean_and_std([one.length for one in scores], 1),
        {aspect: mean(one.fluency[aspect] for one in scores) for aspect in scores[0].fluency},
        {aspect: mean(one.truthfulness[aspect] for one in scores) for aspect in scores[0].truthfulness},
        mean(one.helpfulness for one in scores),
        mean(one.score for one in scores),
    )


def set_figures(answers: Mapping[str, Sequence[AnswerScore]]) -> Figures:
    """The figures of a set: each question's scores, one or more, in the order of its trials."""
    questions = [question_figures(answers[key]) for key in sorted(answers)]
    trials = zip(*([one.score for one in scores] for scores in answers.values()), strict=False)

    def total(values: Iterable[float]) -> float:
        # The published running sum is rounded after each question.
        return reduce(lambda so_far, value: round(so_far + value / len(questions), 5), values, 0.0)

    def by_aspect(parts: Sequence[dict[str, float]]) -> dict[str, float]:
        aspects = dict.fromkeys(aspect for part in parts for aspect in part)
        return {aspect: total(part[aspect] for part in parts if aspect in part) for aspect in aspects}

    return Figures(
        *_mean_and_std([math.fsum(trial) / len(trial) for trial in trials], 4),
        *_mean_and_std([one.length for scores in answers.values() for one in scores], 1),
        by_aspect([one.fluency for one in questions]),
        by_aspect([one.truthfulness for one in questions]),
        total(one.helpfulness for one in questions),
        total(one.average for one in questions),
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
