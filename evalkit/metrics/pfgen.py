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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalkit.core.assets import cache_dir
from evalkit.core.durable import atomic_file
from evalkit.core.errors import EvalkitError
from evalkit.core.text import canonical_json, text_sha256
from evalkit.metrics.intervals import FloatArray, IntArray

VERSION = "pfgen-1"
# Increment when what the kept tables mean changes.
TABLES_VERSION = 1
LONGEST_NGRAM = 10
# Characters of an answer that can count.
LONGEST_ANSWER = 200
# From this length on an answer loses 2 % with each character.
FREE_LENGTH = 100
FIGURES = ("score", "fluency", "truthfulness", "helpfulness", "length")
_MARKS = "^$、。・「」『』（）【】［］〈〉《》"
_NEVER = 9999

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PfgenQuestion:
    """One question of the benchmark, `Q01` to `Q50`, with the 1,000 or so reference texts of each aspect.

    `keywords` are the conditions of helpfulness as in the data.
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
    scores best.
    """

    fluency: dict[str, float]
    truthfulness: dict[str, float]
    helpfulness: float
    score: float
    length: int
    missing: tuple[str, ...]

    @property
    def values(self) -> list[float]:
        """In the order of `FIGURES`."""
        fluency, truthfulness = math.fsum(self.fluency.values()), math.fsum(self.truthfulness.values())
        return [self.score, fluency, truthfulness, self.helpfulness, float(self.length)]


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tables:
    """In how many references of each aspect every n-gram of a question occurs, as a trie in arrays.

    The n-grams are sorted by length (1 to 10), then by their first n - 1 characters, then by the last one.

    Attributes:
        alphabet: int64 [A], the sorted characters of the references; code i + 1 is character i.
        codes: uint16 [N], the last character of each n-gram.
        children: uint16, how many n-grams continue the empty text, and each shorter than 10.
        counts: uint16 [N, K], for K aspects.
        baseline: float64 [K], the references' mean of fluency before division.
        references: int64 [K], references of each aspect.
    """

    alphabet: IntArray
    codes: NDArray[np.uint16]
    children: NDArray[np.uint16]
    counts: NDArray[np.uint16]
    baseline: FloatArray
    references: IntArray

    @classmethod
    def build(cls, references: Mapping[str, Sequence[str]]) -> "Tables":
        """The tables of one question's references."""
        texts = [text for aspect in references.values() for text in aspect]
        numbers = np.array([len(aspect) for aspect in references.values()])
        aspect_of = np.repeat(np.arange(len(numbers)), numbers)
        points = _points(texts, max(map(len, texts)))
        alphabet = np.unique(points[points >= 0])
        flat, width = _codes(points, alphabet), points.shape[1]
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
        best = _best_fluency(gains.reshape(len(texts), width, -1))
        totals = [np.cumsum(best[aspect_of == k, k])[-1] for k in range(len(numbers))]
        return cls(alphabet, codes, children, counts, np.array(totals) / numbers, numbers)

    @cached_property
    def keys(self) -> IntArray:
        """[N + 1]: the n-gram before the last character (0: none) and that character as one sorted number."""
        starts = np.repeat(np.arange(len(self.children)), self.children)
        # The last key is found for what is greater than all others, and equals nothing.
        return np.append(starts << 16 | self.codes, np.iinfo(np.int64).max)

    def _known(self, codes: IntArray, longest: int) -> Iterator[tuple[IntArray, IntArray]]:
        """For n = 1, 2, ...: where in the flat codes [T * W] a known n-gram begins, and its place in N."""
        places = np.flatnonzero(codes)
        starts = np.zeros(len(places), dtype=np.int64)
        for n in range(longest):
            wanted = starts << 16 | codes[places + n]
            found = np.searchsorted(self.keys, wanted)
            known = self.keys[found] == wanted
            places, found = places[known], found[known]
            starts = found + 1
            yield places, found

    def fluency(self, texts: Sequence[str]) -> FloatArray:
        """[T, K], before division by K."""
        points = _points(texts, LONGEST_ANSWER)
        flat, width = _codes(points, self.alphabet), points.shape[1]
        gains = np.zeros((len(flat), len(self.references)), dtype=np.int64)
        for n, (places, found) in enumerate(self._known(flat, LONGEST_NGRAM), start=1):
            _, first = np.unique(places // width << 32 | found, return_index=True)
            gains[places[first] + n] += self.counts[found[first]]
        return _best_fluency(gains.reshape(len(texts), width, -1)) / self.baseline

    def truthfulness(self, texts: Sequence[str]) -> FloatArray:
        """[T, K], before division by K."""
        points = _points([f"^{text}$" for text in texts], LONGEST_ANSWER + 2)
        flat = _codes(points, self.alphabet)
        cover = np.zeros((len(flat), len(self.references)), dtype=np.int64)
        *_, (places, found) = self._known(flat, 3)
        for shift in range(3):
            cover[places + shift] = np.maximum(cover[places + shift], self.counts[found])
        cover = cover.reshape(*points.shape, -1)
        kept = (points >= 0) & ~np.isin(points, [ord(mark) for mark in _MARKS])
        shares = np.minimum(1.0, cover / self.references * 200.0) * kept[:, :, None]
        number = np.cumsum(kept, axis=1)
        means = np.cumsum(shares, axis=1) / np.maximum(number, 1)[:, :, None]
        means *= _discount(points.shape[1])[:, None]
        last = number == number[:, -1:]
        counted = kept & (last | (np.arange(points.shape[1]) >= FREE_LENGTH))
        values: FloatArray = np.where(counted[:, :, None], means, 0.0).max(axis=1)
        return values


def _points(texts: Sequence[str], longest: int) -> IntArray:
    """The first `longest` code points of each text, [T, longest + 10]; -1 after their ends."""
    points = np.full((len(texts), longest + LONGEST_NGRAM), -1, dtype=np.int64)
    for row, text in zip(points, (text[:longest] for text in texts), strict=True):
        row[: len(text)] = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return points


def _codes(points: IntArray, alphabet: IntArray) -> IntArray:
    """The place of each code point in the alphabet, from 1; 0 where it is not there. One row."""
    places = np.minimum(np.searchsorted(alphabet, points), len(alphabet) - 1)
    return np.where(alphabet[places] == points, places + 1, 0).ravel()


def _discount(length: int) -> FloatArray:
    """[length]: what a text that ends at each place keeps."""
    return 1 - np.maximum(np.arange(length) - FREE_LENGTH, 0) / 50


def _best_fluency(gains: IntArray) -> FloatArray:
    """[T, K] from what each end position adds: [T, W, K]."""
    totals = np.cumsum(gains[:, : LONGEST_ANSWER + 1], axis=1)
    best: FloatArray = (totals * _discount(totals.shape[1])[:, None]).max(axis=1)
    return best


def table_path(question: PfgenQuestion) -> Path:
    """Where the cache folder keeps the tables of a question's references."""
    references = [[aspect, list(texts)] for aspect, texts in question.references.items()]
    name = f"{question.id}-{text_sha256(canonical_json(references))[:16]}-{TABLES_VERSION}.npz"
    return cache_dir() / "pfgen" / name


def tables_of(question: PfgenQuestion) -> Tables:
    """The tables of a question: the kept ones of the same references, else built and kept."""
    path = table_path(question)
    try:
        with np.load(path) as file:
            return Tables(**{field.name: file[field.name] for field in fields(Tables)})
    except FileNotFoundError:
        pass
    # Every member has a checksum; a damaged directory shows in many ways.
    except (OSError, ValueError, KeyError, IndexError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        log.warning("damaged tables are built anew: %s (%s)", path, error)
    tables = Tables.build(question.references)
    try:
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **asdict(tables))
    # They cost time later, not the scores now.
    except EvalkitError as error:
        log.warning("the tables of pfgen cannot be kept: %s", error)
    return tables


# --- one answer ----------------------------------------------------------------------------------


def score_answers(question: PfgenQuestion, tables: Tables, answers: Sequence[str]) -> list[AnswerScore]:
    """The scores of one or more answers to a question, in order."""
    aspects = list(question.references)

    def by_aspect(values: Sequence[float]) -> dict[str, float]:
        return {aspect: round(value / len(aspects), 6) for aspect, value in zip(aspects, values, strict=True)}

    fluency, truthfulness = tables.fluency(answers).tolist(), tables.truthfulness(answers).tolist()
    scores = []
    for text, *parts in zip(answers, fluency, truthfulness, strict=True):
        fluent, true = map(by_aspect, parts)
        helpful, missing = helpfulness(question.keywords, text)
        helpful = round(helpful, 5)
        score = round((math.fsum(fluent.values()) + math.fsum(true.values()) + helpful) / 3, 5)
        scores.append(AnswerScore(fluent, true, helpful, score, len(text), missing))
    return scores


def helpfulness(keywords: Sequence[dict[str, Any]], text: str) -> tuple[float, tuple[str, ...]]:
    """The value and the missing keywords, at the best place to stop reading."""
    text = text[:LONGEST_ANSWER]
    weights = _discount(len(text) + 1)
    weights = weights[weights >= 0]
    ends = [_end(keyword, text) for keyword in keywords]
    for keyword, (end, _) in zip(keywords, ends, strict=True):
        weights[:end] *= 1 - keyword.get("importance", 1.0)
    best = len(weights) - 1 - int(np.argmax(weights[::-1]))
    return float(weights[best]), tuple(name for end, name in ends if best < end)


def _end(keyword: dict[str, Any], text: str) -> tuple[int, str]:
    """Where a condition is met, and the keyword that decides it."""
    if "t" in keyword:
        found = re.search(keyword["t"], text)
        return (found.end() if found else _NEVER), keyword["t"]
    parts = [_end(part, text) for part in keyword.get("and") or keyword["or"]]
    choose: Callable[..., tuple[int, str]] = max if "and" in keyword else min
    return choose(parts, key=lambda part: part[0])


# --- a set of answers ----------------------------------------------------------------------------


def set_figures(answers: Mapping[str, Sequence[AnswerScore]]) -> dict[str, Any]:
    """The published figures of a set of answers, rounded as published.

    `answers` has the scores of one or more answers to each question, in the order of trials. Means and
    population standard deviations (`_std`); fluency and truthfulness by aspect; `average` is the score with
    one digit more. `score` and `score_std` are those of the trials' means over questions. In published files,
    which are sorted, the i-th answers of all questions are no trial, and `score_std` is not their spread.
    """
    questions = [answers[key] for key in sorted(answers)]
    trials = zip(*([one.score for one in scores] for scores in questions), strict=False)
    aspects = dict.fromkeys(aspect for scores in questions for aspect in scores[0].fluency)

    def total(name: str, aspect: str | None = None) -> float:
        so_far = 0.0
        for scores in questions:
            values = [getattr(one, name) for one in scores]
            if aspect is not None:
                values = [value.get(aspect, 0.0) for value in values]
            # The published sum is rounded after each question.
            so_far = round(so_far + round(fmean(values), 5) / len(questions), 5)
        return so_far

    means = list(map(fmean, trials))
    lengths = [one.length for scores in questions for one in scores]
    return {
        "score": round(fmean(means), 4),
        "score_std": round(pstdev(means), 4),
        "length": round(fmean(lengths), 1),
        "length_std": round(pstdev(lengths), 1),
        "helpfulness": total("helpfulness"),
        "average": total("score"),
        "fluency": {aspect: total("fluency", aspect) for aspect in aspects},
        "truthfulness": {aspect: total("truthfulness", aspect) for aspect in aspects},
    }
