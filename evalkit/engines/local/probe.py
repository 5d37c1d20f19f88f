"""The ways rows can go through a model, and the choice of the fastest that keeps the answers exact.

What a model allows cannot be read from its configuration: recurrent layers, windows, sinks and
positions each need something else. So every way runs a small case as it would run a real one (prompts
of different lengths with and without a shared prefix, more rows than slots, rows that end before
others, more tokens than a window). Its logits are compared with those of transformers' `generate` on
one prompt at a time. So are the linear layers, which run on faster products where these agree.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evalkit.core.config import PrefixMode
from evalkit.core.types import Request, Sampling
from evalkit.engines.local import attention, linears
from evalkit.engines.local.fallback import Batches, Lengths, by_generate, with_shared_prefix
from evalkit.engines.local.loading import LoadedModel
from evalkit.engines.local.memory import Limits
from evalkit.engines.local.passes import LayerShape, Section
from evalkit.engines.local.pool import Conversations, Pool
from evalkit.engines.local.running_rows import RunningRow
from evalkit.engines.local.tokens import CompletionDecoder, Encoded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """One way to run rows through a model.

    Attributes:
        name: its name in the log and in environment.json.
        prefix: what it does with tokens that prompts share; `off` is transformers' own `generate`.
        lengths: how prompts of different lengths share a batch; no matter for packed passes.
        alone: one row at a time.
    """

    name: str
    prefix: PrefixMode
    lengths: Lengths = Lengths.apart
    alone: bool = False

    def run(self, rows: Sequence[RunningRow], loaded: LoadedModel, batches: Batches) -> Iterator[RunningRow]:
        """Finishes the rows and yields them; not for `PACKED`, which needs a `Pool`."""
        generate = by_generate if self.prefix is PrefixMode.off else with_shared_prefix
        return generate(rows, loaded, batches, self.lengths)


PACKED = Way("packed", PrefixMode.merged)
ALONE = Way("one prompt at a time by generate", PrefixMode.off, alone=True)
LADDER = (
    PACKED,
    Way("padded batches after a shared prefix", PrefixMode.expanded, Lengths.padded),
    Way("batches joined after their prompts", PrefixMode.expanded, Lengths.joined),
    Way("padded batches by generate", PrefixMode.off, Lengths.padded),
    Way("batches of one length after a shared prefix", PrefixMode.expanded),
    Way("one row at a time after a shared prefix", PrefixMode.expanded, alone=True),
    Way("batches of one length by generate", PrefixMode.off),
    ALONE,
)

FAST_LINEARS = "linear layers on oneDNN"

_RECORDER = "evalkit_recorder"
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Relative error of the logits: rounding stays far below, a wrong mask, state or position above.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Two best logits this close in the reference may change places by rounding.
_TIE = 1e-4


class _Shape(NamedTuple):
    """The prompts of a case; of two with one length one ends before the other.

    Attributes:
        prompts: (tokens of the prefix that it begins with, tokens after them, new tokens) of each.
        alphabet: how many different tokens there are.
    """

    prompts: tuple[tuple[int, int, int], ...]
    alphabet: int


_QUICK = _Shape(
    ((13, 7, 3), (13, 7, 1), (17, 3, 2), (17, 1, 2), (0, 5, 1), (0, 5, 2)),
    alphabet=1 << 30,
)
# For batches with the model's own attention: repeated tokens make ties, where models select what to
# attend to.
_THOROUGH = _Shape(
    ((32, 16, 4), (32, 16, 2), (32, 9, 5), (32, 2, 3), (0, 12, 4), (0, 12, 6), (0, 40, 3)), alphabet=12
)
# Fewer slots than rows, so that rows take the slots of those that have ended.
_PLACES = 3
# Attributes of configurations and modules that say how far back a layer looks. The probe sets them to
# `_SMALL`, so that its prompts are longer than the window.
_WINDOW = re.compile(r"(sliding_window|window_size|attention_window|attention_chunk_size|index_topk)$")
_SMALL = 8


@dataclass(frozen=True)
class ChosenWay:
    """The chosen way.

    Attributes:
        way: the fastest with the same answers as one prompt at a time.
        layers: shapes of the attention layers, for the packed way.
        ruled_out: faster ways by name, with the reason.
        seconds: duration of the probe.
    """

    way: Way
    layers: list[LayerShape]
    ruled_out: dict[str, str]
    seconds: float


def choose_way(loaded: LoadedModel, wanted: PrefixMode, rows: int | None) -> ChosenWay | str:
    """The fastest way that is exact for a model, or why none that `wanted` allows is.

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
    probe = _Probe(loaded)
    if ladder != [ALONE]:
        probe.speed_up()
    for way in ladder:
        problem = None if way is ALONE else probe.problem(way)
        if problem is not None and (fault := probe.fault_of_linears()):
            ruled_out[FAST_LINEARS] = fault
            problem = probe.problem(way)
        if problem is None:
            if way is PACKED:
                # Again: the windows recorded by the probe were small.
                layers = _set_packed(loaded.model)
            return ChosenWay(way, layers, ruled_out, time.monotonic() - started)
        log.info("not %s: %s", way.name, problem)
        ruled_out[way.name] = problem
    return "; ".join(dict.fromkeys(ruled_out.values()))


class _Rehearsed(RunningRow):
    """A row with given new tokens; it keeps the logits offered for each."""

    def __init__(self, name: str, ids: list[int], given: list[int], decoder: CompletionDecoder) -> None:
        request = Request(name, "", max_new_tokens=len(given))
        super().__init__(Encoded(request, ids, frozenset()), decoder, Sampling())
        self.given = given


class _Pool(Pool):
    # Small prompts, too, share prefixes in levels.
    group_cost = 0

    # Not `pool.forward`, so that counting the passes of a pool does not count those of the probe.
    def _forward(self, sections: Sequence[Section]) -> Tensor:
        return attention.forward(self._loaded.model, sections, self._slots)


class _Case:
    """Prompts of one shape, and the logits of one prompt at a time.

    Attributes:
        windows: whether the model has windows, which were made small.
        small: whether that changed the logits: a window fixed when the model was built does not shrink.
    """

    def __init__(self, loaded: LoadedModel, shape: _Shape) -> None:
        self._loaded = loaded
        self._tolerance = _TOLERANCE.get(loaded.dtype, _TOLERANCE[torch.bfloat16])
        self._decoder = CompletionDecoder(loaded.tokenizer)
        self._prompts = _prompts(loaded, shape)
        with linears.plain(loaded.model):
            with _small_windows(loaded.model) as self.windows:
                self._expected = self._run(ALONE)
            self.small = False
            if self.windows:
                self.small = _largest_error(self._run(ALONE), self._expected) > self._tolerance

    def problem(self, way: Way) -> str | None:
        """How the logits of a way differ; None when they agree. Raises whatever the model raises."""
        with _small_windows(self._loaded.model):
            found = self._run(way)
        exact = self._loaded.dtype is torch.float32
        error = (_largest_error if exact else _error)(found, self._expected)
        if not error <= self._tolerance:
            return f"its logits differ by {error:.2g}"
        if exact and not _same_choice(found, self._expected):
            return "it chooses other tokens"
        return None

    def _run(self, way: Way) -> Tensor:
        """[new tokens of all prompts, vocabulary]: the logits they should be chosen from."""
        loaded = self._loaded
        rows = [
            _Rehearsed(f"probe {index}", ids, given, self._decoder)
            for index, (ids, given) in enumerate(self._prompts)
        ]
        if way is PACKED:
            layers = _set_packed(loaded.model)
            done = _Pool(loaded, layers, Limits(layers, _PLACES), Conversations(0)).run(rows)
        else:
            done = way.run(rows, loaded, Batches(loaded.model, 1 if way.alone else _PLACES))
        for _ in done:
            pass
        return torch.stack([logits for row in rows for logits in row.offered])


class _Probe:
    """Tries ways; cases are made on demand."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._cases: dict[_Shape, _Case | str] = {}
        self._faster = False

    def speed_up(self) -> None:
        """Switches the linear layers to faster products, where a case can be made to hold them against."""
        if not isinstance(self._case(_QUICK), str):
            linears.speed_up(self._loaded.model)
            self._faster = True

    def fault_of_linears(self) -> str | None:
        """Why the faster products are not exact one prompt at a time, and then undoes them."""
        if not self._faster:
            return None
        self._faster = False
        fault = self.problem(ALONE)
        if fault is not None:
            linears.slow_down(self._loaded.model)
        return fault

    def problem(self, way: Way) -> str | None:
        """Why a way is not exact for the model; None when it is."""
        before = self._loaded.model.config._attn_implementation
        try:
            for shape in [_QUICK] if way is PACKED else [_QUICK, _THOROUGH]:
                case = self._case(shape)
                if isinstance(case, str):
                    return case
                if way.lengths is Lengths.padded and case.windows and not case.small:
                    return "a window that is longer than the probe"
                if (problem := case.problem(way)) is not None:
                    return problem
        except Exception as error:
            # Models raise different exceptions for what they do not support.
            return error_line(error)
        finally:
            _restore(self._loaded.model, before)
        return None

    def _case(self, shape: _Shape) -> _Case | str:
        """A case, or why one prompt at a time cannot answer it."""
        if shape not in self._cases:
            try:
                self._cases[shape] = _Case(self._loaded, shape)
            except Exception as error:
                self._cases[shape] = f"one prompt at a time fails in the probe: {error_line(error)}"
        return self._cases[shape]


def _set_packed(model: Any) -> list[LayerShape]:
    """Sets the model to packed attention and gives the shapes of its layers."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if kinds - _KNOWN_LAYERS:
        named = ", ".join(sorted(map(str, kinds - _KNOWN_LAYERS)))
        raise attention.UnsupportedAttentionError(f"layers of other kinds: {named}")
    attention.register()
    layers = _record(model)
    if "sliding_attention" in kinds and not {layer.window for layer in layers} - {None}:
        raise attention.UnsupportedAttentionError("a sliding window that attention is not told of")
    model.set_attn_implementation(attention.NAME)
    return layers


def _error(found: Tensor, expected: Tensor) -> float:
    """The relative error of all logits, infinite where only one side is finite."""
    return float(_difference(found, expected).norm() / expected[expected.isfinite()].norm())


def _largest_error(found: Tensor, expected: Tensor) -> float:
    """The relative error of the token with the largest one."""
    norms = expected.masked_fill(~expected.isfinite(), 0.0).norm(dim=-1)
    return float((_difference(found, expected).norm(dim=-1) / norms).max())


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    # Some models rule tokens out by -inf.
    return (found - expected).masked_fill(found == expected, 0.0)


def _same_choice(found: Tensor, expected: Tensor) -> bool:
    best = expected.topk(2, dim=-1).values
    clear = best[:, 0] - best[:, 1] > _TIE
    return bool((found.argmax(dim=-1) == expected.argmax(dim=-1))[clear].all())


def error_line(error: Exception) -> str:
    """The class of an exception and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _restore(model: Any, implementation: str) -> None:
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)


def _record(model: Any) -> list[LayerShape]:
    """Runs two tokens through the model and records the shapes each layer passes to its attention."""
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
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(_RECORDER, record)
    model.set_attn_implementation(_RECORDER)
    with torch.inference_mode():
        device = model.get_input_embeddings().weight.device
        ids = torch.tensor([_ordinary_tokens(model.config, 2, seed=0)], device=device)
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    if sorted(seen) != list(range(len(seen))) or not seen:
        raise attention.UnsupportedAttentionError("not every layer asks for its attention by name")
    return [seen[index] for index in range(len(seen))]


def _prompts(loaded: LoadedModel, shape: _Shape) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt and of its completion, no longer than the positions the model has."""
    room = loaded.context if loaded.learned_positions and loaded.context else None
    prompts = []
    for seed, (shared, own, new) in enumerate(shape.prompts, start=1):
        first = _ordinary_tokens(loaded.model.config, shared, 0, shape.alphabet)
        rest = _ordinary_tokens(loaded.model.config, own + new, seed, shape.alphabet)
        ids = first + rest[:own]
        prompts.append((ids if room is None else ids[: max(1, room - new)], rest[own:]))
    return prompts


def _ordinary_tokens(config: Any, count: int, seed: int, alphabet: int = 1 << 30) -> list[int]:
    """Random ids without those that configurations give a meaning, such as padding or image tokens."""
    text = config.get_text_config()
    special: set[int] = set()
    for settings in (config.to_dict(), text.to_dict()):
        for name, value in settings.items():
            if re.search(r"token_(id|index)", name):
                listed = value if isinstance(value, list) else [value]
                special.update(one for one in listed if isinstance(one, int))
    size = text.vocab_size
    ordinary = [token for token in range(size) if token not in special] or list(range(size))
    # Spread over the vocabulary: neighbouring ids may be alike.
    ordinary = ordinary[:: max(1, len(ordinary) // alphabet)]
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
