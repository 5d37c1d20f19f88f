"""Cutting rows into batches that fit, for the ways of generation that know whole batches only."""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import groupby
from typing import Any

import torch

from evalkit.engines.cache import LayerShape
from evalkit.engines.memory import Limits, no_room
from evalkit.engines.rows import Row
from evalkit.errors import is_out_of_memory

# Where a model does not say what a token takes in its cache.
_UNKNOWN_ROWS = 16


class Lengths(Enum):
    """What becomes of prompts of different lengths in one batch."""

    padded = "padded to one length"
    joined = "computed by length, continued together"
    apart = "never in one batch"


class Batches:
    """Batches of rows as large as memory allows; halved when that was too much."""

    def __init__(self, model: Any, rows: int | None) -> None:
        layers = _stated_layers(model)
        self._limits = Limits(layers, rows) if layers else None
        self._rows = rows or _UNKNOWN_ROWS

    @property
    def rows(self) -> int:
        """Most rows in a batch."""
        return self._limits.rows if self._limits else self._rows

    def of(self, rows: Sequence[Row], lengths: Lengths) -> Iterator[list[Row]]:
        """The rows in batches, longest prompts first."""
        ordered = sorted(rows, key=lambda row: -len(row.ids))
        for _, some in groupby(ordered, key=lambda row: len(row.ids) if lengths is Lengths.apart else 0):
            waiting = list(some)
            while waiting:
                length = max(len(row.ids) + row.request.max_new_tokens for row in waiting)
                size = self._limits.rows_for(length) if self._limits else self._rows
                batch, waiting = waiting[:size], waiting[size:]
                yield batch

    def attempt(self, rows: Sequence[Row], run: Callable[[Sequence[Row]], Iterator[Row]]) -> Iterator[Row]:
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
            # A row may have ended in a batch that is handed over as a whole.
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
    """The cache's shapes as the configuration states them; none when it does not."""
    try:
        config = model.config.get_text_config()
        queries, hidden = config.num_attention_heads, config.hidden_size
        heads = getattr(config, "num_key_value_heads", None) or queries
        dim = getattr(config, "head_dim", None) or hidden // queries
        weight = model.get_input_embeddings().weight
        return [LayerShape(heads, dim, dim, None, weight.device, weight.dtype)] * config.num_hidden_layers
    except Exception:
        # A figure that is missing, a list of them, or one that may differ from layer to layer.
        return []
