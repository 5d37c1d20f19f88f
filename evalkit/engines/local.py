"""The local engine: a transformers model in this process."""

import copy
import gc
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from evalkit.config import Config, PrefixMode
from evalkit.engines import expanded, plain
from evalkit.engines.base import Engine, distinct, from_generation_config
from evalkit.engines.batches import Batches
from evalkit.engines.cache import LayerShape
from evalkit.engines.conversations import Conversations
from evalkit.engines.decoding import CompletionDecoder
from evalkit.engines.encoding import Encoded, encode
from evalkit.engines.loading import LoadedModel, load, refuse_ids
from evalkit.engines.memory import Limits, free_bytes
from evalkit.engines.pool import Pool
from evalkit.engines.probe import expands, packed_layers
from evalkit.engines.rows import Row, failed
from evalkit.errors import InputError
from evalkit.models import ResolvedModel
from evalkit.types import Completion, Request, Sampling

log = logging.getLogger(__name__)

# Share of the main memory for the states of finished chats.
_CONVERSATIONS = 0.25
# Names of unused weights that a run records.
_MOST_RECORDED = 100


class LocalEngine(Engine):
    """Runs a transformers model on this machine.

    The tokens that prompts share are computed once, in the first of these ways that the model
    allows (or in the one `engine.prefix` forces): `merged`, one copy of the prefix that every row
    attends to; `expanded`, one copy for each row; `off`, transformers' own `generate`.
    """

    family = "local"

    def __init__(self, config: Config, resolved: ResolvedModel) -> None:
        self._config = config
        self._loaded: LoadedModel | None = load(config, resolved)
        self._decoder = CompletionDecoder(self._loaded.tokenizer)
        self._layers: list[LayerShape] = []
        self.prefix = self._choose_prefix(self._loaded, config.engine.prefix)
        log.info("prefix: %s", self.prefix.value)
        if self._loaded.generation:
            follows = (
                "followed" if config.generation.from_model else "not followed (generation.from_model=true)"
            )
            listed = ", ".join(f"{key}={value}" for key, value in self._loaded.generation.items())
            log.info("the model's generation_config sets %s: %s", listed, follows)
        if self.prefix is PrefixMode.merged:
            self._limits = Limits(self._layers, config.engine.batch_size)
            most = int(free_bytes(torch.device("cpu")) * _CONVERSATIONS)
            self._conversations = Conversations(most)
        else:
            self._batches = Batches(self._loaded.model, config.engine.batch_size)

    def _choose_prefix(self, loaded: LoadedModel, wanted: PrefixMode) -> PrefixMode:
        problem: str | None
        if wanted in (PrefixMode.auto, PrefixMode.merged):
            layers = packed_layers(loaded.model)
            if not isinstance(layers, str):
                self._layers = layers
                return PrefixMode.merged
            self._refuse(PrefixMode.merged, wanted, layers)
        if wanted in (PrefixMode.auto, PrefixMode.expanded):
            problem = expands(loaded.model)
            if problem is None:
                return PrefixMode.expanded
            self._refuse(PrefixMode.expanded, wanted, problem)
        return PrefixMode.off

    def _refuse(self, mode: PrefixMode, wanted: PrefixMode, problem: str) -> None:
        if mode is wanted:
            raise InputError(
                f"this model does not allow engine.prefix={mode.value}: {problem}", fix="engine.prefix=auto"
            )
        log.info("prefix: not %s (%s)", mode.value, problem)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Engine.generate`."""
        rows, problems = self._rows(requests)
        yield from problems
        for row in self._run(rows):
            yield row.completion(self._model().context)

    def one_at_a_time(self, requests: Iterable[Request]) -> Iterator[Row]:
        """The finished rows of requests through transformers' `generate`, one prompt at a time.

        This is the reference that batches are held against; requests that cannot be served are left
        out.
        """
        yield from self._run_alone(self._rows(requests)[0])

    def together(self, requests: Iterable[Request]) -> Iterator[Row]:
        """The finished rows of requests as `generate` makes them."""
        yield from self._run(self._rows(requests)[0])

    def margin(self, ids: Sequence[int]) -> float:
        """The gap between the two best logits after `ids`, by the model's usual attention."""
        loaded = self._model()
        with self.usual_attention(), torch.inference_mode():
            logits = loaded.model(torch.tensor([ids], device=loaded.device)).logits[0, -1]
        best = logits.float().topk(2).values
        return float(best[0] - best[1])

    def with_batch_size(self, rows: int) -> "LocalEngine":
        """The same engine, model shared, with another number of rows at a time."""
        other = copy.copy(self)
        if self.prefix is PrefixMode.merged:
            other._limits = Limits(self._layers, rows)
        else:
            other._batches = Batches(self._model().model, rows)
        return other

    def _rows(self, requests: Iterable[Request]) -> tuple[list[Row], list[Completion]]:
        """The rows to run, and the completions of requests that cannot be served."""
        loaded = self._model()
        rows: list[Row] = []
        problems: list[Completion] = []
        prompts = encode(distinct(requests), loaded, self._config.protocol.bos)
        refuse_ids(prompts, loaded.tokenizer, loaded.embeddings)
        for encoded in prompts:
            if problem := self._problem(encoded):
                problems.append(problem)
            else:
                places = loaded.context if loaded.learned_positions else None
                rows.append(Row(encoded, self._decoder, self._sampling(encoded), places))
        return rows, problems

    def _problem(self, encoded: Encoded) -> Completion | None:
        loaded = self._model()
        if not encoded.ids:
            return failed(encoded, "the prompt is empty: it has no token")
        if encoded.request.max_new_tokens < 1:
            return failed(encoded, f"max_new_tokens is {encoded.request.max_new_tokens}")
        if loaded.learned_positions and loaded.context and len(encoded.ids) > loaded.context:
            reason = f"the prompt has {len(encoded.ids)} tokens, the model {loaded.context} positions"
            return failed(encoded, reason, over_context=True)
        return None

    def _run(self, rows: Sequence[Row]) -> Iterator[Row]:
        loaded = self._model()
        most = loaded.lone_from
        alone = [row for row in rows if most is not None and row.longest > most]
        together = [row for row in rows if most is None or row.longest <= most]
        if together:
            yield from self._run_together(together)
        if alone:
            log.info(
                "%d requests run alone: longer than %s tokens they change the rotary frequencies",
                len(alone),
                most,
            )
            yield from self._run_alone(alone)

    def _run_alone(self, rows: Sequence[Row]) -> Iterator[Row]:
        loaded = self._model()
        with self.usual_attention():
            yield from plain.generate(rows, loaded, Batches(loaded.model, 1))

    @contextmanager
    def usual_attention(self) -> Iterator[None]:
        """transformers' own attention in place of the one that shares a prefix, while the block runs."""
        loaded = self._model()
        current = loaded.model.config._attn_implementation
        loaded.model.set_attn_implementation(loaded.attention)
        try:
            yield
        finally:
            loaded.model.set_attn_implementation(current)

    def _run_together(self, rows: Sequence[Row]) -> Iterator[Row]:
        loaded = self._model()
        if self.prefix is PrefixMode.merged:
            return Pool(loaded, self._layers, self._limits, self._conversations).run(rows)
        if self.prefix is PrefixMode.expanded:
            return expanded.generate(rows, loaded, self._batches)
        return plain.generate(rows, loaded, self._batches)

    def _sampling(self, encoded: Encoded) -> Sampling:
        if not self._config.generation.from_model:
            return encoded.request.sampling
        return from_generation_config(self._model().generation)

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        loaded = self._model()
        merged = self.prefix is PrefixMode.merged
        return {
            "engine": "local",
            "device": str(loaded.device),
            "device_name": _device_name(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "attention": "packed" if merged else loaded.attention,
            "prefix": self.prefix.value,
            "rows": self._limits.rows if merged else self._batches.rows,
            "threads": torch.get_num_threads(),
            "generation_config": loaded.generation,
            **({"unused_weights": _cut(loaded.unused)} if loaded.unused else {}),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def close(self) -> None:
        """See `Engine.close`."""
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _model(self) -> LoadedModel:
        assert self._loaded is not None, "the engine is closed"
        return self._loaded


def _cut(names: Sequence[str]) -> dict[str, Any]:
    return {"count": len(names), "names": list(names[:_MOST_RECORDED])}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
