"""Logits -> the next token of every row: greedy, or sampled with a generator of the row's own.

Filters in the order of transformers: repetition penalty, temperature, top-k, top-p.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evalkit.errors import EvalkitError

if TYPE_CHECKING:
    from evalkit.engines.rows import Row


def choose(logits: Tensor, rows: Sequence["Row"]) -> list[int]:
    """The next token id of each row.

    Args:
        logits: [rows, vocabulary], any float type; not changed.
        rows: the rows in the order of `logits`; a sampling row draws one number from its generator.

    Raises:
        EvalkitError: logits that are not numbers; says which request met them.
    """
    logits = logits.float()
    if any(row.sampling.repetition_penalty != 1.0 for row in rows):
        logits = _penalized(logits, rows)
    best, tokens = logits.max(dim=-1)
    # max() propagates NaN, and a row of -inf or a +inf has no defined choice either.
    for row, ok in zip(rows, best.isfinite().tolist(), strict=True):
        if not ok:
            raise EvalkitError(
                "the model's output is not a number (NaN or infinite logits)",
                where=f"request {row.request.id}, new token {len(row.new) + 1}",
                fix="try dtype=float32; if it stays, the weights are damaged",
            )
    chosen: list[int] = tokens.tolist()
    sampled = [index for index, row in enumerate(rows) if row.sampling.do_sample]
    if sampled:
        picks = _sample(logits[sampled], [rows[index] for index in sampled])
        for index, token in zip(sampled, picks, strict=True):
            chosen[index] = token
    for index, row in enumerate(rows):
        if row.given is not None:
            row.offered.append(logits[index].clone())
            chosen[index] = row.given[len(row.new)]
    return chosen


def _penalized(logits: Tensor, rows: Sequence["Row"]) -> Tensor:
    logits = logits.clone()
    for index, row in enumerate(rows):
        if row.sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*row.ids, *row.new}), device=logits.device)
            scores = logits[index, seen]
            penalty = row.sampling.repetition_penalty
            logits[index, seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits


def _sample(logits: Tensor, rows: Sequence["Row"]) -> list[int]:
    """One draw per row: a uniform number of the row's generator through the filtered distribution."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits.device).unsqueeze(1)

    ordered, tokens = kept_in_order(
        logits,
        column([row.sampling.temperature for row in rows]),
        column([float(row.sampling.top_k or logits.shape[1]) for row in rows]),
        column([row.sampling.top_p for row in rows]),
    )
    # Laid out by token id, not by likelihood: two tokens that are nearly as likely change places with
    # the last bit of their logits, and so with the batch, and a draw would then mean the other one.
    probabilities = torch.zeros_like(ordered).scatter(1, tokens, ordered).double()
    cumulative = probabilities.cumsum(dim=-1)
    draws = column([row.draw() for row in rows]).double() * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, draws, right=True)
    # A draw that rounds up to the whole is the last token that is kept.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    picks: list[int] = torch.minimum(picked, last).squeeze(1).tolist()
    return picks


def kept_in_order(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The filtered distribution, most likely token first.

    Args:
        logits: [rows, vocabulary], float32.
        temperature: [rows, 1].
        top_k: [rows, 1]; the vocabulary's size switches the filter off.
        top_p: [rows, 1]; 1.0 switches the filter off.

    Returns:
        Probabilities [rows, vocabulary] of the tokens that are kept (0 for the others, not
        normalised again) in descending order, and the token ids in that order.
    """
    ordered, tokens = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    # Ties with the k-th score are kept, as transformers keeps them.
    kth = ordered.gather(1, (top_k.long() - 1).clamp(0, ordered.shape[1] - 1))
    ordered = ordered.masked_fill(ordered < kth, float("-inf"))
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    beyond = (before >= top_p) & (top_p < 1.0)
    # The most likely token stays whatever top_p says.
    beyond[:, 0] = False
    return probabilities.masked_fill(beyond, 0.0), tokens
