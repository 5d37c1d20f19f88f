"""Model and tokenizer into memory, on the device and in the precision asked for."""

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.core.config import Attention, Config, Dtype, RandomShape
from evalkit.core.errors import EvalkitError, InputError, foreign, is_out_of_memory
from evalkit.engines.local.chat_template import choose_template
from evalkit.engines.local.pieces import as_in_the_file
from evalkit.engines.models import ResolvedModel
from evalkit.engines.models.files import refuse_foreign_kernels
from evalkit.engines.models.whole import check_report, check_small_files, check_whole, not_causal

if TYPE_CHECKING:
    from evalkit.engines.local.encoding import Encoded

log = logging.getLogger(__name__)

# A weight in transformers' report that it could not convert; colours of a terminal in its words.
_CONVERSION = re.compile(r"^(\S.*?) +\| CONVERSION", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OWN_TOKENIZER = "model.tokenizer=FOLDER_OR_HUB_NAME with the tokenizer this model was trained with"
_MOST_NAMED = 3
# Ids below this are in the trial of `_refuse_two_sided`.
_TRIED = 9
# How far the logits of a token may move, relative to the largest, when later tokens change.
_CAUSAL = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 4e-3}


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
        embeddings: rows of the input embeddings: every token id is smaller.
        unused: names of weights in the files that the model has no place for.
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
    embeddings: int
    unused: tuple[str, ...]


def load(config: Config, resolved: ResolvedModel) -> LoadedModel:
    """Loads the model of `resolved` as `config.engine` and `config.dtype` say.

    Raises:
        InputError: a device that is not there, flash-attn that is not installed, `device_map`
            without accelerate, a vocabulary too small for the tokenizer; files that transformers
            cannot load or that lack weights, a model that is not causal.
        EvalkitError: the weights do not fit into memory.
    """
    _quiet_unless_watched()
    device = choose_device(config.engine.device)
    dtype = choose_dtype(config.dtype, device)
    attention = _choose_attention(config.engine.attention, device, dtype)
    if config.engine.threads:
        import torch

        torch.set_num_threads(config.engine.threads)
    check_files(resolved)
    tokenizer = load_tokenizer(resolved)
    model, unused = _load_weights(config, resolved, tokenizer, device, dtype, attention)
    embeddings = model.get_input_embeddings().weight.shape[0]
    refuse_special_ids(tokenizer, embeddings, resolved.path or resolved.name)
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
        embeddings=embeddings,
        unused=unused,
    )


def refuse_special_ids(tokenizer: Any, embeddings: int, where: object) -> None:
    """Refuses a tokenizer whose BOS or EOS has no embedding; says which other tokens have none.

    Raises:
        InputError: names the token and its id.
    """
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= embeddings}
    for name in ("bos_token", "eos_token"):
        token = getattr(tokenizer, name, None)
        if token is not None and str(token) in beyond:
            raise InputError(
                f"the tokenizer's {name} {str(token)!r} has the id {beyond[str(token)]}, "
                f"and the model has {embeddings} embeddings",
                where=where,
                fix=_OWN_TOKENIZER,
            )
    if beyond:
        first = ", ".join(f"{token!r} ({index})" for token, index in list(beyond.items())[:_MOST_NAMED])
        log.warning(
            "%d tokens of the tokenizer have no embedding in the model (%d rows): %s; "
            "a prompt with one of them is refused",
            len(beyond),
            embeddings,
            first,
        )


def refuse_ids(encoded: "Sequence[Encoded]", tokenizer: Any, embeddings: int) -> None:
    """Refuses prompts with a token that has no embedding.

    Raises:
        InputError: names the sample, the token and its id.
    """
    for each in encoded:
        highest = max(each.ids, default=0)
        if highest >= embeddings:
            raise InputError(
                f"a prompt has the token {tokenizer.convert_ids_to_tokens(highest)!r} with the id "
                f"{highest}, and the model has {embeddings} embeddings",
                where=f"sample {each.request.id}",
                fix=_OWN_TOKENIZER,
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
        InputError: the model is a server's, and its tokenizer is not here; or the tokenizer's files
            cannot be read, or a package that reads them is missing.
    """
    folder = resolved.tokenizer or resolved.path
    if not resolved.has_tokenizer:
        what, fix = (
            "the model's tokenizer is needed, and it is not here",
            "model.tokenizer=FOLDER_OR_HUB_NAME",
        )
        raise InputError(what, where=resolved.name, fix=fix)
    if folder is None:
        from evalkit.engines.local.random_model import byte_tokenizer

        tokenizer = byte_tokenizer()
    else:
        from transformers import AutoTokenizer

        check_small_files(folder)
        fix = _fix(folder, resolved.config.trust_remote_code)
        with foreign("the tokenizer cannot be loaded", where=folder, fix=fix):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=resolved.config.trust_remote_code, local_files_only=True
            )
            tokenizer = as_in_the_file(tokenizer, folder)
        _refuse_empty(tokenizer, folder)
    tokenizer.chat_template = choose_template(
        resolved.config, folder, getattr(tokenizer, "chat_template", None)
    )
    return tokenizer


def _refuse_empty(tokenizer: Any, folder: Path) -> None:
    # transformers makes a tokenizer of special tokens only where it does not find the vocabulary.
    with foreign("the tokenizer cannot be used", where=folder):
        ids = tokenizer("a 1 。", add_special_tokens=False)["input_ids"]
        size = len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))
    if not size or not isinstance(ids, list):
        kind = type(tokenizer).__name__
        raise InputError(
            f"the tokenizer has no vocabulary: {kind} has not found its file",
            where=folder,
            fix="fetch or copy the tokenizer's files again; tokenizer_config.json must name their class",
        )


def _fix(folder: Path, trusted: bool) -> str:
    if not trusted and any(folder.glob("*.py")):
        return "if you trust the code in the folder: model.trust_remote_code=true"
    config = folder / "config.json"
    if config.is_file() and b"quantization_config" in config.read_bytes():
        return "install the package of this quantisation, or take the model without it"
    return "fetch or copy the files again; a new model may need a newer transformers"


def _load_weights(
    config: Config, resolved: ResolvedModel, tokenizer: Any, device: Any, dtype: Any, attention: str | None
) -> tuple[Any, tuple[str, ...]]:
    """The model in eval mode on its device, and the names of weights that it has no place for."""
    try:
        if resolved.path is None:
            assert resolved.config.random is not None
            random = _random(resolved.config.random, tokenizer, attention)
            return random.to(device=device, dtype=dtype).eval(), ()
        return _pretrained(config, resolved.path, resolved, device, dtype, attention)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise EvalkitError(
            f"the weights do not fit into the memory of {device}",
            where=resolved.name,
            fix="engine.device_map=auto spreads them over all GPUs and the CPU",
        ) from None


def check_files(resolved: ResolvedModel) -> None:
    """Refuses a model's folder before anything is loaded from it: damaged files, foreign kernels.

    Raises:
        InputError: names the file.
    """
    if resolved.path is None:
        return
    with foreign("the model's files cannot be read", where=resolved.path):
        check_whole(resolved.path)
    remote = resolved.config.trust_remote_code
    if not remote:
        refuse_foreign_kernels(resolved.path)
    path = resolved.path / "config.json"
    with foreign("the configuration cannot be used", where=path, fix=_fix(resolved.path, remote)):
        from transformers import AutoConfig

        _refuse_kind(
            AutoConfig.from_pretrained(resolved.path, trust_remote_code=remote, local_files_only=True), path
        )


def _pretrained(
    config: Config, path: Path, resolved: ResolvedModel, device: Any, dtype: Any, attention: str | None
) -> tuple[Any, tuple[str, ...]]:
    remote = resolved.config.trust_remote_code
    options: dict[str, Any] = {}
    if config.engine.device_map is not None:
        _need_accelerate()
        options["device_map"] = config.engine.device_map
    with (
        foreign("the model cannot be loaded", where=path, fix=_fix(path, remote)),
        _transformers_into_our_log() as lines,
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
                # Other shapes are in the report then, by name.
                ignore_mismatched_sizes=True,
                **options,
            )
        except RuntimeError as error:
            if not is_out_of_memory(error) and (names := _CONVERSION.findall("\n".join(lines))):
                raise InputError(
                    f"{len(names)} weights cannot be put together from those in the files: "
                    f"{', '.join(names[:_MOST_NAMED])}",
                    where=path,
                    fix="take the whole checkpoint of this very model; run.log has the details",
                ) from error
            raise
        unused = check_report(report, path)
        if config.engine.device_map is None:
            model.to(device)
        model.eval()
    _refuse_two_sided(model, path)
    if unused:
        log.warning(
            "%d weights in the files are not used, the model has no place for them: %s%s",
            len(unused),
            ", ".join(unused[:_MOST_NAMED]),
            " ..." if len(unused) > _MOST_NAMED else "",
        )
    return model, unused


def _refuse_kind(config: Any, path: Path) -> None:
    """Refuses what transformers would load as something else: no causal class, unknown quantisation."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not own and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise not_causal(f"transformers has none for model_type {config.model_type}", path)
    quantised = getattr(config, "quantization_config", None)
    if isinstance(quantised, dict):
        method = quantised.get("quant_method")
        bits = quantised.get("load_in_8bit") or quantised.get("load_in_4bit")
        # transformers only warns, and loads the packed numbers as if they were weights.
        if not bits and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            raise InputError(
                f"transformers {transformers.__version__} does not know the quantisation {method!r}"
                if method
                else "the quantisation has no name (quant_method)",
                where=f"{path}, quantization_config",
                fix="take the model without quantisation, a newer transformers, or a server that knows it",
            )


@contextmanager
def _transformers_into_our_log() -> Iterator[list[str]]:
    """Puts what transformers says while it loads into evalkit's log and not onto the terminal; yields it."""
    from transformers.utils import logging as theirs

    lines: list[str] = []

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(_COLOUR.sub("", record.getMessage()))
            log.info("%s: %s", record.name, lines[-1])

    forward, level = Forward(), theirs.get_verbosity()
    theirs.disable_default_handler()
    theirs.add_handler(forward)
    theirs.set_verbosity(min(level, logging.WARNING))
    try:
        yield lines
    finally:
        theirs.set_verbosity(level)
        theirs.remove_handler(forward)
        theirs.enable_default_handler()


def _refuse_two_sided(model: Any, where: Path) -> None:
    """Refuses a model whose answer to a token depends on the tokens after it, as an encoder's does."""
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
        # What this model needs besides ids comes to light when it generates.
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
