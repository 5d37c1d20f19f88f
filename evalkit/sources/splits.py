"""How converted samples become train, dev and test: llm-jp-eval v1.3.1's rules.

docs/protocol/jaster.md, section 2, states them.

A converter gives pools: for each part of its source a list of groups (files, subjects, articles)
of rows; rules that need no groups join them. Every rule returns the splits its pools allow: a test
file can be written although the train file is missing.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from evalkit.core.types import Row
from evalkit.tasks.spec import SplitRule

# None: a group that is missing in this copy of the source.
Groups = Sequence[Sequence[Row] | None]
Pools = Mapping[str, Groups]
Item = TypeVar("Item")

SEED = 42
JMMLU_EXAMPLES_PER_HALF = 16


class SplitRows(NamedTuple):
    """The rows of one split, and the number of its groups that are missing in this copy of the source."""

    rows: list[Row]
    groups_missing: int = 0


Splits = dict[str, SplitRows]


def split(rule: SplitRule, pools: Pools) -> Splits:
    """The splits that `rule` makes from `pools`; a split without its pool is absent."""
    return _RULES[rule](pools)


def shuffled(items: Iterable[Item], generator: random.Random | None = None) -> list[Item]:
    """A shuffled copy; without a generator, by one seeded with 42."""
    result = list(items)
    (generator or random.Random(SEED)).shuffle(result)
    return result


def cuts_80_10_10(count: int) -> tuple[int, int]:
    """The index at which train ends, and the one at which dev ends, for `count` items."""
    return int(count * 0.8), int(count * 0.9)


def _joined(groups: Groups) -> SplitRows:
    rows = [row for group in groups if group is not None for row in group]
    return SplitRows(rows, sum(group is None for group in groups))


def _upstream(pools: Pools) -> Splits:
    return {name: _joined(pools[name]) for name in ("train", "dev", "test") if name in pools}


def _all_dev(pools: Pools) -> Splits:
    return {"dev": _joined(pools["all"])}


def _pool_90_10(pools: Pools) -> Splits:
    splits: Splits = {}
    if "pool" in pools:
        rows = shuffled(_joined(pools["pool"]).rows)
        cut = int(len(rows) * 0.9)
        splits = {"train": SplitRows(rows[:cut]), "dev": SplitRows(rows[cut:])}
    if "test" in pools:
        splits["test"] = _joined(pools["test"])
    return splits


def _all_80_10_10(pools: Pools) -> Splits:
    return _articles_80_10_10({"all": [[row] for row in _joined(pools["all"]).rows]})


def _articles_80_10_10(pools: Pools) -> Splits:
    articles = shuffled(pools["all"])
    first, second = cuts_80_10_10(len(articles))
    parts = {"train": articles[:first], "dev": articles[first:second], "test": articles[second:]}
    return {name: _joined(part) for name, part in parts.items()}


def _examples_and_halves(pools: Pools) -> Splits:
    splits: Splits = {}
    if "train" in pools:
        splits["train"] = _joined(pools["train"])
    if "pool" in pools:
        rows = shuffled(_joined(pools["pool"]).rows)
        splits["dev"] = SplitRows(rows[: len(rows) // 2])
        splits["test"] = SplitRows(rows[len(rows) // 2 :])
    return splits


def _subject_halves(pools: Pools) -> Splits:
    # One generator for all subjects and both pools: the order of the shuffles is part of the rule.
    generator = random.Random(SEED)
    dev: list[Row] = []
    test: list[Row] = []
    for subject in pools["all"]:
        rows = shuffled(subject or (), generator)
        dev += rows[: len(rows) // 2]
        test += rows[len(rows) // 2 :]
    dev, test = shuffled(dev, generator), shuffled(test, generator)
    taken = JMMLU_EXAMPLES_PER_HALF
    return {
        "train": SplitRows(dev[:taken] + test[:taken]),
        "dev": SplitRows(dev[taken:]),
        "test": SplitRows(test[taken:]),
    }


def _upstream_balanced(pools: Pools) -> Splits:
    splits: Splits = {}
    for name in ("train", "dev", "test"):
        if name in pools:
            subjects = [shuffled(group or ()) for group in pools[name]]
            smallest = min((len(rows) for rows in subjects), default=0)
            in_turn = [rows[index] for index in range(smallest) for rows in subjects]
            rest = [row for rows in subjects for row in rows[smallest:]]
            splits[name] = SplitRows(in_turn + rest)
    return splits


_RULES: dict[SplitRule, Callable[[Pools], Splits]] = {
    SplitRule.upstream: _upstream,
    SplitRule.all_dev: _all_dev,
    SplitRule.pool_90_10: _pool_90_10,
    SplitRule.all_80_10_10: _all_80_10_10,
    SplitRule.articles_80_10_10: _articles_80_10_10,
    SplitRule.examples_and_halves: _examples_and_halves,
    SplitRule.subject_halves: _subject_halves,
    SplitRule.upstream_balanced: _upstream_balanced,
}
