"""Groups of prompts whose common prefix is computed once, in levels: a prefix may continue another.

Planning uses this too, without torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Cost of a group besides its prefix, in tokens: its calls in every layer.
GROUP_COST = 32
# Each prompt or group that begins with its prefix costs this part of it again.
_USER_COST = 8
# A prefix that branches off another one gets a copy of its states, which its rows read in every pass. That
# costs as much as computing one token in so many of the copied ones.
_COPIED = 4

Ids = npt.NDArray[np.int64]


class PrefixGroup(NamedTuple):
    """Prompts (their indices, in the caller's order) that begin with the same `length` tokens.

    The prompts of `groups` share these tokens and more. Where there are members, the first of `groups`, which
    has the most prompts, continues the prefix in place; the others branch off.
    """

    length: int
    members: list[int]
    groups: list["PrefixGroup"]


@dataclass
class _Node:
    depth: int
    loose: list[int] = field(default_factory=list)
    below: list["_Node"] = field(default_factory=list)
    prompts: int = 0


def shared_prefixes(
    prompts: Sequence[Sequence[int]], *, levels: bool = True, cost: int = GROUP_COST
) -> list[PrefixGroup]:
    """Splits prompts into groups so that few tokens are computed twice.

    A set of prompts becomes a group when its members save more tokens than the group costs.
    The prefix leaves every member at least one token, whose logits begin its completion.

    Args:
        prompts: token ids, none empty.
        levels: a prefix is computed from the one it continues; else each is computed whole.
        cost: of a group, in tokens.

    Returns:
        Groups that, with those inside them, cover every prompt once; prompts that share too little form one
        group of length 0.
    """
    arrays = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    order = sorted(range(len(arrays)), key=lambda index: list(prompts[index]))
    # The open nodes of the tree of common prefixes, root to leaf, over prompts in sorted order.
    path = [_Node(0)]
    for place, index in enumerate(order):
        after = order[place + 1] if place + 1 < len(order) else None
        ahead = 0 if after is None else common(arrays[index][:-1], arrays[after][:-1])
        if ahead > path[-1].depth:
            path.append(_Node(ahead))
        path[-1].loose.append(index)
        while path[-1].depth > ahead:
            node = path.pop()
            if path[-1].depth < ahead:
                path.append(_Node(ahead))
            path[-1].below.append(_settled(node, levels, cost))
    root = _group(_settled(path[0], levels, cost))
    return [*root.groups, *([PrefixGroup(0, root.members, [])] if root.members else [])]


def _settled(node: _Node, levels: bool, cost: int) -> _Node:
    """The node with those nodes below it that save enough; the prompts of the others are its own."""
    node.prompts = len(node.loose) + sum(child.prompts for child in node.below)
    left = sorted(node.below, key=lambda child: child.prompts)
    node.below = []
    while left:
        child = left.pop()
        users, more = len(child.loose), node.depth
        if levels:
            users += len(child.below)
            more = cost * users // _USER_COST + (node.depth // _COPIED if node.below else 0)
        if (users - 1) * (child.depth - node.depth) > cost + more:
            node.below.append(child)
        else:
            node.loose.extend(child.loose)
            left.extend(reversed(child.below))
    return node


def _group(node: _Node) -> PrefixGroup:
    return PrefixGroup(node.depth, sorted(node.loose), [_group(child) for child in node.below])


def each(groups: Iterable[PrefixGroup]) -> Iterator[PrefixGroup]:
    """The groups with all inside them, outer ones first."""
    for group in groups:
        yield group
        yield from each(group.groups)


def common(one: Ids, other: Ids) -> int:
    """The number of tokens that both begin with."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
