"""The local engine: a transformers model in this process."""

import copy
import gc
import logging
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from evalkit.core import progress
from evalkit.core.config import BosRule, Dtype, EngineConfig, PrefixMode
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.types import Completion, Request, Sampling
from evalkit.core.words import t
from evalkit.engines.base import Engine, distinct, from_generation_config
from evalkit.engines.local import linears
from evalkit.engines.local.attention import NAME
from evalkit.engines.local.fallback import Batches, Lengths, by_generate
from evalkit.engines.local.loading import LoadedModel, load
from evalkit.engines.local.memory import Limits, free_bytes, give_back_freed
from evalkit.engines.local.pool import Conversations, Pool
from evalkit.engines.local.probe import ALONE, PACKED, choose_way, error_line
from evalkit.engines.local.running_rows import RunningRow, problem_of
from evalkit.engines.local.tokenizer import refuse_ids
from evalkit.engines.local.tokens import CompletionDecoder, Encoded, encode
from evalkit.engines.models import ResolvedModel

log = logging.getLogger(__name__)

# Share of the free main memory for the states of finished chats.
_CONVERSATIONS = 0.25
# Names of unused weights that a run records.
_MOST_RECORDED = 100
# Most characters of a reason in the log line about the ways that were ruled out.
_REASON = 100


class LocalEngine(Engine):
    """Runs a transformers model on this machine.

    Rows go through the model in the fastest way that a probe finds exact, among those that
    `engine.prefix` allows. Tokens that prompts share are computed once. `merged`: one copy of the
    prefix that every row attends to. `expanded`: one copy for each row. `off`: transformers' own
    `generate`, which shares nothing.

    Args:
        resolved: the model.
        options: of the engine.
        dtype: the precision; `auto` depends on the device.
        bos: the rule for text prompts.
        follow_generation_config: sample as the model's generation_config says, not the requests.

    Raises:
        InputError: as `load`; or the model does not allow `engine.prefix`.
        EvalkitError: the weights do not fit into memory.
    """

    family = "local"

    def __init__(
        self,
        resolved: ResolvedModel,
        options: EngineConfig,
        dtype: Dtype,
        *,
        bos: BosRule,
        follow_generation_config: bool,
    ) -> None:
        self._options = options
        self._bos = bos
        self._follow_generation_config = follow_generation_config
        self._loaded: LoadedModel | None = load(resolved, options, dtype)
        self._decoder = CompletionDecoder(self._loaded.tokenizer)
        self._choose_way(self._loaded)
        if self._loaded.generation:
            follows = "followed" if follow_generation_config else "not followed (generation.from_model=true)"
            listed = ", ".join(f"{key}={value}" for key, value in self._loaded.generation.items())
            log.info("the model's generation_config sets %s: %s", listed, follows)
        self._conversations = Conversations(int(free_bytes(torch.device("cpu")) * _CONVERSATIONS))
        self._set_batch_size(options.batch_size)

    def _choose_way(self, loaded: LoadedModel) -> None:
        wanted = self._options.prefix
        with progress.phase(t("trying the fastest exact way through the model")):
            choice = choose_way(loaded, wanted, self._options.batch_size)
        if isinstance(choice, str):
            raise InputError(
                f"this model does not allow engine.prefix={wanted.value}: {choice}", fix="engine.prefix=auto"
            )
        self.way, self._layers, self._ruled_out = choice.way, choice.layers, choice.ruled_out
        # One line for the terminal; the reasons in full are in the log and in environment.json.
        reasons = [textwrap.shorten(reason, _REASON) for reason in choice.ruled_out.values()]
        named: dict[str, list[str]] = {reason: [] for reason in reasons}
        for name, reason in zip(choice.ruled_out, reasons, strict=True):
            named[reason].append(name)
        why = "; ".join(f"not {', '.join(names)}: {reason}" for reason, names in named.items())
        log.log(
            logging.WARNING if self._ruled_out and wanted is PrefixMode.auto else logging.INFO,
            "rows go through the model in this way: %s%s (probed in %.1f s)",
            self.way.name,
            f" ({why})" if why else "",
            choice.seconds,
        )

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._model().tokenizer

    @property
    def prefix(self) -> PrefixMode:
        """What is done with the tokens that prompts share."""
        return self.way.prefix

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Engine.generate`."""
        rows, problems = self._rows(requests)
        yield from problems
        for row in self._run(rows):
            yield row.completion(self._model().context)

    def one_at_a_time(self, requests: Iterable[Request]) -> Iterator[RunningRow]:
        """The finished rows of requests through transformers' `generate`, one prompt at a time.

        This is the reference for batches. Requests that cannot be answered are omitted.
        """
        with linears.plain(self._model().model):
            yield from self._run_alone(self._rows(requests)[0])

    def together(self, requests: Iterable[Request]) -> Iterator[RunningRow]:
        """The finished rows of requests, batched as in `generate`."""
        yield from self._run(self._rows(requests)[0])

    def margin(self, ids: Sequence[int]) -> float:
        """The gap between the two best logits after `ids`, by the model's usual attention."""
        encoded = Encoded(Request("margin", "", max_new_tokens=1), list(ids), frozenset())
        row = RunningRow(encoded, self._decoder, Sampling())
        row.given = [0]
        for _ in self._run_alone([row]):
            pass
        best = row.offered[0].topk(2).values
        return float(best[0] - best[1])

    def with_batch_size(self, rows: int) -> "LocalEngine":
        """An engine with the same model and another number of rows at a time."""
        other = copy.copy(self)
        other._set_batch_size(rows)
        return other

    def _set_batch_size(self, rows: int | None) -> None:
        if self.way is PACKED:
            self._limits = Limits(self._layers, rows)
        else:
            self._batches = Batches(self._model().model, 1 if self.way.alone else rows)

    def _rows(self, requests: Iterable[Request]) -> tuple[list[RunningRow], list[Completion]]:
        """The rows to run, and the completions of requests that cannot be answered."""
        loaded = self._model()
        rows: list[RunningRow] = []
        problems: list[Completion] = []
        places = loaded.context if loaded.learned_positions else None
        own = from_generation_config(loaded.generation) if self._follow_generation_config else None
        prompts = encode(distinct(requests), loaded.tokenizer, loaded.ends, self._bos, loaded.context)
        refuse_ids(prompts, loaded.tokenizer, loaded.embeddings)
        for encoded in prompts:
            if problem := problem_of(encoded, loaded.context, places):
                problems.append(problem)
            else:
                rows.append(RunningRow(encoded, self._decoder, own or encoded.request.sampling, places))
        return rows, problems

    def _run(self, rows: Sequence[RunningRow]) -> Iterator[RunningRow]:
        loaded = self._model()
        progress.planned(sum(len(row.ids) for row in rows))
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

    def _run_alone(self, rows: Sequence[RunningRow]) -> Iterator[RunningRow]:
        loaded = self._model()
        with self.usual_attention():
            for row in rows:
                try:
                    yield from by_generate([row], loaded, Batches(loaded.model, 1), Lengths.apart)
                except EvalkitError:
                    raise
                except Exception as error:
                    raise EvalkitError(
                        f"the model cannot answer this prompt: {error_line(error)}",
                        where=f"request {row.request.id}, {len(row.ids)} prompt tokens",
                        fix="see whether transformers' own `generate` answers it; finished samples are kept",
                    ) from error

    @contextmanager
    def usual_attention(self) -> Iterator[None]:
        """Uses transformers' own attention instead of the packed one while the block runs."""
        loaded = self._model()
        if self.way is not PACKED:
            yield
            return
        loaded.model.set_attn_implementation(loaded.attention)
        try:
            yield
        finally:
            loaded.model.set_attn_implementation(NAME)

    def _run_together(self, rows: Sequence[RunningRow]) -> Iterator[RunningRow]:
        if self.way is ALONE:
            yield from self._run_alone(rows)
            return
        yielded: set[int] = set()
        try:
            loaded = self._model()
            if self.way is PACKED:
                done = Pool(loaded, self._layers, self._limits, self._conversations).run(rows)
            else:
                done = self.way.run(rows, loaded, self._batches)
            for row in done:
                yielded.add(id(row))
                yield row
        except EvalkitError:
            raise
        except Exception as error:
            # The probe is small: longer prompts may fail in batches and succeed one at a time.
            left = [row for row in rows if id(row) not in yielded]
            log.warning(
                "%s failed (%s): %d requests run one at a time", self.way.name, error_line(error), len(left)
            )
            for row in left:
                row.restart()
            yield from self._run_alone(left)

    def describe(self) -> dict[str, Any]:
        """See `Engine.describe`."""
        loaded = self._model()
        packed = self.way is PACKED
        unused = {"count": len(loaded.unused), "names": list(loaded.unused[:_MOST_RECORDED])}
        on_gpu = loaded.device.type == "cuda"
        return {
            "engine": "local",
            "device": str(loaded.device),
            "device_name": torch.cuda.get_device_name(loaded.device) if on_gpu else loaded.device.type,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "attention": "packed" if packed else loaded.attention,
            "prefix": self.way.prefix.value,
            "way": self.way.name,
            "ruled_out": self._ruled_out,
            "rows": self._limits.rows if packed else self._batches.rows,
            "threads": torch.get_num_threads(),
            "linear_layers": linears.describe(loaded.model),
            "generation_config": loaded.generation,
            **({"unused_weights": unused} if loaded.unused else {}),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def close(self) -> None:
        """See `Engine.close`."""
        self._loaded = None
        gc.collect()
        give_back_freed()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _model(self) -> LoadedModel:
        assert self._loaded is not None, "the engine is closed"
        return self._loaded
