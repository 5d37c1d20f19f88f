"""Grouping by shared prefix: every prompt once, true prefixes, levels, and the cost of the split."""

from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from evalkit.engines.local.prefixes import GROUP_COST, PrefixGroup, each, shared_prefixes
from evalkit.sources.pfgen import read_pool
from evalkit.tasks import pfgen
from evalkit.tasks.load import Task

prompts_of_few_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=30)


def computed(prompts: list[list[int]], groups: list[PrefixGroup], above: int = 0) -> int:
    """Tokens computed: of each group's prefix those that the group around it has not."""
    return sum(
        group.length
        - above
        + sum(len(prompts[member]) - group.length for member in group.members)
        + computed(prompts, group.groups, group.length)
        for group in groups
    )


def tree(prompts: list[list[int]]) -> int:
    """Tokens of the tree of prefixes."""
    ordered = [[], *sorted(prompts)]
    return sum(
        len(new) - next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(old))
        for old, new in pairwise(ordered)
    )


@settings(max_examples=60)
@given(prompts_of_few_tokens, st.booleans(), st.integers(0, 3))
def test_groups_cover_every_prompt_once_and_share_their_prefix(
    prompts: list[list[int]], levels: bool, cost: int
) -> None:
    groups = shared_prefixes(prompts, levels=levels, cost=cost)
    assert sorted(m for group in each(groups) for m in group.members) == list(range(len(prompts)))
    for group in each(groups):
        members = [member for inside in each([group]) for member in inside.members]
        for one, other in combinations(members, 2):
            assert prompts[one][: group.length] == prompts[other][: group.length]
        assert all(len(prompts[m]) > group.length for m in members)
        assert all(inside.length > group.length for inside in group.groups)
    if not levels:
        # Each prefix is computed whole.
        groups = [group._replace(groups=[]) for group in each(groups)]
    assert computed(prompts, groups) <= sum(map(len, prompts))


def test_each_dataset_is_a_group_of_its_own() -> None:
    lead, first, second = [1] * 30, [2] * 200, [3] * 300
    prompts = [lead + first + [10 + i, 5] for i in range(6)] + [lead + second + [20 + i] for i in range(6)]
    groups = shared_prefixes(prompts)
    assert sorted((group.length, len(group.members)) for group in groups) == [(230, 6), (330, 6)]


def test_a_prefix_of_its_own_is_not_worth_it_for_few_prompts() -> None:
    shared, passage = [1] * 400, [2] * 100
    prompts = [[*shared, 50 + i, *range(60 + i, 160 + i)] for i in range(20)]
    few, many = ([shared + passage + [7 + i, 3] for i in range(count)] for count in (2, 22))
    (group,) = shared_prefixes(prompts + few, levels=False)
    assert (group.length, len(group.members)) == (400, 22)
    groups = each(shared_prefixes(prompts + many, levels=False))
    assert sorted((g.length, len(g.members)) for g in groups) == [(400, 20), (500, 22)]


def test_prefixes_continue_others() -> None:
    shared, passages = [1] * 400, [[2 + n] * 100 for n in range(4)]
    prompts = [[*shared, 50 + i, *range(60 + i, 160 + i)] for i in range(20)]
    # The first continues it in place. A further one has to be worth a copy: two prompts are too few.
    for passage, count in zip(passages, (9, 8, 7, 2), strict=True):
        prompts += [[*shared, *passage, 30 + i, 7] for i in range(count)]
    (group,) = shared_prefixes(prompts)
    assert (group.length, len(group.members)) == (400, 22)
    assert [(one.length, len(one.members)) for one in group.groups] == [(500, n) for n in (9, 8, 7)]
    assert computed(prompts, [group]) == tree(prompts) + 100


@pytest.mark.sources
def test_ten_trials_of_pfgen_compute_little_more_than_the_tree_of_their_prefixes(mirror: Path) -> None:
    tokenizer = Tokenizer.from_file(str(mirror / "llm-jp-tokenizer-v3.0" / "tokenizer.json"))
    pool = read_pool(mirror / "pfgen" / "data" / "questions.jsonl")
    asked = pfgen.PfgenAsking(seed=0, samples=10).requests(Task(pfgen.SPEC, pool, pool, {}))
    prompts = [one.ids for one in tokenizer.encode_batch([str(one.prompt) for one in asked])]
    assert (sum(map(len, prompts)), tree(prompts)) == (697_816, 164_170)
    assert computed(prompts, shared_prefixes(prompts)) <= 1.01 * 164_170


def test_equal_prompts_leave_one_token() -> None:
    assert shared_prefixes([[1] * 50] * 3) == [PrefixGroup(49, [0, 1, 2], [])]
    assert shared_prefixes([[1, 2, 3]]) == [PrefixGroup(0, [0], [])]
    assert shared_prefixes([]) == []


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(GROUP_COST + 2, 80), st.integers(3, 9))
def test_prefixes_that_pay_are_found(groups: int, length: int, members: int) -> None:
    prompts = [[g] * length + [100 + m, 1] for g in range(groups) for m in range(members)]
    expected = length if (members - 1) * length > GROUP_COST else 0
    assert {group.length for group in shared_prefixes(prompts)} == {expected}
