"""The attention of packed passes, registered with transformers under a name of its own.

No model code changes: a model asks transformers for its attention by name and passes queries, keys
and values after its own projections, norms and rotations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evalkit.engines.local.kernels import MANY, Part, attend, merge
from evalkit.engines.local.passes import (
    FreshSpan,
    NeighbourRows,
    Pass,
    RowSlots,
    Section,
    SharedSpan,
    Span,
    pack,
)

NAME = "evalkit_packed"
# Arguments that change the result and that this attention does not support.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache", "indexer_states")


class UnsupportedAttentionError(Exception):
    """A model needs something that packed attention does not support."""


def register() -> None:
    """Registers the attention with transformers, which prepares no mask for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer over one packed pass.

    Args:
        module: the attention module; its `layer_idx` names the layer.
        query: [1, heads, tokens, key_dim].
        key: [1, kv heads, tokens, key_dim].
        value: [1, kv heads, tokens, value_dim].
        attention_mask: None; `options["evalkit_pass"]` says which token sees which.
        options: the arguments a model passes to any attention.

    Returns:
        [1, tokens, heads, value_dim], and None in place of the weights.

    Raises:
        UnsupportedAttentionError: the model needs something other than softmax attention.
    """
    wanted = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if wanted or attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError(", ".join(wanted) or "a mask or attention in both directions")
    scale = options.get("scaling")
    layer = LayerCall(
        work=options["evalkit_pass"],
        layer=module.layer_idx,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        window=options.get("sliding_window"),
    )
    return layer.run(query[0], key[0], value[0]).unsqueeze(0), None


@torch.inference_mode()
def forward(model: Any, sections: Sequence[Section], slots: RowSlots) -> Tensor:
    """One packed pass: [rows, vocabulary], the logits after each row's last token."""
    work = pack(sections, slots)
    device = model.get_input_embeddings().weight.device
    output = model(
        input_ids=torch.tensor([work.ids], device=device),
        position_ids=torch.tensor([work.positions], device=device),
        use_cache=False,
        logits_to_keep=torch.tensor(work.last, device=device),
        evalkit_pass=work,
    )
    logits: Tensor = output.logits[0]
    return logits


class LayerCall:
    """One layer's attention in one pass."""

    def __init__(self, work: Pass, layer: int, scale: float, window: int | None) -> None:
        self.work = work
        self.keys = work.slots.keys[layer]
        self.values = work.slots.values[layer]
        self.layer = layer
        self.scale = scale
        self.window = window

    def run(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Stores the pass's keys and values and attends.

        Args:
            query: [heads, tokens, key_dim].
            key: [kv heads, tokens, key_dim].
            value: [kv heads, tokens, value_dim].

        Returns:
            [tokens, heads, value_dim].
        """
        heads, tokens, _ = query.shape
        # Attention over no key at all: every part is merged into it.
        total = Part(
            query.new_zeros(tokens, heads, value.shape[-1]),
            torch.full((tokens, heads), float("-inf"), device=query.device),
        )
        for fresh in self.work.fresh:
            self._store(fresh, key, value)
        for shared in self.work.shared:
            total = self._shared(shared, query, total)
        for fresh in self.work.fresh:
            own = slice(fresh.first, fresh.first + fresh.size)
            part = self._causal(query[:, own], key[:, own], value[:, own], 0)
            if fresh.parent is None:
                total.out[own] = part.out
            else:
                _add(total, own, part)
        for span in self.work.several:
            self._several(span, query, key, value, total)
        if self.work.single:
            self._single(query, key, value, total)
        return total.out

    def _store(self, fresh: FreshSpan, key: Tensor, value: Tensor) -> None:
        """Puts the keys and values of a prefix behind those of the one it continues."""
        span, begin = slice(fresh.first, fresh.first + fresh.size), fresh.begin
        keys, values = fresh.prefix.keys[self.layer], fresh.prefix.values[self.layer]
        if fresh.parent is not None:
            keys[:, :begin] = fresh.parent.keys[self.layer][:, :begin]
            values[:, :begin] = fresh.parent.values[self.layer][:, :begin]
        keys[:, begin:] = key[:, span]
        values[:, begin:] = value[:, span]

    def _several(self, row: Span, query: Tensor, key: Tensor, value: Tensor, total: Part) -> None:
        span = slice(row.first, row.first + row.size)
        end = row.cached + row.size
        self.keys[row.slot, :, row.cached : end] = key[:, span]
        self.values[row.slot, :, row.cached : end] = value[:, span]
        keys, values = self.keys[row.slot, :, :end], self.values[row.slot, :, :end]
        _add(total, span, self._causal(query[:, span], keys, values, row.cached))

    def _causal(self, query: Tensor, key: Tensor, value: Tensor, cached: int) -> Part:
        """Queries from position `cached` on over keys from position 0 on of one row."""
        plain = not cached and (self.window is None or key.shape[1] <= self.window)
        mask = None if plain else self._band(query.shape[1], key.shape[1], query)
        return self._grouped(query, key, value, mask=mask, causal=plain)

    def _grouped(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, causal: bool = False
    ) -> Part:
        """Attention of one sequence whose key heads serve several query heads each, without copies.

        Key heads become the batch, the query heads of each its heads, or rows of one head where they are few.

        Args:
            query: [heads, queries, key_dim].
            key: [kv heads, keys, key_dim].
            value: [kv heads, keys, value_dim].
            mask: added to the scores, [1, 1, queries, keys].
            causal: query i sees keys 0 to i only.

        Returns:
            A part with `out` [queries, heads, value_dim] and `lse` [queries, heads].
        """
        heads, queries, dim = query.shape
        kv_heads = key.shape[0]
        shape = (kv_heads, heads // kv_heads, queries, -1)
        if mask is None and not causal and queries < MANY:
            # One call of more rows: the query heads become further queries of their key head.
            rows = query.reshape(kv_heads, 1, -1, dim)
            part = attend(rows, key[:, None], value[:, None], self.scale)
            part = Part(part.out.view(shape), part.lse.view(shape[:3]))
        else:
            part = attend(
                query.view(shape),
                key[:, None].expand(*shape[:2], -1, -1),
                value[:, None].expand(*shape[:2], -1, -1),
                self.scale,
                mask=mask,
                causal=causal,
            )
        return Part(part.out.flatten(0, 1).transpose(0, 1), part.lse.flatten(0, 1).transpose(0, 1))

    def _band(self, queries: int, keys: int, like: Tensor) -> Tensor:
        """[1, 1, queries, keys]: the last `queries` positions of a row over all of them."""
        name = ("band", queries, keys, self.window, like.device)
        if name not in self.work.scratch:
            place = torch.arange(keys, device=like.device)
            ahead = place[None, :] - place[keys - queries :, None]
            hidden = ahead > 0 if self.window is None else (ahead > 0) | (ahead <= -self.window)
            self.work.scratch[name] = _additive(hidden, like)[None, None]
        mask: Tensor = self.work.scratch[name]
        return mask

    def _single(self, query: Tensor, key: Tensor, value: Tensor, total: Part) -> None:
        index, slots, cached = self._single_indices(query.device)
        self.keys[slots, :, cached] = key[:, index].transpose(0, 1)
        self.values[slots, :, cached] = value[:, index].transpose(0, 1)
        heads, dim, kv_heads = query.shape[0], query.shape[2], key.shape[0]
        # Query heads that share a key head become further queries of that head.
        folded = query[:, index].transpose(0, 1).reshape(-1, kv_heads, heads // kv_heads, dim)
        for run in self.work.runs:
            rows = slice(run.slot, run.slot + run.end - run.begin)
            part = attend(
                folded[run.begin : run.end],
                self.keys[rows, :, : run.longest],
                self.values[rows, :, : run.longest],
                self.scale,
                mask=self._tail(run, cached, query),
            )
            own = Part(part.out.reshape(-1, heads, value.shape[-1]), part.lse.reshape(-1, heads))
            if isinstance(index, slice):
                _add(total, slice(index.start + run.begin, index.start + run.end), own)
            else:
                _add(total, index[run.begin : run.end], own)

    def _single_indices(self, device: torch.device) -> tuple[Tensor | slice, Tensor, Tensor]:
        """Where the single tokens are in the pass, their slots, and how many tokens precede them there."""
        name = ("single", device)
        if name not in self.work.scratch:
            spans = self.work.single
            columns = [s.first for s in spans], [s.slot for s in spans], [s.cached for s in spans]
            first, slots, cached = (torch.tensor(column, device=device) for column in columns)
            begin, end = columns[0][0], columns[0][0] + len(spans)
            # Neighbours in order, as in most passes, need no copy.
            index = slice(begin, end) if columns[0] == list(range(begin, end)) else first
            self.work.scratch[name] = index, slots, cached
        index, slots, cached = self.work.scratch[name]
        return index, slots, cached

    def _tail(self, run: NeighbourRows, cached: Tensor, like: Tensor) -> Tensor | None:
        """[rows, 1, 1, longest]: what each row of a run sees of its slot; None when it sees all."""
        window = run.longest if self.window is None else min(self.window, run.longest)
        if run.shortest == run.longest == window:
            return None
        name = ("tail", run.begin, window, like.device)
        if name not in self.work.scratch:
            place = torch.arange(run.longest, device=like.device)
            behind = cached[run.begin : run.end, None] - place[None, :]
            self.work.scratch[name] = _additive((behind < 0) | (behind >= window), like)[:, None, None]
        mask: Tensor = self.work.scratch[name]
        return mask

    def _shared(self, shared: SharedSpan, query: Tensor, total: Part) -> Part:
        """The parts with those of a prefix added, which are the first of their tokens."""
        span = slice(shared.first, shared.last)
        begin, mask, blind = self._prefix_window(shared, query)
        if begin >= shared.length:
            return total
        keys = shared.prefix.keys[self.layer][:, begin : shared.length]
        values = shared.prefix.values[self.layer][:, begin : shared.length]
        part = self._grouped(query[:, span], keys, values, mask=mask)
        if blind is not None:
            part = Part(
                part.out.masked_fill(blind[:, :, None], 0.0), part.lse.masked_fill(blind, float("-inf"))
            )
        if shared.tokens == len(total.out):
            return part
        total.out[span] = part.out
        total.lse[span] = part.lse
        return total

    def _prefix_window(self, shared: SharedSpan, query: Tensor) -> tuple[int, Tensor | None, Tensor | None]:
        """The first prefix position any query sees, which later ones each sees, and which queries see none.

        The second is a mask [1, 1, queries, positions], None when all queries see all of them. The third is
        bool [queries, 1], None when each sees one.
        """
        positions = self.work.positions[shared.first : shared.last]
        begin = 0 if self.window is None else max(0, min(positions) - self.window + 1)
        ends = self.window is not None and max(positions) - self.window + 1 > begin
        if begin >= shared.length or not (ends or shared.lengths):
            return begin, None, None
        name = ("prefix", shared.first, self.window, query.device)
        if name not in self.work.scratch:
            place = torch.arange(begin, shared.length, device=query.device)
            hidden = torch.zeros(len(positions), len(place), dtype=torch.bool, device=query.device)
            if shared.lengths:
                hidden |= place >= torch.tensor(shared.lengths, device=query.device)[:, None]
            if self.window is not None:
                hidden |= place <= torch.tensor(positions, device=query.device)[:, None] - self.window
            blind = hidden.all(dim=1)[:, None] if self.window is not None else None
            self.work.scratch[name] = _additive(hidden, query)[None, None], blind
        return begin, *self.work.scratch[name]


def _add(total: Part, rows: slice | Tensor, own: Part) -> None:
    """Merges the attention of `rows` over their own keys, of which each sees one, into that of the pass."""
    so_far = Part(total.out[rows], total.lse[rows])
    merged = merge(so_far, own, in_place=True)
    if merged is not so_far.out or not isinstance(rows, slice):
        total.out[rows] = merged


def _additive(hidden: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
