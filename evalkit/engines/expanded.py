"""A shared prefix for models whose attention cannot be replaced: its cache, repeated for each row.

The prefix is computed once per group; each batch starts from a copy of its cache, one per row. The
model's own attention, masks and cache do the rest.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from evalkit.engines.batches import Batches, Lengths
from evalkit.engines.loading import LoadedModel
from evalkit.engines.prefixes import shared_prefixes
from evalkit.engines.rows import Row
from evalkit.engines.sampling import choose

# Tensors of a cache's layer that are known: what attention keeps of each token, and a constant.
_STATES = {"keys", "values", "_sliding_window_tensor"}


def generate(rows: Sequence[Row], loaded: LoadedModel, batches: Batches, lengths: Lengths) -> Iterator[Row]:
    """Finishes the rows, group by group of shared prefixes, and yields each as soon as it has ended."""
    for group in shared_prefixes([row.ids for row in rows]):
        members = [rows[index] for index in group.members]
        prefix = PrefixCache(loaded.model, members[0].ids[: group.length])
        for batch in batches.of(members, lengths):
            yield from batches.attempt(batch, partial(_run, prefix, lengths))


def _run(prefix: "PrefixCache", lengths: Lengths, rows: Sequence[Row]) -> Iterator[Row]:
    suffixes = [row.ids[prefix.length :] for row in rows]
    if lengths is Lengths.joined:
        batch = join([prefix.start(list(alike)) for _, alike in groupby(suffixes, key=len)])
    else:
        batch = prefix.start(suffixes)
    running = list(rows)
    while running:
        going_on = [row.add(token) for row, token in zip(running, choose(batch.logits, running), strict=True)]
        yield from (row for row, goes_on in zip(running, going_on, strict=True) if not goes_on)
        if not any(going_on):
            return
        if not all(going_on):
            batch.keep([index for index, goes_on in enumerate(going_on) if goes_on])
            running = [row for row, goes_on in zip(running, going_on, strict=True) if goes_on]
        batch.feed([row.new[-1] for row in running])


class PrefixCache:
    """The cache of a prefix, and the batches that start from it.

    Attributes:
        length: tokens of the prefix.
    """

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.model = model
        self.length = len(ids)
        self._cache = DynamicCache(config=model.config)
        if ids:
            self._compute(ids)

    @torch.inference_mode()
    def _compute(self, ids: Sequence[int]) -> None:
        device = self.model.get_input_embeddings().weight.device
        tokens = torch.tensor([list(ids)], device=device)
        _forward(self.model, tokens, self._cache)

    @torch.inference_mode()
    def start(self, suffixes: Sequence[Sequence[int]]) -> "ExpandedBatch":
        """A batch of rows that go on from the prefix with these tokens each."""
        cache = copy.deepcopy(self._cache)
        if self.length and len(suffixes) > 1:
            cache.reorder_cache(torch.zeros(len(suffixes), dtype=torch.long))
        return ExpandedBatch(self.model, cache, self.length, suffixes)


class ExpandedBatch:
    """Rows in one batch of the model's own making.

    Attributes:
        logits: [rows, vocabulary], after the last token of each row.
    """

    def __init__(self, model: Any, cache: Any, length: int, suffixes: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._cache = cache
        width = max(map(len, suffixes))
        ids = torch.zeros(len(suffixes), width, dtype=torch.long)
        mask = torch.zeros(len(suffixes), length + width, dtype=torch.long)
        mask[:, :length] = 1
        for index, suffix in enumerate(suffixes):
            ids[index, width - len(suffix) :] = torch.tensor(suffix)
            mask[index, length + width - len(suffix) :] = 1
        self._device = model.get_input_embeddings().weight.device
        self._mask = mask.to(self._device)
        self.logits = self._forward(ids.to(self._device))

    @torch.inference_mode()
    def feed(self, tokens: Sequence[int]) -> None:
        """Adds one token to each row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._forward(torch.tensor(tokens, device=self._device)[:, None])

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        index = torch.tensor(rows, device=self._device)
        # Every kind of layer can be put in another order, its recurrent states too; fewer rows are one.
        self._cache.reorder_cache(index)
        self._mask = self._mask[index]

    @torch.inference_mode()
    def take(self, others: Sequence["ExpandedBatch"]) -> None:
        """Adds the rows of other batches, whose sequences are no longer than these, padded on the left."""
        batches = (self, *others)
        for layers in zip(*(batch._cache.layers for batch in batches), strict=True):
            _join_layers(layers)
        width = self._mask.shape[1]
        self._mask = torch.cat([pad(batch._mask, (width - batch._mask.shape[1], 0)) for batch in batches])
        self.logits = torch.cat([batch.logits for batch in batches])

    def _forward(self, ids: Tensor) -> Tensor:
        # Recurrent layers want a mask as long as the tokens or none; where nothing is padded, none will do.
        mask = None if bool(self._mask.all()) else self._mask
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        return _forward(self._model, ids, self._cache, mask, positions[:, -ids.shape[1] :])


def join(batches: Sequence[ExpandedBatch]) -> ExpandedBatch:
    """One batch of the rows of several, the one with the longest sequences first.

    Its padding lies before all tokens, so that their distances stay, and recurrent states never met it.
    """
    first, *others = batches
    if others:
        first.take(others)
    return first


def _join_layers(layers: Sequence[Any]) -> None:
    """Puts the states of one layer in several batches into the first.

    Raises:
        TypeError: a kind of layer that has other states than these.
    """
    first = layers[0]
    unknown = {name for name, value in vars(first).items() if isinstance(value, Tensor)} - _STATES
    if unknown:
        raise TypeError(f"a cache with {', '.join(sorted(unknown))}")
    for name in ("keys", "values"):
        if isinstance(getattr(first, name, None), Tensor):
            states = [getattr(layer, name) for layer in layers]
            width = max(tensor.shape[2] for tensor in states)
            padded = [pad(tensor, (0, 0, width - tensor.shape[2], 0)) for tensor in states]
            setattr(first, name, torch.cat(padded))
    for name in ("conv_states", "recurrent_states"):
        own = getattr(first, name, {})
        for index, state in own.items():
            if state is not None:
                own[index] = torch.cat([getattr(layer, name)[index] for layer in layers])


def _forward(
    model: Any, ids: Tensor, cache: Any, mask: Tensor | None = None, positions: Tensor | None = None
) -> Tensor:
    """[rows, vocabulary]: the logits after the last token, whose states `cache` takes up."""
    taken = inspect.signature(model.forward).parameters
    options = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}
    output = model(
        input_ids=ids,
        past_key_values=cache,
        use_cache=True,
        **{name: value for name, value in options.items() if name in taken and value is not None},
    )
    logits: Tensor = output.logits[:, -1]
    return logits
