"""Figures worked out by hand from section 8 of the MT-Bench protocol notes."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from evalkit.core import assets
from evalkit.core.config import Reduce
from evalkit.mtbench.aggregate import (
    RULES,
    Scored,
    all_tables,
    deviation_over_answers,
    intervals,
    scopes,
    table,
)
from evalkit.mtbench.fastchat import CATEGORIES


def rows(*values: tuple[int, str, int, float]) -> list[Scored]:
    return [Scored(question, category, turn, score) for question, category, turn, score in values]


# math: 2, -1 | 4, 6 (turn 2 of question 1 failed); writing: question 9 turn 1 was judged twice.
SAMPLE = rows(
    (1, "math", 1, 2),
    (1, "math", 2, -1),
    (2, "math", 1, 4),
    (2, "math", 2, 6),
    (9, "writing", 1, 10),
    (9, "writing", 1, 7),
    (9, "writing", 2, 11),
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # -1 and duplicates counted: (2-1+4+6)/4 and (10+7+11)/3; the mean of the two.
        (
            "llm_leaderboard",
            {
                "math": 2.75,
                "writing": 28 / 3,
                "average": (2.75 + 28 / 3) / 2,
                "turn_1": (3 + 8.5) / 2,
                "turn_2": (2.5 + 11) / 2,
            },
        ),
        # -1 removed, then the mean over rows: (2+4+6+10+7+11)/6.
        (
            "show_result",
            {"math": 4, "writing": 28 / 3, "average": 40 / 6, "turn_1": 23 / 4, "turn_2": 17 / 2},
        ),
        # -1 removed, duplicates become one: writing (8.5+11)/2.
        (
            "g_leaderboard",
            {
                "math": 4,
                "writing": 9.75,
                "average": 6.875,
                "turn_1": (3 + 8.5) / 2,
                "turn_2": (6 + 11) / 2,
            },
        ),
        ("nejumi_4", {"math": 0.4, "writing": 0.975, "average": 0.6875}),
        # Only whole numbers from 1 to 10: the 11 goes too.
        ("llm_jp_judge", {"math": 4, "writing": 8.5, "average": 29 / 5, "turn_1": 23 / 4, "turn_2": 6}),
        ("swallow", {"average": 40 / 6}),
        ("swallow_instruct", {"average": 4 / 6}),
        ("flexeval", {"math": 6, "writing": None, "average": 6, "turn_1": None, "turn_2": 6}),
    ],
)
def test_rules_by_hand(rule: str, expected: dict[str, float | None]) -> None:
    figures = table(SAMPLE, RULES[rule])
    for scope, value in expected.items():
        assert figures[scope] == (None if value is None else pytest.approx(value, abs=1e-12)), scope


def test_same_data_different_rule() -> None:
    """An English run of section 8: 170 rows, 4 of them -1, 10 duplicate keys."""
    generator = np.random.default_rng(3)
    complete = [
        Scored(question, category, turn, float(generator.integers(1, 11)))
        for index, category in enumerate(CATEGORIES)
        for question, turn in product(range(10 * index, 10 * index + 10), (1, 2))
    ]
    rows = complete + complete[:10]
    for index in (3, 60, 61, 159):
        rows[index] = Scored(rows[index].question_id, rows[index].category, rows[index].turn, -1.0)
    assert len(rows) == 170
    figures = all_tables(rows)

    # The same, by other means: plain dictionaries and NumPy.
    groups, means = defaultdict(list), defaultdict(list)
    for row in rows:
        groups[row.category].append(row.score)
        if row.score != -1:
            means[row.category, row.question_id, row.turn].append(row.score)
    by_category = defaultdict(list)
    for (category, _, _), scores in means.items():
        by_category[category].append(np.mean(scores))
    assert figures["llm_leaderboard"]["average"] == pytest.approx(
        np.mean([np.mean(g) for g in groups.values()])
    )
    assert figures["show_result"]["average"] == pytest.approx(
        np.mean([r.score for r in rows if r.score != -1])
    )
    assert figures["g_leaderboard"]["average"] == pytest.approx(
        np.mean([np.mean(g) for g in by_category.values()])
    )
    assert (
        len(
            {
                round(figures[name]["average"] or 0, 6)
                for name in ("llm_leaderboard", "show_result", "g_leaderboard")
            }
        )
        == 3
    )


def test_card_arithmetic() -> None:
    """Every cell of the card is a sum of 20 whole numbers; the average is the mean of its cells."""
    with (assets.REFERENCE / "llm_jp_3_card.csv").open(encoding="utf-8") as stream:
        cells = [row for row in csv.DictReader(stream) if row["table"].startswith("Japanese MT-Bench")]
    models = {row["model"] for row in cells}
    assert len(cells) == 27
    for model in models:
        published = {row["column"]: float(row["value"]) for row in cells if row["model"] == model}
        made = []
        for index, category in enumerate(CATEGORIES):
            total = round(published[category] * 20)
            low, high = divmod(total, 20)
            for place in range(20):
                made.append(Scored(10 * index + place % 10, category, 1 + place // 10, low + (place < high)))
        figures = table(made, RULES["llm_leaderboard"])
        for category in CATEGORIES:
            assert figures[category] == pytest.approx(published[category], abs=1e-9)
        # The card rounds to two decimals; 4.93125 and 6.46875 lie between two of them.
        assert figures["average"] == pytest.approx(published["average"], abs=0.005)


def test_repeats_are_reduced_by_mean_or_median() -> None:
    repeated = [Scored(1, "math", 1, score, repeat=index) for index, score in enumerate((2.0, 3.0, 10.0))]
    assert table(repeated, RULES["show_result"], Reduce.mean)["math"] == 5
    assert table(repeated, RULES["show_result"], Reduce.median)["math"] == 3
    # Rows of a log are not repeats of one another.
    logged = [Scored(1, "math", 1, 2.0), Scored(1, "math", 1, 3.0), Scored(1, "math", 1, 10.0)]
    assert table(logged, RULES["show_result"], Reduce.median)["math"] == 5


def test_a_failed_repeat_counts_as_the_rule_says() -> None:
    repeated = [Scored(1, "math", 1, score, repeat=index) for index, score in enumerate((8.0, 8.0, -1.0))]
    assert table(repeated, RULES["llm_leaderboard"])["math"] == 5
    assert table(repeated, RULES["show_result"])["math"] == 8


def test_answers_are_runs_of_their_own() -> None:
    """swallow: the mean of each run without its -1, then mean and sample deviation over the runs."""
    made = [
        Scored(1, "math", 1, 4.0, answer=0),
        Scored(2, "math", 1, -1.0, answer=0),
        Scored(1, "math", 1, 6.0, answer=1),
        Scored(2, "math", 1, 10.0, answer=1),
    ]
    rule = RULES["swallow"]
    assert table(made, rule)["average"] == (4 + 8) / 2
    assert deviation_over_answers(made, rule) == pytest.approx(np.std([4, 8], ddof=1))
    assert table(made, RULES["swallow_instruct"])["average"] == pytest.approx(20 / 3 / 10)
    assert deviation_over_answers(made[:2], rule) is None


def test_scopes_in_the_order_of_the_card() -> None:
    made = rows((1, "writing", 1, 1), (2, "coding", 1, 1), (3, "other", 1, 1))
    assert scopes(made) == ["average", "coding", "writing", "other", "turn_1", "turn_2"]


def test_nothing_left_is_none() -> None:
    failed = rows((1, "math", 1, -1))
    assert table(failed, RULES["show_result"]) == dict.fromkeys(("average", "math", "turn_1", "turn_2"))
    assert intervals(failed, RULES["show_result"], 100)["average"] is None


def test_intervals_resample_questions() -> None:
    """Two turns of a question move together: the spread is that of question means."""
    generator = np.random.default_rng(0)
    means = generator.normal(5, 2, size=40)
    made = [Scored(index, "math", turn, float(mean)) for index, mean in enumerate(means) for turn in (1, 2)]
    low, high = intervals(made, RULES["show_result"], 10_000)["average"] or (0.0, 0.0)
    half_width = 1.96 * means.std(ddof=0) / np.sqrt(len(means))
    assert low == pytest.approx(means.mean() - half_width, abs=0.08)
    assert high == pytest.approx(means.mean() + half_width, abs=0.08)


def test_equal_scores_and_fewer_than_five_questions_have_no_interval() -> None:
    equal = [
        Scored(10 * i + j, name, turn, 7.0)
        for i, name in enumerate(CATEGORIES)
        for j in range(10)
        for turn in (1, 2)
    ]
    four = [Scored(j, "math", turn, float(j + turn)) for j in range(4) for turn in (1, 2)]
    for name, rule in RULES.items():
        for rows in (equal, four):
            assert set(intervals(rows, rule, 50).values()) == {None}, name


@pytest.mark.parametrize("rule", RULES)
def test_a_category_of_equal_scores_does_not_make_the_average_surer(rule: str) -> None:
    def made(math: Sequence[float]) -> dict[str, tuple[float, float] | None]:
        scores = (1.0, 2.0, 3.0, 5.0, 8.0, 9.0, 9.0, 10.0, 4.0, 6.0)
        rows = [
            Scored(10 * i + j, name, turn, math[j] if name == "math" else score)
            for i, name in enumerate(CATEGORIES)
            for j, score in enumerate(scores)
            for turn in (1, 2)
        ]
        return {**intervals(rows, RULES[rule], 1000), "value": (table(rows, RULES[rule])["average"] or 0, 0)}

    flat, some = made([1.0] * 10), made([1.0] * 9 + [2.0])
    assert flat["math"] is None and flat["writing"] is not None
    low, high = flat["average"] or (0, 0)
    value = (flat["value"] or (0, 0))[0]
    other_low, other_high = some["average"] or (0, 0)
    assert low < value < high and high - low > other_high - other_low
    assert high - value > value - low, "ratings of 1 can only go up"


def test_categories_are_resampled_independently() -> None:
    """Eight like categories average out: the interval shrinks by the root of eight."""
    scores = (1.0, 2.0, 3.0, 5.0, 8.0, 9.0, 9.0, 10.0, 4.0, 6.0)
    made = [
        Scored(10 * i + j, name, 1, score)
        for i, name in enumerate(CATEGORIES)
        for j, score in enumerate(scores)
    ]
    figures = intervals(made, RULES["llm_leaderboard"], 4000)
    one, all_ = figures["math"], figures["average"]
    assert one is not None and all_ is not None
    assert (one[1] - one[0]) / (all_[1] - all_[0]) == pytest.approx(np.sqrt(8), rel=0.1)
