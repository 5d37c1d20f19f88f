"""Grouping by shared prefix: every prompt once, true prefixes, and the cost of the split."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.engines.local.prefixes import GROUP_COST, Group, shared_prefixes

prompts_of_few_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=30)


def cost(prompts: list[list[int]], groups: list[Group]) -> int:
    """Tokens computed, each group's prefix once."""
    return sum(group.length + sum(len(prompts[m]) - group.length for m in group.members) for group in groups)


@given(prompts_of_few_tokens)
def test_groups_cover_every_prompt_once_and_share_their_prefix(prompts: list[list[int]]) -> None:
    groups = shared_prefixes(prompts)
    assert sorted(m for group in groups for m in group.members) == list(range(len(prompts)))
    for group in groups:
        for one, other in combinations(group.members, 2):
            assert prompts[one][: group.length] == prompts[other][: group.length]
        assert all(len(prompts[m]) > group.length for m in group.members)
    assert cost(prompts, groups) <= sum(map(len, prompts))


def test_each_dataset_is_a_group_of_its_own() -> None:
    lead, first, second = [1] * 30, [2] * 200, [3] * 300
    prompts = [lead + first + [10 + i, 5] for i in range(6)] + [lead + second + [20 + i] for i in range(6)]
    groups = shared_prefixes(prompts)
    assert sorted((group.length, len(group.members)) for group in groups) == [(230, 6), (330, 6)]


def test_a_longer_prefix_is_not_worth_it_for_few_prompts() -> None:
    shared, passage = [1] * 400, [2] * 100
    prompts = [[*shared, 50 + i, *range(60 + i, 160 + i)] for i in range(20)]
    prompts += [shared + passage + [7, i] for i in range(2)]
    (group,) = shared_prefixes(prompts)
    assert (group.length, len(group.members)) == (400, 22)
    # Many prompts with the passage pay for its own prefix.
    groups = shared_prefixes(prompts + [shared + passage + [8, i] for i in range(20)])
    assert sorted((g.length, len(g.members)) for g in groups) == [(400, 20), (500, 22)]


def test_equal_prompts_leave_one_token() -> None:
    assert shared_prefixes([[1] * 50] * 3) == [Group(49, [0, 1, 2])]
    assert shared_prefixes([[1, 2, 3]]) == [Group(0, [0])]
    assert shared_prefixes([]) == []


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(GROUP_COST + 2, 80), st.integers(3, 9))
def test_prefixes_that_pay_are_found(groups: int, length: int, members: int) -> None:
    prompts = [[g] * length + [100 + m, 1] for g in range(groups) for m in range(members)]
    expected = length if (members - 1) * length > GROUP_COST else 0
    assert {group.length for group in shared_prefixes(prompts)} == {expected}
