"""Keys and values of past tokens: one copy for a shared prefix, one slot for each running row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class LayerShape(NamedTuple):
    """What one attention layer caches per token, where, and how far back it looks.

    Attributes:
        heads: key/value heads.
        key_dim: length of a key.
        value_dim: length of a value.
        window: a query sees this many positions, itself included; None: all.
        device: torch device.
        dtype: torch dtype.
    """

    heads: int
    key_dim: int
    value_dim: int
    window: int | None
    device: torch.device
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes one token takes in this layer's cache."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass
class States:
    """Keys and values of consecutive positions of one sequence, layer by layer.

    Attributes:
        keys: per layer [heads, positions, key_dim].
        values: per layer [heads, positions, value_dim].
    """

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, layers: Sequence[LayerShape], length: int) -> "States":
        """Room for `length` positions; allocated, not written."""
        return cls(
            [torch.empty(x.heads, length, x.key_dim, device=x.device, dtype=x.dtype) for x in layers],
            [torch.empty(x.heads, length, x.value_dim, device=x.device, dtype=x.dtype) for x in layers],
        )

    @property
    def bytes(self) -> int:
        """Bytes all states take."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def followed_by(self, other: "States") -> "States":
        """The states of this sequence's positions and of those after them, copied together."""
        return States(
            [torch.cat(pair, dim=1) for pair in zip(self.keys, other.keys, strict=True)],
            [torch.cat(pair, dim=1) for pair in zip(self.values, other.values, strict=True)],
        )

    def to_cpu(self) -> "States":
        """The same in the main memory."""
        return States([key.cpu() for key in self.keys], [value.cpu() for value in self.values])


class RowSlots:
    """The preallocated cache of the running rows: each slot holds one row's own tokens.

    Attributes:
        keys: per layer [rows, heads, capacity, key_dim].
        values: per layer [rows, heads, capacity, value_dim].
    """

    def __init__(self, layers: Sequence[LayerShape], rows: int, capacity: int) -> None:
        self._layers = layers
        self.rows = rows
        self.capacity = capacity
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for layer in layers:
            self.keys.append(self._room(layer, layer.key_dim))
            self.values.append(self._room(layer, layer.value_dim))

    def _room(self, layer: LayerShape, dim: int) -> Tensor:
        return _zeros((self.rows, layer.heads, self.capacity, dim), layer)

    def resize(self, rows: int, capacity: int, kept: int) -> None:
        """New numbers of slots and of tokens per slot; the first `kept` slots keep their content.

        One layer at a time, so that the old and the new cache never stand side by side.
        """
        self.rows = rows
        length = min(capacity, self.capacity)
        self.capacity = capacity
        for index, layer in enumerate(self._layers):
            for tensors, dim in ((self.keys, layer.key_dim), (self.values, layer.value_dim)):
                room = self._room(layer, dim)
                room[:kept, :, :length] = tensors[index][:kept, :, :length]
                tensors[index] = room

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of one slot to another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def read(self, slot: int, length: int) -> States:
        """A copy of the first `length` tokens of a slot."""
        return States(
            [tensor[slot, :, :length].clone() for tensor in self.keys],
            [tensor[slot, :, :length].clone() for tensor in self.values],
        )

    def write(self, slot: int, states: States, first: int, last: int) -> None:
        """Puts positions `first` to `last` (exclusive) of `states` at the beginning of a slot."""
        for tensors, sources in ((self.keys, states.keys), (self.values, states.values)):
            for tensor, source in zip(tensors, sources, strict=True):
                tensor[slot, :, : last - first] = source[:, first:last]


def _zeros(shape: tuple[int, ...], layer: LayerShape) -> Tensor:
    # Rows of one run are read as far as the longest: what lies beyond a row's end gets weight 0, which
    # only finite numbers survive.
    if layer.device.type != "cpu":
        return torch.zeros(shape, device=layer.device, dtype=layer.dtype)
    # numpy's zeros are pages the system hands out when they are written; torch's are written at once.
    size = math.prod(shape) * layer.dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(layer.dtype).view(shape)
