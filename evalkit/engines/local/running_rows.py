"""A request while it is being generated, the choice of its next token, and its completion.

Sampling filters logits in the order of transformers: repetition penalty, temperature, top-k, top-p.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evalkit.core import progress
from evalkit.core.errors import EvalkitError
from evalkit.core.types import Completion, FinishReason, Request, Sampling
from evalkit.engines.local.tokens import CompletionDecoder, Encoded


class RunningRow:
    """One running request: prompt ids, new ids, and when it ends.

    Args:
        encoded: the request and its token ids.
        decoder: turns its tokens into text.
        sampling: how its tokens are chosen.
        places: number of positions of the model; None when it has no fixed limit.

    Attributes:
        request: the request.
        ids: prompt ids.
        new: ids generated so far; the EOS that ends the row is the last one.
        finish: why the row ended; None while it runs.
        given: new tokens to take whatever the logits are; set by the probe only.
        offered: the logits for each given token, [vocabulary] each.
    """

    def __init__(
        self, encoded: Encoded, decoder: CompletionDecoder, sampling: Sampling, places: int | None = None
    ) -> None:
        self.request: Request = encoded.request
        self.ids = encoded.ids
        self.sampling = sampling
        self.new: list[int] = []
        self.finish: FinishReason | None = None
        self.given: Sequence[int] | None = None
        self.offered: list[Tensor] = []
        self._encoded = encoded
        # The last token is never fed back, so it needs no position.
        room = self.request.max_new_tokens if places is None else places - len(self.ids) + 1
        self._most = min(self.request.max_new_tokens, room)
        self._decoder = decoder
        self._generator: Any = None

    @property
    def longest(self) -> int:
        """Most tokens the whole sequence may have."""
        return len(self.ids) + self._most

    def add(self, token: int) -> bool:
        """Adds the next token; returns whether the row continues."""
        self.new.append(token)
        progress.made(self.request.max_new_tokens, 1, first=len(self.new) == 1)
        if token in self._encoded.eos:
            self.finish = "stop"
        elif self._decoder.stopped(self.ids, self.new, self.request.stop):
            self.finish = "stop_string"
        elif len(self.new) >= self._most:
            self.finish = "length"
        return self.finish is None

    def restart(self) -> None:
        """Discards what was generated; the row starts again with the same random numbers."""
        progress.made(self.request.max_new_tokens, -len(self.new), first=False)
        self.new, self.finish, self._generator = [], None, None
        self.offered = []

    def draw(self) -> float:
        """The next number in [0, 1) of this request's own generator."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.request.seed)
            if self.request.generator_state is not None:
                state = bytearray(b64decode(self.request.generator_state))
                self._generator.set_state(torch.frombuffer(state, dtype=torch.uint8))
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def generator_state(self) -> str | None:
        """The generator's state as base64; the request's own state when it was never used."""
        if self._generator is None:
            return self.request.generator_state
        return b64encode(self._generator.get_state().numpy().tobytes()).decode("ascii")

    def completion(self, context: int | None) -> Completion:
        """The finished row as a completion; `context` is the number of positions of the model.

        A row that ran out of positions gives a failed completion, since its text is cut.
        """
        assert self.finish is not None
        if self.finish == "length" and self._most < self.request.max_new_tokens:
            reason = f"the model's {context} positions end after {self._most} new tokens"
            return failed(self._encoded, reason, over_context=True)
        kept = self.new[:-1] if self.finish == "stop" else self.new
        text = self._decoder.decode(self.ids, kept, keep_special=self.request.keep_special)
        return Completion(
            id=self.request.id,
            text=text.text,
            raw_text=text.raw_text,
            finish_reason=self.finish,
            prompt_tokens=len(self.ids),
            new_tokens=len(self.new),
            over_context=context is not None and len(self.ids) + len(self.new) > context,
            generator_state=self.generator_state(),
        )


def failed(encoded: Encoded, reason: str, *, over_context: bool = False) -> Completion:
    """The empty completion of a request that cannot be answered."""
    return Completion.failed(encoded.request.id, reason, len(encoded.ids), over_context=over_context)


def problem_of(encoded: Encoded, context: int | None, longest: int | None) -> Completion | None:
    """The failed completion of a request that cannot be answered; None: it can be.

    Args:
        encoded: the request and its token ids.
        context: number of positions of the model, where known.
        longest: most tokens of a prompt; None: any number.
    """
    tokens, most = len(encoded.ids), encoded.request.max_new_tokens
    if not tokens:
        return failed(encoded, "the prompt is empty: it has no token")
    if longest is not None and tokens > longest:
        reason = f"the prompt has {tokens} tokens, the model's context {context} positions"
        return failed(encoded, reason, over_context=True)
    if most < 1:
        full = context is not None and tokens >= context
        return failed(encoded, f"max_new_tokens is {most}", over_context=full)
    return None


def choose(logits: Tensor, rows: Sequence[RunningRow]) -> list[int]:
    """The next token id of each row.

    Args:
        logits: [rows, vocabulary], any float type; not changed.
        rows: the rows in the order of `logits`; a sampling row draws one number from its generator.

    Raises:
        EvalkitError: logits that are not numbers; names the request.
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


def _penalized(logits: Tensor, rows: Sequence[RunningRow]) -> Tensor:
    logits = logits.clone()
    for index, row in enumerate(rows):
        if row.sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*row.ids, *row.new}), device=logits.device)
            scores = logits[index, seen]
            penalty = row.sampling.repetition_penalty
            logits[index, seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits


def _sample(logits: Tensor, rows: Sequence[RunningRow]) -> list[int]:
    """One draw per row: a uniform number of the row's generator through the filtered distribution."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits.device).unsqueeze(1)

    ordered, tokens = kept_in_order(
        logits,
        column([row.sampling.temperature for row in rows]),
        column([float(row.sampling.top_k or logits.shape[1]) for row in rows]),
        column([row.sampling.top_p for row in rows]),
    )
    # In the order of token ids, not of likelihood: two nearly equally likely tokens swap places with the
    # last bit of their logits, and so with the batch, and a draw would then select the other one.
    probabilities = torch.zeros_like(ordered).scatter(1, tokens, ordered).double()
    cumulative = probabilities.cumsum(dim=-1)
    draws = column([row.draw() for row in rows]).double() * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, draws, right=True)
    # A draw that rounds up to the total selects the last kept token.
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
