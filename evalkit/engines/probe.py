"""Which way through the model gives the answers of one prompt at a time: found by trying each.

What a model allows cannot be read off its configuration: recurrent layers, windows, sinks and
positions each mind something else. So every way runs a small case as it would run the real one
(prompts of different lengths with and without a shared prefix, more rows than places, rows that end
before others, more tokens than a window), and its logits are compared with those of transformers'
`generate` on one prompt at a time.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalkit.config import PrefixMode
from evalkit.engines import attention, plain
from evalkit.engines.batches import Batches
from evalkit.engines.cache import LayerShape
from evalkit.engines.conversations import Conversations
from evalkit.engines.decoding import CompletionDecoder
from evalkit.engines.encoding import Encoded
from evalkit.engines.loading import LoadedModel
from evalkit.engines.memory import Limits
from evalkit.engines.packing import Section
from evalkit.engines.pool import Pool
from evalkit.engines.rows import Row
from evalkit.engines.ways import ALONE, LADDER, PACKED, Way
from evalkit.types import Request, Sampling

log = logging.getLogger(__name__)

_RECORDER = "evalkit_recorder"
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Relative error of the logits: rounding stays far below, a wrong mask, state or position above.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Two best logits this close in the reference may change places by rounding.
_TIE = 1e-4
_PREFIX = 21
# (tokens after the prefix, new tokens): of two equal prompts one ends before the other.
_SHARING = ((9, 3), (9, 1), (4, 2), (1, 3))
_OTHERS = ((6, 2), (6, 3))
# Fewer places than rows, so that rows take the places of those that have ended.
_PLACES = 3
# How far back a layer looks, by the names configurations and modules give it; made `_SMALL` for the
# probe, so that it has more tokens than that.
_WINDOW = re.compile(r"(sliding_window|window_size|attention_window|attention_chunk_size|index_topk)$")
_SMALL = 12


@dataclass(frozen=True)
class Choice:
    """The way that was found.

    Attributes:
        way: the fastest whose answers are those of one prompt at a time.
        layers: shapes of the attention layers, for the packed way.
        ruled_out: faster ways by name, with the reason.
        seconds: what the probe took.
    """

    way: Way
    layers: list[LayerShape]
    ruled_out: dict[str, str]
    seconds: float


def choose_way(loaded: LoadedModel, wanted: PrefixMode, rows: int | None) -> Choice | str:
    """The fastest way that serves a model, or why none of those that `wanted` allows does.

    Leaves the model set to packed attention when that is the way, else as it was.

    Args:
        loaded: the model.
        wanted: restricts the ways; `auto` allows all.
        rows: most rows at a time, where it is given.
    """
    started = time.monotonic()
    ladder = [way for way in LADDER if wanted in (PrefixMode.auto, way.prefix)]
    if wanted is PrefixMode.off and rows == 1:
        ladder = [ALONE]
    layers: list[LayerShape] = []
    ruled_out: dict[str, str] = {}
    probe = _Probe(loaded) if ladder != [ALONE] else None
    for way in ladder:
        problem = probe.problem(way) if probe and way is not ALONE else None
        if problem is None and way is PACKED:
            try:
                # The probe's windows were small ones.
                layers = _record(loaded.model)
                loaded.model.set_attn_implementation(attention.NAME)
            except Exception as error:
                problem = _reason(error)
        if problem is None:
            return Choice(way, layers, ruled_out, time.monotonic() - started)
        log.info("not %s: %s", way.name, problem)
        ruled_out[way.name] = problem
    return "; ".join(dict.fromkeys(ruled_out.values()))


class _Rehearsed(Row):
    """A row whose new tokens are given beforehand; it keeps the logits they should be chosen from."""

    def __init__(self, name: str, ids: list[int], given: list[int], decoder: CompletionDecoder) -> None:
        request = Request(name, "", max_new_tokens=len(given))
        super().__init__(Encoded(request, ids, frozenset()), decoder, Sampling())
        self.given = given


class _Pool(Pool):
    # A seam of its own: whoever watches the pool's passes sees those of the requests only.
    def _forward(self, sections: Sequence[Section]) -> Tensor:
        return attention.forward(self._loaded.model, sections, self._slots, longest_run=self._longest_run)


class _Probe:
    """The small case, and what one prompt at a time makes of it."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._tolerance = _TOLERANCE.get(loaded.dtype, _TOLERANCE[torch.bfloat16])
        self._decoder = CompletionDecoder(loaded.tokenizer)
        self._windows = self._small = False
        self._expected: list[Tensor] = []
        self._problem: str | None = None
        try:
            self._prompts = _prompts(loaded)
            self._expected = self._reference()
        except Exception as error:
            self._problem = f"one prompt at a time fails: {_reason(error)}"

    def problem(self, way: Way) -> str | None:
        """Why a way does not serve the model; None when it does."""
        if self._problem is not None:
            return self._problem
        if way.pads and self._windows and not self._small:
            return "a window that is longer than the probe"
        before = self._loaded.model.config._attn_implementation
        try:
            with _small_windows(self._loaded.model):
                return self._difference(self._packed() if way is PACKED else self._batched(way))
        except Exception as error:
            # Whatever a model does not support, it says in its own way; every way has the same answer.
            return _reason(error)
        finally:
            _restore(self._loaded.model, before)

    def _rows(self) -> list[_Rehearsed]:
        return [
            _Rehearsed(f"probe {index}", ids, given, self._decoder)
            for index, (ids, given) in enumerate(self._prompts)
        ]

    def _reference(self) -> list[Tensor]:
        with _small_windows(self._loaded.model) as windows:
            self._windows = windows
            expected = self._alone(self._rows())
        if windows:
            # A window that is built into the model when it is made does not become smaller.
            usual = self._alone(self._rows()[:1])[0]
            self._small = _error([usual], expected[:1]) > self._tolerance
        return expected

    def _alone(self, rows: list[_Rehearsed]) -> list[Tensor]:
        for _ in plain.generate(rows, self._loaded, Batches(self._loaded.model, 1)):
            pass
        return [torch.stack(row.offered) for row in rows]

    def _packed(self) -> list[Tensor]:
        model = self._loaded.model
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        if kinds - _KNOWN_LAYERS:
            named = ", ".join(sorted(map(str, kinds - _KNOWN_LAYERS)))
            raise attention.UnsupportedAttentionError(f"layers of other kinds: {named}")
        attention.register()
        layers = _record(model)
        if "sliding_attention" in kinds and not {layer.window for layer in layers} - {None}:
            raise attention.UnsupportedAttentionError("a sliding window that attention is not told of")
        model.set_attn_implementation(attention.NAME)
        rows = self._rows()
        for _ in _Pool(self._loaded, layers, Limits(layers, _PLACES), Conversations(0)).run(rows):
            pass
        return [torch.stack(row.offered) for row in rows]

    def _batched(self, way: Way) -> list[Tensor]:
        rows = self._rows()
        for _ in way.run(rows, self._loaded, Batches(self._loaded.model, 1 if way.alone else _PLACES)):
            pass
        return [torch.stack(row.offered) for row in rows]

    def _difference(self, found: list[Tensor]) -> str | None:
        error = _error(found, self._expected)
        if not error <= self._tolerance:
            return f"its logits differ by {error:.2g}"
        if self._loaded.dtype is torch.float32 and not _same_choice(found, self._expected):
            return "it chooses other tokens"
        return None


def _error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The relative error of the logits, infinite where only one side is finite."""
    one, other = torch.cat(found), torch.cat(expected)
    finite = other.isfinite()
    if not torch.equal(one.isfinite(), finite):
        return float("inf")
    one, other = one.masked_fill(~finite, 0.0), other.masked_fill(~finite, 0.0)
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())


def _same_choice(found: list[Tensor], expected: list[Tensor]) -> bool:
    one, other = torch.cat(found), torch.cat(expected)
    best = other.topk(2, dim=-1).values
    clear = best[:, 0] - best[:, 1] > _TIE
    return bool((one.argmax(dim=-1) == other.argmax(dim=-1))[clear].all())


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _restore(model: Any, implementation: str) -> None:
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)


def _record(model: Any) -> list[LayerShape]:
    """Runs two tokens through the model and notes what each layer hands to its attention."""
    from transformers import AttentionInterface

    seen: dict[int, LayerShape] = {}

    def record(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        seen[module.layer_idx] = LayerShape(
            heads=key.shape[1],
            key_dim=key.shape[3],
            value_dim=value.shape[3],
            window=options.get("sliding_window"),
            device=key.device,
            dtype=key.dtype,
        )
        return query.new_zeros(*query.shape[:3], value.shape[3]).transpose(1, 2), None

    AttentionInterface.register(_RECORDER, record)
    model.set_attn_implementation(_RECORDER)
    with torch.inference_mode():
        device = model.get_input_embeddings().weight.device
        ids = torch.tensor([_ordinary_tokens(model.config, 2, seed=0)], device=device)
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    if sorted(seen) != list(range(len(seen))) or not seen:
        raise attention.UnsupportedAttentionError("not every layer asks for its attention by name")
    return [seen[index] for index in range(len(seen))]


def _prompts(loaded: LoadedModel) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt and of its completion."""
    longest = max(own + new for own, new in _SHARING)
    room = loaded.context if loaded.learned_positions and loaded.context else _PREFIX + longest
    prefix = _ordinary_tokens(loaded.model.config, max(1, min(_PREFIX, room - longest)), seed=0)
    prompts = []
    shapes = [(prefix, *shape) for shape in _SHARING] + [([], *shape) for shape in _OTHERS]
    for seed, (begin, own, new) in enumerate(shapes, start=1):
        ids = _ordinary_tokens(loaded.model.config, own + new, seed)
        prompts.append((begin + ids[:own], ids[own:]))
    return prompts


def _ordinary_tokens(config: Any, count: int, seed: int) -> list[int]:
    """Random ids without those that configurations give a meaning, as padding or places of images."""
    text = config.get_text_config()
    special: set[int] = set()
    for settings in (config.to_dict(), text.to_dict()):
        for name, value in settings.items():
            if re.search(r"token_(id|index)", name):
                special.update(one for one in (value if isinstance(value, list) else [value]) if one)
    size = text.vocab_size
    ordinary = [token for token in range(1, size) if token not in special] or list(range(size))
    generator = torch.Generator().manual_seed(seed)
    return [ordinary[i] for i in torch.randint(0, len(ordinary), (count,), generator=generator).tolist()]


@contextmanager
def _small_windows(model: Any) -> Iterator[bool]:
    """Makes the windows of attention small while the block runs; says whether the model has longer ones."""
    changed: list[tuple[Any, str, int]] = []
    try:
        for owner in (model.config, model.config.get_text_config(), *model.modules()):
            for name, value in list(vars(owner).items()):
                if type(value) is int and value > _SMALL and _WINDOW.search(name):
                    changed.append((owner, name, value))
                    setattr(owner, name, _SMALL)
        yield bool(changed)
    finally:
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)
