"""The split rules, worked by hand with Python's own shuffle (jaster.md, section 2)."""

import random

from evalkit.core.types import Row
from evalkit.sources.splits import Groups, split
from evalkit.tasks.spec import SplitRule


def rows(*names: object) -> list[Row]:
    return [Row(str(name), str(name)) for name in names]


def names(result: object) -> list[str]:
    return [row.input for row in result.rows]  # type: ignore[attr-defined]


def shuffled(count: int) -> list[str]:
    random.seed(42)
    items = [str(index) for index in range(count)]
    random.shuffle(items)
    return items


def test_pool_90_10() -> None:
    made = split(SplitRule.pool_90_10, {"pool": [rows(*range(25))], "test": [rows("t1", "t0")]})
    order = shuffled(25)
    assert names(made["train"]) == order[:22] and names(made["dev"]) == order[22:]
    assert names(made["test"]) == ["t1", "t0"]


def test_a_rule_gives_what_its_pools_allow() -> None:
    assert list(split(SplitRule.pool_90_10, {"test": [rows(1)]})) == ["test"]
    assert list(split(SplitRule.pool_90_10, {"pool": [rows(1)]})) == ["train", "dev"]
    assert list(split(SplitRule.examples_and_halves, {"train": [rows(1)]})) == ["train"]
    assert list(split(SplitRule.upstream, {"dev": [rows(1)], "test": [rows(1)]})) == ["dev", "test"]


def test_all_80_10_10_joins_the_files_before_it_shuffles() -> None:
    made = split(SplitRule.all_80_10_10, {"all": [rows(*range(10)), rows(*range(10, 27))]})
    order = shuffled(27)
    assert [names(made[name]) for name in ("train", "dev", "test")] == [order[:21], order[21:24], order[24:]]


def test_articles_80_10_10_keeps_articles_whole_and_counts_the_empty_ones() -> None:
    articles: Groups = [None if index == 3 else rows(f"{index}a", f"{index}b") for index in range(20)]
    made = split(SplitRule.articles_80_10_10, {"all": articles})
    order = [int(name) for name in shuffled(20)]
    for name, part in (("train", order[:16]), ("dev", order[16:18]), ("test", order[18:])):
        assert names(made[name]) == [f"{index}{half}" for index in part if index != 3 for half in "ab"]
        assert made[name].groups_missing == part.count(3)


def test_examples_and_halves() -> None:
    made = split(SplitRule.examples_and_halves, {"train": [rows("x"), rows("y")], "pool": [rows(*range(7))]})
    order = shuffled(7)
    assert names(made["train"]) == ["x", "y"]
    assert names(made["dev"]) == order[:3] and names(made["test"]) == order[3:]


def test_subject_halves_runs_one_generator_on() -> None:
    subjects = [[f"a{index}" for index in range(41)], [f"b{index}" for index in range(40)]]
    made = split(SplitRule.subject_halves, {"all": [rows(*subject) for subject in subjects]})
    random.seed(42)
    dev, test = [], []
    for subject in subjects:
        random.shuffle(subject)
        dev += subject[: len(subject) // 2]
        test += subject[len(subject) // 2 :]
    random.shuffle(dev)
    random.shuffle(test)
    assert names(made["train"]) == dev[:16] + test[:16]
    assert names(made["dev"]) == dev[16:] and names(made["test"]) == test[16:]


def test_upstream_balanced_takes_subjects_in_turn() -> None:
    made = split(SplitRule.upstream_balanced, {"dev": [rows("a0", "a1", "a2"), rows("b0", "b1")]})
    first, second = [f"a{name}" for name in shuffled(3)], [f"b{name}" for name in shuffled(2)]
    assert names(made["dev"]) == [first[0], second[0], first[1], second[1], first[2]]
