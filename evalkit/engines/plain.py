"""The last resort: transformers' own `generate` over left-padded batches.

Serves every causal model. Token choice and ends are ours, so that sampling, stop strings and the
length of each row follow its own request.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from evalkit.engines.batches import Batches, Lengths
from evalkit.engines.loading import LoadedModel
from evalkit.engines.rows import Row
from evalkit.engines.sampling import choose


def generate(rows: Sequence[Row], loaded: LoadedModel, batches: Batches, lengths: Lengths) -> Iterator[Row]:
    """Finishes the rows batch by batch, longest prompts first, and yields them."""
    for batch in batches.of(rows, lengths):
        yield from batches.attempt(batch, lambda some: iter(_run(some, loaded)))


@torch.inference_mode()
def _run(rows: Sequence[Row], loaded: LoadedModel) -> Sequence[Row]:
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row.ids) :] = torch.tensor(row.ids)
        mask[index, width - len(row.ids) :] = 1
    # EOS ids stay ours too: rows of text and of chat may end at different ones.
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
    """A logits processor that leaves only the token our own rule chooses."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        running = [index for index, row in enumerate(self._rows) if row.finish is None]
        forced = torch.full_like(scores, float("-inf"))
        forced[:, 0] = 0.0
        tokens = choose(scores[running], [self._rows[index] for index in running])
        forced[running] = float("-inf")
        forced[running, tokens] = 0.0
        return forced


def _ends(rows: Sequence[Row]) -> Any:
    class Ends(StoppingCriteria):  # type: ignore[misc]
        """Hands each row its new token; true for the rows that are done."""

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            for row, token in zip(rows, input_ids[:, -1].tolist(), strict=True):
                if row.finish is None:
                    row.add(token)
            return torch.tensor([row.finish is not None for row in rows], device=input_ids.device)

    return StoppingCriteriaList([Ends()])
