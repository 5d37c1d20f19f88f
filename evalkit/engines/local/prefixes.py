"""Groups of prompts whose common prefix is computed once.

Planning uses this too, without torch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Cost of a group besides its prefix, in tokens: its calls in every layer.
GROUP_COST = 32

Ids = npt.NDArray[np.int64]


class Group(NamedTuple):
    """Prompts (their indices, in the caller's order) that begin with the same `length` tokens."""

    length: int
    members: list[int]


class _Node(NamedTuple):
    depth: int
    loose: list[int]


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Splits prompts into groups so that few tokens are computed twice.

    A set of prompts becomes a group when its members save more tokens than computing its prefix costs.
    The prefix leaves every member at least one token, whose logits begin its completion.

    Args:
        prompts: token ids, none empty.

    Returns:
        Disjoint groups that cover all prompts; prompts that share too little form one group of
        length 0.
    """
    arrays = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    order = sorted(range(len(arrays)), key=lambda index: list(prompts[index]))
    groups: list[Group] = []
    # The open nodes of the tree of common prefixes, root to leaf, over prompts in sorted order.
    path = [_Node(0, [])]
    for place, index in enumerate(order):
        after = order[place + 1] if place + 1 < len(order) else None
        ahead = 0 if after is None else _common(arrays[index], arrays[after])
        if ahead > path[-1].depth:
            path.append(_Node(ahead, []))
        path[-1].loose.append(index)
        while path[-1].depth > ahead:
            _close(path, ahead, groups)
    if path[0].loose:
        groups.append(Group(0, sorted(path[0].loose)))
    return groups


def _close(path: list[_Node], ahead: int, groups: list[Group]) -> None:
    node = path.pop()
    if path[-1].depth < ahead:
        path.append(_Node(ahead, []))
    parent = path[-1]
    if len(node.loose) * (node.depth - parent.depth) > node.depth + GROUP_COST:
        groups.append(Group(node.depth, sorted(node.loose)))
    else:
        parent.loose.extend(node.loose)


def _common(one: Ids, other: Ids) -> int:
    length = min(len(one), len(other)) - 1
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
