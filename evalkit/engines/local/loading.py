"""Loads a model into memory: device, precision, attention kernel, and checks of what was loaded."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core.config import Attention, Dtype, EngineConfig, RandomShape
from evalkit.core.errors import EvalkitError, InputError, foreign, is_out_of_memory
from evalkit.core.logs import transformers_to
from evalkit.core.text import listed
from evalkit.engines.local.memory import keep_freed
from evalkit.engines.local.tokenizer import load_tokenizer, loading_fix, refuse_special_ids
from evalkit.engines.local.tokens import EndIds, end_ids
from evalkit.engines.models import ResolvedModel
from evalkit.engines.models.folder_files import NOT_GENERATION, refuse_foreign_kernels
from evalkit.engines.models.whole import check_report, check_whole, not_causal, refuse_quantised

log = logging.getLogger(__name__)

# A weight that transformers' report could not convert, and terminal colours in that report.
_CONVERSION = re.compile(r"^(\S.*?) +\| CONVERSION", re.MULTILINE)
# The trial of `_refuse_two_sided` uses ids below this.
_TRIED = 9
# Allowed change of a token's logits, relative to the largest, when later tokens change.
_CAUSAL = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 4e-3}


@dataclass
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: the transformers model, in eval mode; its own generation_config is neutral.
        tokenizer: its tokenizer.
        device: where token ids go in.
        dtype: of the weights.
        ends: ids that end completions.
        context: positions of the model; None when its configuration does not say.
        learned_positions: whether there are no positions beyond these (rotary and relative ones continue).
        lone_from: sequences longer than this change the model's rotary frequencies, so they must run
            alone; None when no length does.
        generation: what the model's own generation_config sets, without special tokens.
        attention: the attention kernel transformers uses.
        embeddings: rows of the input embeddings; every token id is smaller.
        unused: names of weights in the files that the model has no place for.
    """

    model: Any
    tokenizer: Any
    device: Any
    dtype: Any
    ends: EndIds
    context: int | None
    learned_positions: bool
    lone_from: int | None
    generation: dict[str, Any]
    attention: str
    embeddings: int
    unused: tuple[str, ...]


def load(resolved: ResolvedModel, engine: EngineConfig, dtype: Dtype) -> LoadedModel:
    """Loads a model onto a device, in a precision and with an attention kernel.

    Args:
        resolved: the model's files, or its random shape.
        engine: device, device_map, attention and threads.
        dtype: `auto` is bfloat16 on a GPU, float32 on a CPU.

    Raises:
        InputError: a device that is not there, flash-attn that is not installed, `device_map`
            without accelerate, a vocabulary too small for the tokenizer; files that transformers
            cannot load or that lack weights, a model that is not causal.
        EvalkitError: the weights do not fit into memory.
    """
    device = choose_device(engine.device)
    precision = choose_dtype(dtype, device)
    attention = _choose_attention(engine.attention, device, precision)
    if engine.threads:
        import torch

        torch.set_num_threads(engine.threads)
    check_files(resolved)
    if device.type == "cpu":
        keep_freed()
    tokenizer = load_tokenizer(resolved)
    model, unused = _load_weights(
        resolved, tokenizer, device, precision, attention, device_map=engine.device_map
    )
    embeddings = model.get_input_embeddings().weight.shape[0]
    refuse_special_ids(tokenizer, embeddings, resolved.path or resolved.name)
    used = model.config._attn_implementation
    log.info("model: %s on %s in %s, attention %s", resolved.name, device, precision, used)
    generation = _take_generation_config(model)
    ends = end_ids(tokenizer, generation.pop("eos_token_id", None))
    if not ends.text:
        log.warning("the model has no EOS token: completions end at stop strings or max_new_tokens only")
    text_config = model.config.get_text_config()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=model.get_input_embeddings().weight.device,
        dtype=precision,
        ends=ends,
        context=getattr(text_config, "max_position_embeddings", None),
        learned_positions=_has_learned_positions(model),
        lone_from=_length_of_fixed_frequencies(text_config),
        generation=generation,
        attention=used,
        embeddings=embeddings,
        unused=unused,
    )


def _has_learned_positions(model: Any) -> bool:
    import torch

    return any(
        isinstance(module, torch.nn.Embedding) and re.search(r"wpe|position", name)
        for name, module in model.named_modules()
    )


def _length_of_fixed_frequencies(text_config: Any) -> int | None:
    rope = getattr(text_config, "rope_parameters", None) or {}
    # Some models have a set of parameters for each kind of layer.
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
    """transformers' name for the kernel; None leaves the choice to transformers."""
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


def _load_weights(
    resolved: ResolvedModel, tokenizer: Any, device: Any, dtype: Any, attention: str | None, device_map: Any
) -> tuple[Any, tuple[str, ...]]:
    """The model in eval mode on its device, and the names of weights that it has no place for."""
    try:
        if resolved.path is None:
            assert resolved.config.random is not None
            random = _random(resolved.config.random, tokenizer, attention)
            return random.to(device=device, dtype=dtype).eval(), ()
        return _pretrained(
            resolved.path, device, dtype, attention, device_map, remote=resolved.config.trust_remote_code
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise EvalkitError(
            f"the weights do not fit into the memory of {device}",
            where=resolved.name,
            fix="engine.device_map=auto spreads them over all GPUs and the CPU",
        ) from None


def check_files(resolved: ResolvedModel, *, by_vllm: bool = False) -> None:
    """Refuses a model's folder before loading: damaged files, foreign kernels, other kinds of models.

    `by_vllm`: vLLM loads it, which finds the rule of a quantisation in more places.

    Raises:
        InputError: names the file.
    """
    if resolved.path is None:
        return
    with foreign("the model's files cannot be read", where=resolved.path):
        check_whole(resolved.path)
        refuse_quantised(resolved.path, by_vllm=by_vllm)
    remote = resolved.config.trust_remote_code
    if not remote:
        refuse_foreign_kernels(resolved.path)
    path = resolved.path / "config.json"
    with foreign("the configuration cannot be used", where=path, fix=loading_fix(resolved.path, remote)):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(
            resolved.path, trust_remote_code=resolved.config.trust_remote_code, local_files_only=True
        )
        _refuse_kind(config, path)


def _pretrained(
    path: Path, device: Any, dtype: Any, attention: str | None, device_map: Any, *, remote: bool
) -> tuple[Any, tuple[str, ...]]:
    options: dict[str, Any] = {}
    if device_map is not None:
        _need_accelerate()
        options["device_map"] = device_map
    with (
        foreign("the model cannot be loaded", where=path, fix=loading_fix(path, remote)),
        transformers_to(log) as lines,
    ):
        from transformers import AutoModelForCausalLM

        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=remote,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                # The report then names weights of other shapes.
                ignore_mismatched_sizes=True,
                **options,
            )
        except RuntimeError as error:
            if not is_out_of_memory(error) and (names := _CONVERSION.findall("\n".join(lines))):
                raise InputError(
                    f"{len(names)} weights cannot be put together from those in the files: {listed(names)}",
                    where=path,
                    fix="take the whole checkpoint of this very model; run.log has the details",
                ) from error
            raise
        unused = check_report(report, path)
        parameters = {name for name, weight in model.named_parameters() if weight.is_floating_point()}
        refuse_quantised(path, parameters, unused)
        if device_map is None:
            model.to(device)
        model.eval()
    _refuse_two_sided(model, path)
    if unused:
        log.warning(
            "%d weights in the files are not used, the model has no place for them: %s",
            len(unused),
            listed(unused),
        )
    return model, unused


def _refuse_kind(config: Any, path: Path) -> None:
    """Refuses what transformers would load wrongly: no causal class, unknown quantisation."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not own and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise not_causal(f"transformers has none for model_type {config.model_type}", path)
    places = (config, config.get_text_config(decoder=True))
    quantised = next((rule for one in places if (rule := getattr(one, "quantization_config", None))), None)
    if isinstance(quantised, dict):
        method = quantised.get("quant_method")
        bits = quantised.get("load_in_8bit") or quantised.get("load_in_4bit")
        # transformers only warns and loads the packed numbers as weights.
        if not bits and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            raise InputError(
                f"transformers {transformers.__version__} does not know the quantisation {method!r}"
                if method
                else "the quantisation has no name (quant_method)",
                where=f"{path}, quantization_config",
                fix="take the model without quantisation, a newer transformers, or a server that knows it",
            )


def _refuse_two_sided(model: Any, where: Path) -> None:
    """Refuses a model whose logits depend on later tokens, as in an encoder."""
    import torch

    embeddings = model.get_input_embeddings().weight
    device = embeddings.device
    if len(embeddings) < _TRIED:
        return
    rows = torch.tensor([[3, 4, 5, 6], [3, 4, 7, 8]], device=device)
    try:
        with torch.inference_mode():
            first, second = (model(row[None], use_cache=False).logits[0, :2].float() for row in rows)
    except Exception as error:
        # A model that needs more than ids fails when it generates.
        log.info("whether the model is causal was not tried: %s", error)
        return
    limit = _CAUSAL.get(str(model.dtype).removeprefix("torch."), _CAUSAL["bfloat16"])
    if float((first - second).abs().max()) > limit * max(1e-6, float(first.abs().max())):
        raise not_causal(f"{type(model).__name__} looks at the tokens behind the one it answers", where)


def _need_accelerate() -> None:
    import importlib.util

    if importlib.util.find_spec("accelerate") is None:
        raise InputError(
            "spreading a model over devices needs accelerate",
            where="option engine.device_map",
            fix="pip install 'evalkit[gpu]'",
        )


def _random(shape: RandomShape, tokenizer: Any, attention: str | None) -> Any:
    from evalkit.engines.local.random_model import random_model

    if shape.vocab < len(tokenizer):
        raise InputError(
            f"a vocabulary of {shape.vocab} cannot hold the tokenizer's {len(tokenizer)} tokens",
            where="option model.random.vocab",
            fix=f"model.random.vocab={len(tokenizer)}",
        )
    return random_model(shape, tokenizer, attention)


def _take_generation_config(model: Any) -> dict[str, Any]:
    # `generate` fills unset options from it; the protocol follows it only with generation.from_model.
    from transformers import GenerationConfig

    own = model.generation_config.to_diff_dict() if model.generation_config is not None else {}
    model.generation_config = GenerationConfig()
    return {key: value for key, value in own.items() if key not in NOT_GENERATION}
