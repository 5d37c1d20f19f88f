"""Generation in whole batches, for models whose attention cannot be replaced.

`with_shared_prefix` computes a shared prefix once per group; each batch starts from a copy of its
cache, one per row. `by_generate` is transformers' own `generate` and serves every causal model.
Attention, masks and cache are the model's own. The choice of tokens is evalkit's, so that sampling,
stop strings and the length of each row follow its own request.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from evalkit.core.errors import is_out_of_memory
from evalkit.engines.local.loading import LoadedModel
from evalkit.engines.local.memory import Limits, no_room
from evalkit.engines.local.passes import LayerShape
from evalkit.engines.local.prefixes import each, shared_prefixes
from evalkit.engines.local.running_rows import RunningRow, choose

# Rows in a batch where the size of a token's cache is not known.
_UNKNOWN_ROWS = 16


class Lengths(Enum):
    """How prompts of different lengths share a batch."""

    padded = "padded to one length"
    joined = "computed by length, continued together"
    apart = "never in one batch"


class Batches:
    """Batches of rows as large as memory allows; halved after an out-of-memory error."""

    def __init__(self, model: Any, rows: int | None) -> None:
        layers = _stated_layers(model)
        self._limits = Limits(layers, rows) if layers else None
        self._rows = rows or _UNKNOWN_ROWS

    @property
    def rows(self) -> int:
        """Most rows in a batch."""
        return self._limits.rows if self._limits else self._rows

    def of(self, rows: Sequence[RunningRow], lengths: Lengths) -> Iterator[list[RunningRow]]:
        """The rows in batches, longest prompts first."""
        ordered = sorted(rows, key=lambda row: -len(row.ids))
        for _, some in groupby(ordered, key=lambda row: len(row.ids) if lengths is Lengths.apart else 0):
            waiting = list(some)
            while waiting:
                length = max(len(row.ids) + row.request.max_new_tokens for row in waiting)
                size = self._limits.rows_for(length) if self._limits else self._rows
                batch, waiting = waiting[:size], waiting[size:]
                yield batch

    def attempt(
        self, rows: Sequence[RunningRow], run: Callable[[Sequence[RunningRow]], Iterator[RunningRow]]
    ) -> Iterator[RunningRow]:
        """Runs a batch; out of memory, its unfinished rows start again in halves.

        Raises:
            EvalkitError: not even one row fits.
        """
        yielded: set[int] = set()
        try:
            for row in run(rows):
                yielded.add(id(row))
                yield row
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # `by_generate` yields a batch as a whole, so rows that have ended may not have been yielded.
            left = [row for row in rows if id(row) not in yielded]
            if len(rows) == 1:
                raise no_room(error) from None
        else:
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = self._limits.fewer_rows(len(rows)) if self._limits else max(1, len(rows) // 2)
        self._rows = half
        for row in left:
            row.restart()
        for begin in range(0, len(left), half):
            yield from self.attempt(left[begin : begin + half], run)


def _stated_layers(model: Any) -> list[LayerShape]:
    """The cache's shapes from the configuration; empty when it does not state them."""
    try:
        config = model.config.get_text_config()
        queries, hidden = config.num_attention_heads, config.hidden_size
        heads = getattr(config, "num_key_value_heads", None) or queries
        dim = getattr(config, "head_dim", None) or hidden // queries
        weight = model.get_input_embeddings().weight
        return [LayerShape(heads, dim, dim, None, weight.device, weight.dtype)] * config.num_hidden_layers
    except Exception:
        # A value is missing or is a list, one for each layer.
        return []


# Known tensors of a cache layer: keys and values of each token, and a constant.
_STATES = {"keys", "values", "_sliding_window_tensor"}


def with_shared_prefix(
    rows: Sequence[RunningRow], loaded: LoadedModel, batches: Batches, lengths: Lengths
) -> Iterator[RunningRow]:
    """Finishes the rows, group by group of shared prefixes, and yields each as soon as it has ended."""
    for group in each(shared_prefixes([row.ids for row in rows], levels=False)):
        members = [rows[index] for index in group.members]
        prefix = PrefixCache(loaded.model, members[0].ids[: group.length])
        for batch in batches.of(members, lengths):
            yield from batches.attempt(batch, partial(_run_from_prefix, prefix, lengths))


def _run_from_prefix(
    prefix: "PrefixCache", lengths: Lengths, rows: Sequence[RunningRow]
) -> Iterator[RunningRow]:
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
    """Rows that run as one padded batch with the model's own cache.

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
        # Every kind of layer supports reordering, recurrent states too; dropping rows is a reordering.
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
        # Recurrent layers need a mask as long as the tokens, or none. Without padding none is needed.
        mask = None if bool(self._mask.all()) else self._mask
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        return _forward(self._model, ids, self._cache, mask, positions[:, -ids.shape[1] :])


def join(batches: Sequence[ExpandedBatch]) -> ExpandedBatch:
    """One batch of the rows of several, the one with the longest sequences first.

    The padding goes before all tokens: their distances stay, and recurrent states never see it.
    """
    first, *others = batches
    if others:
        first.take(others)
    return first


def _join_layers(layers: Sequence[Any]) -> None:
    """Puts the states of one layer in several batches into the first.

    Raises:
        TypeError: a layer with other kinds of states.
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
    """[rows, vocabulary]: the logits after the last token; `cache` is extended."""
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


def by_generate(
    rows: Sequence[RunningRow], loaded: LoadedModel, batches: Batches, lengths: Lengths
) -> Iterator[RunningRow]:
    """Finishes the rows batch by batch, longest prompts first, and yields them."""
    for batch in batches.of(rows, lengths):
        yield from batches.attempt(batch, lambda some: iter(_run_generate(some, loaded)))


@torch.inference_mode()
def _run_generate(rows: Sequence[RunningRow], loaded: LoadedModel) -> Sequence[RunningRow]:
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row.ids) :] = torch.tensor(row.ids)
        mask[index, width - len(row.ids) :] = 1
    # `Row.add` checks EOS: text rows and chat rows may end at different ids.
    settings = GenerationConfig(
        max_new_tokens=max(row.request.max_new_tokens for row in rows), do_sample=False, pad_token_id=0
    )
    masked = len(rows) > 1 or "attention_mask" in inspect.signature(loaded.model.forward).parameters
    loaded.model.generate(
        ids.to(loaded.device),
        **({"attention_mask": mask.to(loaded.device)} if masked else {}),
        generation_config=settings,
        logits_processor=[_Choice(rows)],
        stopping_criteria=_ends(rows),
    )
    return rows


class _Choice:
    """A logits processor that leaves only the token that `choose` picks."""

    def __init__(self, rows: Sequence[RunningRow]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        running = [index for index, row in enumerate(self._rows) if row.finish is None]
        forced = torch.full_like(scores, float("-inf"))
        forced[:, 0] = 0.0
        tokens = choose(scores[running], [self._rows[index] for index in running])
        forced[running] = float("-inf")
        forced[running, tokens] = 0.0
        return forced


def _ends(rows: Sequence[RunningRow]) -> Any:
    class Ends(StoppingCriteria):  # type: ignore[misc]
        """Hands each row its new token; true for the rows that are done."""

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            for row, token in zip(rows, input_ids[:, -1].tolist(), strict=True):
                if row.finish is None:
                    row.add(token)
            return torch.tensor([row.finish is not None for row in rows], device=input_ids.device)

    return StoppingCriteriaList([Ends()])
