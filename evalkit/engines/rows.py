"""A request while it is being generated, and the completion it ends as."""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evalkit.engines.decoding import CompletionDecoder
from evalkit.engines.encoding import Encoded
from evalkit.types import Completion, FinishReason, Request, Sampling


class Row:
    """One running request: prompt ids, new ids, and when it ends.

    Args:
        encoded: the request and its token ids.
        decoder: turns its tokens into text.
        sampling: how its tokens are chosen.
        places: positions the model has; None when it can go beyond those it was made for.

    Attributes:
        request: what was asked.
        ids: prompt ids.
        new: ids generated so far; the EOS that ends the row is the last one.
        finish: why the row ended; None while it runs.
        given: new tokens to take whatever the logits are; only a probe's rows have them.
        offered: the logits that were offered for each of those, [vocabulary] each.
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
        """Tokens the sequence may come to."""
        return len(self.ids) + self._most

    def add(self, token: int) -> bool:
        """Takes the next token and says whether the row goes on."""
        self.new.append(token)
        if token in self._encoded.eos:
            self.finish = "stop"
        elif self._decoder.stopped(self.ids, self.new, self.request.stop):
            self.finish = "stop_string"
        elif len(self.new) >= self._most:
            self.finish = "length"
        return self.finish is None

    def restart(self) -> None:
        """Forgets what was generated: the row starts again, with the same random numbers."""
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
        """Where the generator stands, as text; the request's own state when it was never used."""
        if self._generator is None:
            return self.request.generator_state
        return b64encode(self._generator.get_state().numpy().tobytes()).decode("ascii")

    def completion(self, context: int | None) -> Completion:
        """The finished row as a completion; `context` is the number of positions of the model.

        A row that ran out of positions before its end gives a failed one: what it has is cut.
        """
        assert self.finish is not None
        if self.finish == "length" and self._most < self.request.max_new_tokens:
            reason = f"the model's {context} positions end after {self._most} new tokens"
            return failed(self._encoded, reason, over_context=True)
        text = self._decoder.decode(self.ids, self.new[:-1] if self.finish == "stop" else self.new)
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
    return Completion(
        id=encoded.request.id,
        text="",
        raw_text="",
        finish_reason="error",
        prompt_tokens=len(encoded.ids),
        new_tokens=0,
        over_context=over_context,
        error=reason,
    )
