"""pfgen-bench: hand-computed scores, a plain second way, the published sets to the last digit."""

import json
import lzma
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.metrics import pfgen
from evalkit.metrics.pfgen import (
    AnswerScore,
    PfgenQuestion,
    Tables,
    helpfulness,
    set_figures,
    tables_of,
)

# Questions with one, two and three aspects, a keyword of half the importance and a literal `^`; among their
# published answers are those whose last digit depends on the order of a sum.
SOME = ("Q03", "Q06", "Q16", "Q30", "Q35", "Q47")


def question(references: dict[str, list[str]], keywords: tuple[dict[str, Any], ...] = ()) -> PfgenQuestion:
    return PfgenQuestion("Q01", "?", "math", keywords, references)


def plain_counts(references: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for text in references:
        for gram in {text[i:j] for i in range(len(text)) for j in range(i + 1, min(i + 10, len(text)) + 1)}:
            counts[gram] = counts.get(gram, 0) + 1
    return counts


def plain_fluency(text: str, counts: dict[str, int], baseline: float) -> float:
    """The rule of the protocol in its own words."""
    seen: set[str] = set()
    total, best = 0, 0.0
    for end in range(1, min(len(text), 200) + 1):
        for start in range(max(0, end - 10), end):
            if (gram := text[start:end]) not in seen:
                seen.add(gram)
                total += counts.get(gram, 0)
        best = max(best, total * (1 - max(end - 100, 0) / 50) / baseline)
    return best


def plain_truthfulness(text: str, counts: dict[str, int], references: int) -> float:
    marked = f"^{text}$"[:202]
    best, total, number, last = 0.0, 0.0, 0, 0.0
    for place, character in enumerate(marked):
        if character in "^$、。・「」『』（）【】［］〈〉《》":
            continue
        starts = range(max(0, place - 2), min(place, len(marked) - 3) + 1)
        cover = max((counts.get(marked[start : start + 3], 0) for start in starts), default=0)
        total += min(1.0, cover / references * 200.0)
        number += 1
        last = total / number * (1 - max(place - 100, 0) / 50)
        best = max(best, last) if place >= 100 else best
    return max(best, last)


# --- by hand -------------------------------------------------------------------------------------


def test_fluency_by_hand() -> None:
    # N-grams and in how many references they are: a 2, b 2, c 1, ab 2, bc 1, abc 1.
    tables = Tables.build({"P": ["ab", "abc"]})
    # ab: 2 + 2 + 2; abc: 6 + 1 + 1 + 1. Each n-gram counts where it first occurs.
    assert tables.baseline.tolist() == [(6 + 9) / 2]
    values = tables.fluency(["abc", "abab", "b", "xyz", "", "ab" + "x" * 300])
    assert values[:, 0] == pytest.approx([9 / 7.5, 6 / 7.5, 2 / 7.5, 0, 0, 6 / 7.5])


def test_truthfulness_by_hand() -> None:
    tables = Tables.build({"P": ["あいうえお"] * 2 + ["かきく"] * 998})
    # あい is in no known trigram; punctuation is not counted; two in 1,000 references are 0.4.
    values = tables.truthfulness(["あいう", "あい", "かきく。", "あいうか", "、。", "あいうxかきく"])
    assert values[:, 0] == pytest.approx([0.4, 0.0, 1.0, 0.3, 0.0, (3 * 0.4 + 3) / 7])


def test_a_mark_within_a_reference_is_text() -> None:
    """`^` before the answer is a character: a reference that holds one can know its trigram."""
    counts = ["x^か", "^かき"] + ["あいう"] * 998
    tables = Tables.build({"P": counts})
    assert tables.truthfulness(["かき"])[0, 0] == pytest.approx(0.2)


def test_helpfulness_by_hand() -> None:
    keywords = (
        {"t": "上"},
        {"or": [{"t": "右"}, {"and": [{"t": "左"}, {"t": "下"}]}]},
        {"importance": 0.5, "t": "中"},
    )
    assert helpfulness(keywords, "上右中") == (1.0, ())
    assert helpfulness(keywords, "上左下") == (0.5, ("中",))
    assert helpfulness(keywords, "上左") == (0.0, ("右", "中"))
    assert helpfulness(keywords, "") == (0.0, ("上", "右", "中"))
    # A keyword beyond 100 characters costs 2 % for each; from 150 on it is worth nothing.
    late = "x" * 109 + "上右"
    assert helpfulness(keywords[:2], late) == (pytest.approx(1 - 11 / 50), ())
    assert helpfulness(keywords[:1], "x" * 160 + "上")[0] == 0.0
    # It is not read on for half a keyword that costs more than it gives.
    assert helpfulness(keywords, "上右" + "x" * 140 + "中") == (0.5, ("中",))


def test_an_answers_score_is_rounded_in_the_published_steps() -> None:
    one = question({"P": ["ab"] * 3, "T": ["cd"] * 3}, ({"t": "a"},))
    tables = Tables.build(one.references)
    full, none = pfgen.score_answers(one, tables, ["ab", ""])
    assert full.fluency == {"P": 0.5, "T": 0.0} and full.truthfulness == {"P": 0.0, "T": 0.0}
    assert (full.helpfulness, full.score, full.length) == (1.0, 0.5, 2)
    assert (none.score, none.length, none.missing) == (0.0, 0, ("a",))


# --- against a plain second way ------------------------------------------------------------------


def test_random_texts_score_as_by_the_plain_rules() -> None:
    draw = random.Random(4)

    def texts(number: int, longest: int) -> list[str]:
        # Few letters, so that n-grams repeat; some that no reference has; some beyond 16 bits.
        return ["".join(draw.choices("あい。a𠮷^", k=draw.randint(1, longest))) for _ in range(number)]

    references = {"P": texts(30, 130), "T": texts(20, 260)}
    answers = [*texts(40, 240), "", "z", "𠮷" * 150, "あ" * 99 + "。" * 60]
    tables = Tables.build(references)
    for column, own in enumerate(references.values()):
        counts = plain_counts(own)
        baseline = sum(plain_fluency(text, counts, 1.0) for text in own) / len(own)
        assert tables.baseline[column] == baseline
        assert tables.fluency(answers)[:, column].tolist() == [
            plain_fluency(text, counts, baseline) for text in answers
        ]
        assert tables.truthfulness(answers)[:, column].tolist() == [
            plain_truthfulness(text, counts, len(own)) for text in answers
        ]


# --- kept tables ---------------------------------------------------------------------------------


def test_tables_are_kept_by_content_and_built_anew_where_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    one, other = question({"P": ["abc", "abd"]}), question({"P": ["abc", "abe"]})
    first = tables_of(one)
    (path,) = (tmp_path / "pfgen").iterdir()
    whole = path.read_bytes()
    tables_of(other)
    assert len(list((tmp_path / "pfgen").iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "build", lambda references: pytest.fail("built although kept"))
        kept = tables_of(one)
    assert kept.fluency(["abd"]).tolist() == first.fluency(["abd"]).tolist()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (b"", b"PK", whole[: len(whole) // 2], whole[:-30], bytes(flipped)):
        path.write_bytes(damaged)
        again = tables_of(one)
        assert again.fluency(["abd"]).tolist() == first.fluency(["abd"]).tolist()
        with np.load(path) as file:
            assert file["baseline"].tolist() == first.baseline.tolist()


def test_tables_that_cannot_be_kept_still_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("EVALKIT_CACHE", str(blocked))
    assert tables_of(question({"P": ["abc"]})).fluency(["abc"]).tolist() == [[1.0]]


# --- answers and sets ----------------------------------------------------------------------------


def scored(score: float, length: int = 3) -> AnswerScore:
    return AnswerScore({"P": score}, {"P": 0.0}, 0.0, score, length, ())


def test_the_figures_of_a_set_by_hand() -> None:
    figures = set_figures({"Q02": [scored(0.4), scored(0.8)], "Q01": [scored(0.2, 5), scored(0.2)]})
    # Trials: (0.2 + 0.4) / 2 and (0.2 + 0.8) / 2.
    assert (figures["score"], figures["score_std"]) == (0.4, 0.1)
    assert (figures["length"], figures["length_std"]) == (3.5, 0.9)
    assert figures["fluency"] == {"P": 0.4} and figures["truthfulness"] == {"P": 0.0}
    assert figures["average"] == 0.4 and figures["helpfulness"] == 0.0


def test_a_questions_mean_is_exact_where_a_running_sum_is_not() -> None:
    """Ten times 0.1 is 1: a mean that ends in 5 must not depend on errors of summation."""
    assert set_figures({"Q01": [scored(0.1)] * 10})["score"] == 0.1
    values = [0.00001] * 50 + [0.0] * 50
    assert set_figures({"Q01": list(map(scored, values))})["average"] == round(math.fsum(values) / 100, 5)


# --- published sets ------------------------------------------------------------------------------


def published(mirror: Path) -> list[tuple[Path, dict[str, Any]]]:
    return [
        (path.parent, json.loads(path.read_text()))
        for path in sorted((mirror / "pfgen" / "published").glob("*/*/result.json"))
    ]


def answers_of(folder: Path) -> dict[str, list[str]]:
    answers: dict[str, list[str]] = {}
    for line in lzma.decompress((folder / "trials.jsonl.xz").read_bytes()).decode().splitlines():
        row = json.loads(line)
        answers.setdefault(row["question"], []).append(row["answer"])
    return answers


def load(mirror: Path, key: str) -> PfgenQuestion:
    row = json.loads((mirror / "pfgen" / "data" / f"{key}.json").read_text())
    return PfgenQuestion(key, row["question"], row["category"], tuple(row["keywords"]), row["answers"])


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether all figures of a set, or of a question, are the published ones."""
    theirs = {**theirs, **theirs["scores"]}
    return all(value == theirs[key] for key, value in ours.items())


def check_question(
    one: PfgenQuestion, tables: Tables, answers: list[str], theirs: dict[str, Any]
) -> list[AnswerScore]:
    scores = pfgen.score_answers(one, tables, answers)
    assert same(set_figures({one.id: scores}), theirs)
    for sample in theirs["samples"]:
        ours, values = scores[answers.index(sample["answer"])], sample["scores"]
        assert (ours.fluency, ours.truthfulness) == (values["fluency"], values["truthfulness"])
        assert (ours.helpfulness, ours.score) == (values["helpfulness"], values["average"])
        explained = [name for name, _ in values["helpfulness_results"]]
        assert list(ours.missing) == [name for name in explained if not name.endswith("字超過")]
    return scores


@pytest.mark.sources
def test_published_figures_of_some_questions_are_equal(mirror: Path) -> None:
    sets = [(answers_of(folder), result) for folder, result in published(mirror)]
    assert len(sets) == 9
    for key in SOME:
        one = load(mirror, key)
        tables = Tables.build(one.references)
        for answers, result in sets:
            check_question(one, tables, answers[one.text], result["questions"][key])


@pytest.mark.sources
@pytest.mark.campaign
def test_all_published_sets_are_equal(mirror: Path) -> None:
    sets = [(answers_of(folder), result, {}) for folder, result in published(mirror)]
    for number in range(1, 51):
        one = load(mirror, f"Q{number:02}")
        tables = Tables.build(one.references)
        for answers, result, scores in sets:
            scores[one.id] = check_question(one, tables, answers[one.text], result["questions"][one.id])
    for _, result, scores in sets:
        assert min(map(len, scores.values())) == result["num_trials"] and same(set_figures(scores), result)


def test_an_unfinished_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    assert tables_of(question({"P": ["abc"]})).baseline.tolist() == [6.0]
    assert list((tmp_path / "pfgen").iterdir()) == []
