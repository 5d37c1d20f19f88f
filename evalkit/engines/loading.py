"""Model and tokenizer into memory, on the device and in the precision asked for."""

import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.config import Attention, Config, Dtype, RandomShape
from evalkit.engines.chat_template import choose_template
from evalkit.errors import EvalkitError, InputError
from evalkit.models import ResolvedModel
from evalkit.models.files import refuse_foreign_kernels

log = logging.getLogger(__name__)


@dataclass
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: the transformers model, in eval mode; its own generation_config is neutral.
        tokenizer: its tokenizer.
        device: where token ids go in.
        dtype: of the weights.
        eos: ids that end a text completion: the tokenizer's EOS, else the model's.
        chat_eos: ids that end a chat answer: the tokenizer's and the model's.
        context: positions the model was made for; None when it does not say.
        learned_positions: whether it has no positions beyond these (rotary and relative ones go on).
        lone_from: sequences longer than this change the model's rotary frequencies, so they must run
            alone; None when no length does.
        generation: what the model's own generation_config sets apart from special tokens.
        attention: the attention kernel transformers uses.
    """

    model: Any
    tokenizer: Any
    device: Any
    dtype: Any
    eos: frozenset[int]
    chat_eos: frozenset[int]
    context: int | None
    learned_positions: bool
    lone_from: int | None
    generation: dict[str, Any]
    attention: str


def load(config: Config, resolved: ResolvedModel) -> LoadedModel:
    """Loads the model of `resolved` as `config.engine` and `config.dtype` say.

    Raises:
        InputError: a device that is not there, flash-attn that is not installed, `device_map`
            without accelerate, a vocabulary too small for the tokenizer.
        EvalkitError: transformers cannot load the files, or they do not fit into memory.
    """
    _quiet_unless_watched()
    device = choose_device(config.engine.device)
    dtype = choose_dtype(config.dtype, device)
    attention = _choose_attention(config.engine.attention, device, dtype)
    if config.engine.threads:
        import torch

        torch.set_num_threads(config.engine.threads)
    tokenizer = load_tokenizer(resolved)
    model = _load_weights(config, resolved, tokenizer, device, dtype, attention)
    used = model.config._attn_implementation
    log.info("model: %s on %s in %s, attention %s", resolved.name, device, dtype, used)
    generation = _take_generation_config(model)
    own_eos = as_ids(generation.pop("eos_token_id", None))
    tokenizer_eos = as_ids(tokenizer.eos_token_id)
    if not (tokenizer_eos or own_eos):
        log.warning("the model has no EOS token: completions end at stop strings or max_new_tokens only")
    text_config = model.config.get_text_config()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=model.get_input_embeddings().weight.device,
        dtype=dtype,
        eos=tokenizer_eos or own_eos,
        chat_eos=tokenizer_eos | own_eos,
        context=getattr(text_config, "max_position_embeddings", None),
        learned_positions=_has_learned_positions(model),
        lone_from=_length_of_fixed_frequencies(text_config),
        generation=generation,
        attention=used,
    )


def _quiet_unless_watched() -> None:
    """No bars of transformers' own in a log file."""
    if not sys.stderr.isatty():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


def _has_learned_positions(model: Any) -> bool:
    import torch

    return any(
        isinstance(module, torch.nn.Embedding) and re.search(r"wpe|position", name)
        for name, module in model.named_modules()
    )


def _length_of_fixed_frequencies(text_config: Any) -> int | None:
    rope = getattr(text_config, "rope_parameters", None) or {}
    # Some models have one set of parameters for each kind of layer.
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            original = parameters.get("original_max_position_embeddings")
            return int(original or text_config.max_position_embeddings)
    return None


def choose_device(name: str) -> Any:
    """The torch device for `engine.device`: `auto` is the first GPU, else the CPU.

    Raises:
        InputError: a device torch does not know or this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"unknown device {name!r}", where="option engine.device", fix="engine.device=auto|cpu|cuda|cuda:1"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"this machine has {torch.cuda.device_count()} CUDA devices",
            where=f"engine.device={name}",
            fix="engine.device=auto",
        )
    return device


def choose_dtype(dtype: Dtype, device: Any) -> Any:
    """The torch dtype for `dtype`: `auto` is bfloat16 on a GPU, float32 on a CPU."""
    import torch

    if dtype is Dtype.auto:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype.value)


def _choose_attention(attention: Attention, device: Any, dtype: Any) -> str | None:
    """transformers' name of the kernel; None leaves the choice to transformers."""
    import importlib.util

    import torch

    problems = [
        problem
        for problem, there in (
            ("flash-attn is not installed", importlib.util.find_spec("flash_attn") is not None),
            ("it runs on CUDA only", device.type == "cuda"),
            ("it computes in bfloat16 and float16 only", dtype in (torch.bfloat16, torch.float16)),
        )
        if not there
    ]
    if attention is Attention.flash and problems:
        raise InputError(
            f"flash attention cannot be used: {'; '.join(problems)}",
            where="option engine.attention",
            fix="engine.attention=auto",
        )
    if attention is Attention.flash or (attention is Attention.auto and not problems):
        return "flash_attention_2"
    if attention is Attention.auto:
        log.info("attention: not flash-attn 2 (%s)", "; ".join(problems))
        return None
    return str(attention.value)


def load_tokenizer(resolved: ResolvedModel) -> Any:
    """The tokenizer of a resolved model, with the chat template the options may replace.

    Raises:
        InputError: the model is a server's, and its tokenizer is not here.
        EvalkitError: the tokenizer's files cannot be read.
    """
    folder = resolved.tokenizer or resolved.path
    if not resolved.has_tokenizer:
        what, fix = (
            "the model's tokenizer is needed, and it is not here",
            "model.tokenizer=FOLDER_OR_HUB_NAME",
        )
        raise InputError(what, where=resolved.name, fix=fix)
    if folder is None:
        from evalkit.engines.random_model import byte_tokenizer

        tokenizer = byte_tokenizer()
    else:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=resolved.config.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise EvalkitError(
                f"the tokenizer cannot be loaded: {_first_line(error)}", where=folder
            ) from error
    tokenizer.chat_template = choose_template(
        resolved.config, folder, getattr(tokenizer, "chat_template", None)
    )
    return tokenizer


def _load_weights(
    config: Config, resolved: ResolvedModel, tokenizer: Any, device: Any, dtype: Any, attention: str | None
) -> Any:
    import torch

    try:
        if resolved.path is None:
            assert resolved.config.random is not None
            return _random(resolved.config.random, tokenizer, attention).to(device=device, dtype=dtype).eval()
        return _pretrained(config, resolved.path, resolved, device, dtype, attention)
    except torch.cuda.OutOfMemoryError:
        raise EvalkitError(
            f"the weights do not fit into the memory of {device}",
            where=resolved.name,
            fix="engine.device_map=auto spreads them over all GPUs and the CPU",
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EvalkitError(
            f"the model cannot be loaded: {_first_line(error)}", where=resolved.path or resolved.name
        ) from error


def _pretrained(
    config: Config, path: Path, resolved: ResolvedModel, device: Any, dtype: Any, attention: str | None
) -> Any:
    from transformers import AutoModelForCausalLM

    if not resolved.config.trust_remote_code:
        refuse_foreign_kernels(path)
    options: dict[str, Any] = {}
    if config.engine.device_map is not None:
        _need_accelerate()
        options["device_map"] = config.engine.device_map
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=attention,
        trust_remote_code=resolved.config.trust_remote_code,
        local_files_only=True,
        use_safetensors=True,
        **options,
    )
    if config.engine.device_map is None:
        model.to(device)
    return model.eval()


def _need_accelerate() -> None:
    import importlib.util

    if importlib.util.find_spec("accelerate") is None:
        raise InputError(
            "spreading a model over devices needs accelerate",
            where="option engine.device_map",
            fix="pip install 'evalkit[gpu]'",
        )


def _random(shape: RandomShape, tokenizer: Any, attention: str | None) -> Any:
    from evalkit.engines.random_model import random_model

    if shape.vocab < len(tokenizer):
        raise InputError(
            f"a vocabulary of {shape.vocab} cannot hold the tokenizer's {len(tokenizer)} tokens",
            where="option model.random.vocab",
            fix=f"model.random.vocab={len(tokenizer)}",
        )
    return random_model(shape, tokenizer, attention)


def _take_generation_config(model: Any) -> dict[str, Any]:
    # `generate` would fill every option left unset from it; the protocol follows it only when told to.
    from transformers import GenerationConfig

    own = model.generation_config.to_diff_dict() if model.generation_config is not None else {}
    model.generation_config = GenerationConfig()
    for key in ("transformers_version", "_from_model_config", "bos_token_id", "pad_token_id", "use_cache"):
        own.pop(key, None)
    return dict(own)


def as_ids(value: int | list[int] | None) -> frozenset[int]:
    """Token ids as configurations give them: one, several or none."""
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
