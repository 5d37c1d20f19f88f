"""Whether a folder holds a whole causal language model, without reading its weights.

Names, sizes, small JSON files and the headers of the weight files show most problems: an incomplete
download, a Git LFS pointer, a missing shard, an adapter or a training state instead of a model.
"""

import json
import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from evalkit.core.errors import InputError
from evalkit.core.text import listed

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Names of one shard of several: model-00002-of-00007.safetensors
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_LENGTH_BYTES = 8
# The format's own limit; anything above is no header.
_LONGEST_HEADER = 100_000_000
# Endings of files that a loader may read.
_READ = frozenset({".json", ".model", ".txt", ".jinja", ".tiktoken", ".py", ".safetensors"})
_NEVER_EMPTY = frozenset({".json", ".model", ".tiktoken", ".safetensors"})
_POINTER = b"version https://git-lfs"
_JSON_OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
# Class names of heads that do not continue a text.
_HEAD = re.compile(r"For(?!CausalLM|\w*Generation|PreTraining|LanguageModel)[A-Z]\w*|Reward|CrossEncoder")
_MEGATRON = "convert it with the converter of your training code"
_DEEPSPEED = "python zero_to_fp32.py . OUT --safe_serialization, in the folder with zero_to_fp32.py"
_SAVE = "save the model itself: trainer.save_model(OUT)"
# Output of training frameworks: (pattern, what it is, how to convert it).
_TRAINING = (
    ("latest_checkpointed_iteration.txt", "a Megatron checkpoint", _MEGATRON),
    ("iter_*/mp_rank_*", "a Megatron checkpoint", _MEGATRON),
    ("mp_rank_*/model_optim_rng.pt", "a Megatron checkpoint", _MEGATRON),
    ("zero_to_fp32.py", "a DeepSpeed checkpoint", _DEEPSPEED),
    ("global_step*", "a DeepSpeed checkpoint", _DEEPSPEED),
    ("*_model_states.pt", "a DeepSpeed checkpoint", _DEEPSPEED),
    ("pytorch_model_fsdp*", "an FSDP checkpoint", "accelerate merge-weights FOLDER/pytorch_model_fsdp_0 OUT"),
    ("*.distcp", "an FSDP checkpoint", "accelerate merge-weights FOLDER OUT"),
    ("consolidated*", "weights in the original layout of Llama or Mistral", "convert them with transformers"),
    ("optimizer.pt", "a training state", _SAVE),
    ("trainer_state.json", "a training state", _SAVE),
    ("*.ckpt", "a Lightning checkpoint", "load it with your training code, then model.save_pretrained(OUT)"),
)
# Types of weights as they stand, without a quantisation.
_PLAIN = ("F64", "F32", "F16", "BF16")
# Whole numbers under these names are weights; positions, masks and counters have other ones.
_WEIGHT = re.compile(r"(weight|proj)$")
# Tensors that only quantised layers have.
_QUANTISED = re.compile(
    r"[._](weight_scale\w*|scale_inv|SCB|qweight|qzeros|g_idx|absmax|quant_map|quant_state(\..+)?"
    r"|weight_packed|weight_zero_point)$"
)
# The scale of a layer, beside a weight of that name.
_SCALE = re.compile(r"[._]((weight|input|output|activation)_)?scales?$")
# Other places for the rule of a quantisation. vLLM reads them, transformers does not.
_OTHER_RULES = ("compression_config", "hf_quant_config.json")
_OTHER_WEIGHTS = ("tf_model.h5", "flax_model.msgpack", "*.onnx", "*.npz", "*.bin", "*.pt", "*.pth")


def refuse_other_things(path: Path, *, option: str) -> None:
    """Refuses what is often given by mistake instead of a model folder, and says how to fix it.

    Raises:
        InputError: a file, a PEFT adapter, a GGUF file, a cache folder of the hub, a training state,
            a folder of checkpoints, or weights that are not safetensors.
    """
    where = f"{option}={path}"
    if path.is_file():
        raise _not_a_folder(path, where)
    if (path / "adapter_config.json").exists():
        base = _adapter_base(path / "adapter_config.json")
        raise InputError(
            f"the folder holds a PEFT adapter{f' of {base}' if base else ''}, not a whole model",
            where=where,
            fix="merge it once: peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
            ".save_pretrained(OUT), put the tokenizer there too, then model.path=OUT",
        )
    if (path / "snapshots").is_dir() and not (path / "config.json").exists():
        raise _cache_folder(path, where)
    if not ((path / "config.json").exists() and any(path.glob("*.safetensors*"))):
        _refuse_other_weights(path, where)


def _refuse_other_weights(path: Path, where: str) -> None:
    """Says what a folder without a model has instead; a folder with nothing known passes."""
    if ggufs := sorted(path.glob("*.gguf")):
        raise _gguf(ggufs[0], where)
    if models := _models_below(path):
        last, every = shlex.quote(str(path / models[-1])), shlex.quote(str(path))
        raise InputError(
            f"the folder holds {len(models)} models, and is none itself: {listed(models)}",
            where=where,
            fix=f"model.path={last}, or watch={every} for all",
        )
    if (path / "config.json").exists() and any(path.glob("pytorch_model*.bin")):
        raise InputError(
            "the model folder has no *.safetensors weights, only pytorch_model*.bin",
            where=where,
            fix=f'convert them once: python -c "{_convert(path)}", and put the tokenizer there too',
        )
    for pattern, kind, fix in _TRAINING:
        if any(path.glob(pattern)):
            raise InputError(
                f"the folder holds {kind}, not a model that transformers loads",
                where=where,
                fix=fix.replace("FOLDER", shlex.quote(str(path))),
            )
    for pattern in _OTHER_WEIGHTS:
        if found := sorted(path.glob(pattern)):
            raise InputError(
                f"the model folder has no *.safetensors weights, only {found[0].name}",
                where=where,
                fix="take the model's safetensors weights, or save it once with save_pretrained(OUT)",
            )


def check_whole(folder: Path) -> None:
    """Refuses a model folder with a damaged, cut or missing file; reads no weights.

    Raises:
        InputError: names the file: a pointer of Git LFS, an empty file, a link to nothing, JSON or
            weights that end in the middle, a shard that is missing.
    """
    check_small_files(folder)
    if "model_type" not in _json(folder / "config.json") and "auto_map" not in _json(folder / "config.json"):
        raise InputError("config.json names no model_type", where=folder / "config.json")
    _check_weights(folder)


def check_small_files(folder: Path) -> None:
    """As `check_whole`, for configuration and tokenizer files only.

    Raises:
        InputError: names the file.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ and not path.is_dir():
            _check_content(path)
    for name in _JSON_OBJECTS:
        if (folder / name).exists():
            _json(folder / name)


def refuse_other_kinds(folder: Path) -> None:
    """Refuses a model whose configuration says that it does not continue texts.

    Raises:
        InputError: an encoder-decoder model, or one with a head for something else.
    """
    path = folder / "config.json"
    content = _json(path)
    names = content.get("architectures")
    classes = [str(name) for name in names] if isinstance(names, list) else []
    shown = ", ".join(classes) or str(content.get("model_type"))
    why = None
    if content.get("is_encoder_decoder") is True:
        why = "it has an encoder and a decoder"
    elif classes and all(_HEAD.search(name) for name in classes):
        why = "its weights have a head for something else"
    if why:
        raise not_causal(f"{shown}: {why}", path)


def embeddings_of(folder: Path) -> int | None:
    """How many token ids the model's configuration allows; None where it does not say."""
    content = _json(folder / "config.json")
    text = content.get("text_config")
    for section in (content, text if isinstance(text, dict) else {}):
        size = section.get("vocab_size")
        if isinstance(size, int):
            return size
    return None


def refuse_quantised(
    folder: Path, parameters: Collection[str] = (), unused: Collection[str] = (), *, by_vllm: bool = False
) -> None:
    """Refuses quantised weights without a rule for them: loading would take them as they stand.

    Args:
        folder: of a whole model.
        parameters: the names of the model's floating-point parameters, once it is loaded. Before, only
            names tell weights from positions and masks, which are whole numbers by right.
        unused: the names in the files that the loaded model has no place for.
        by_vllm: vLLM loads it, which finds the rule in more places than transformers.

    Raises:
        InputError: weights that are no floating-point numbers, or scales that nothing applies.
    """
    content = _json(folder / "config.json")
    text = content.get("text_config")
    if any(isinstance(one, dict) and one.get("quantization_config") for one in (content, text)):
        return
    key, file = _OTHER_RULES
    elsewhere = key if content.get(key) else file if (folder / file).exists() else None
    if elsewhere and by_vllm:
        return
    types = {
        name: (str(tensor["dtype"]), len(tensor["shape"]))
        for shard in sorted(_wanted_files(folder, {path.name for path in folder.glob("*.safetensors")}))
        for name, tensor in _header(folder / shard).items()
        if name != "__metadata__"
    }
    odd = [
        name
        for name, (kind, dimensions) in types.items()
        if kind not in _PLAIN
        # Eight bits or fewer; GPT-2's mask is a "bias" of four dimensions.
        and (kind.startswith("F") or _WEIGHT.search(name) or (name.endswith("bias") and dimensions == 1))
    ]
    odd += [name for name in types if name in parameters and types[name][0] not in _PLAIN and name not in odd]
    used = (types.keys() | set(parameters)) - set(unused)
    scales = [name for name in types if _QUANTISED.search(name)]
    scales += [name for name in unused if _scales(name, used) and name not in scales]
    if found := odd or scales:
        stored = ", ".join(sorted({types[name][0] for name in odd}))
        kind = f"weights as {stored}" if odd else "parts of quantised weights"
        raise InputError(
            f"the files hold {len(found)} {kind}, and config.json has no quantization_config: "
            f"{listed(found)}",
            where=folder,
            fix=f"only vLLM reads {elsewhere}: engine=vllm, or take the model without quantisation"
            if elsewhere
            else "take the config.json these weights were saved with, or the model without quantisation",
        )


def _scales(name: str, used: Collection[str]) -> bool:
    """Whether an unused tensor is the scale of a weight that is used."""
    stem = _SCALE.sub("", name)
    return stem != name and any(f"{stem}{ending}" in used for ending in ("", ".weight"))


def not_causal(why: str, where: object) -> InputError:
    """The refusal of a model that does not continue texts."""
    return InputError(
        f"this is not a causal language model ({why})",
        where=where,
        fix="evalkit evaluates models that continue a text: give the language model itself",
    )


def check_report(report: dict[str, Any], where: object) -> tuple[str, ...]:
    """Refuses a model with weights that transformers could not load from the files.

    Args:
        report: transformers' `output_loading_info`.
        where: the folder, for the message.

    Returns:
        The names in the files that the model has no place for, sorted.

    Raises:
        InputError: weights that are missing in the files, have another shape, or cannot be converted.
    """
    missing = sorted(report.get("missing_keys") or ())
    mismatched = sorted(tuple(found) for found in report.get("mismatched_keys") or ())
    unexpected = tuple(sorted(report.get("unexpected_keys") or ()))
    errors = list(report.get("error_msgs") or ())
    if missing:
        raise InputError(
            f"{len(missing)} weights of the model are missing in its files, they would be random numbers: "
            f"{listed(missing)}",
            where=where,
            fix=_renaming(missing, unexpected)
            or "take the whole checkpoint of this very model, with the config.json it was saved with",
        )
    if mismatched:
        shapes = [f"{name} is {_shape(there)}, not {_shape(wanted)}" for name, there, wanted in mismatched]
        raise InputError(
            f"{len(mismatched)} weights have another shape than config.json says: {listed(shapes)}",
            where=where,
            fix="take the config.json these weights were saved with; gathered weights of DeepSpeed ZeRO-3 "
            "have no shape (0)",
        )
    if errors:
        raise InputError(
            f"weights could not be loaded: {listed([str(text) for text in errors])}", where=where
        )
    return unexpected


def _shape(shape: Any) -> str:
    return "x".join(str(size) for size in shape) or "a single number"


def _renaming(missing: list[str], unexpected: tuple[str, ...]) -> str | None:
    """The advice when all missing weights are in the file under names with a common prefix."""
    prefixes = {name.removesuffix(missing[0]) for name in unexpected if name.endswith(missing[0])}
    for prefix in sorted(prefixes):
        if all(f"{prefix}{name}" in unexpected for name in missing):
            return (
                f"the names in the file begin with {prefix!r}, as a wrapped model saves them: "
                "save the model inside, or take the prefix out of the names"
            )
    return None


def _not_a_folder(path: Path, where: str) -> InputError:
    if path.suffix == ".gguf":
        return _gguf(path, where)
    return InputError(
        "the model is a file, and a folder is needed (config.json, tokenizer, *.safetensors)",
        where=where,
        fix="give the folder of the model",
    )


def _convert(path: Path) -> str:
    return (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained('{path}', use_safetensors=False).save_pretrained('OUT')"
    )


def _gguf(path: Path, where: str) -> InputError:
    convert = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"d, f = '{path.parent}', '{path.name}'; "
        "M.from_pretrained(d, gguf_file=f).save_pretrained('OUT'); "
        "T.from_pretrained(d, gguf_file=f).save_pretrained('OUT')"
    )
    return InputError(
        f"a GGUF file ({path.name}) is no model folder",
        where=where,
        fix=f'take the safetensors model it was made from, or convert it: python -c "{convert}"; or let '
        "llama.cpp serve it: engine=api engine.base_url=ADDRESS",
    )


def _cache_folder(path: Path, where: str) -> InputError:
    _, *name = path.name.split("--")
    found = sorted(each for each in (path / "snapshots").iterdir() if (each / "config.json").exists())
    ways = [f"model.path={'/'.join(name)}"] if path.name.startswith("models--") and name else []
    ways += [f"model.path={shlex.quote(str(found[-1]))}"] if found else []
    return InputError(
        "the folder is the hub's cache of a model, the model is below it",
        where=where,
        fix=", or ".join(ways) or "fetch the model: evalkit prepare model=hf model.path=owner/name",
    )


def _adapter_base(path: Path) -> str | None:
    try:
        base = _json(path).get("base_model_name_or_path")
    except InputError:
        return None
    return base if isinstance(base, str) and base else None


def _models_below(path: Path) -> list[str]:
    """The sub-folders that are models, in the order of the numbers in their names."""
    found = [
        each.name
        for each in path.iterdir()
        if (each / "config.json").is_file() and any(each.glob("*.safetensors*"))
    ]
    return sorted(found, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])


def _check_content(path: Path) -> None:
    if not path.exists():
        raise InputError(
            f"{path.name} is a link to a file that is not there",
            where=path,
            fix="fetch or copy the model again, links followed (cp -L, rsync -L)",
        )
    with path.open("rb") as file:
        begin = file.read(len(_POINTER))
    if begin == _POINTER:
        raise InputError(
            f"{path.name} is a pointer of Git LFS, not the file itself",
            where=path,
            fix=f"in {path.parent}: git lfs install && git lfs pull",
        )
    if not begin and path.suffix in _NEVER_EMPTY:
        raise InputError(f"{path.name} is empty", where=path, fix="fetch or copy it again")


def _check_weights(folder: Path) -> None:
    there = {path.name for path in folder.glob("*.safetensors")}
    if not there and not (folder / INDEX).exists():
        raise InputError("it has no *.safetensors weights", where=folder)
    wanted = _wanted_files(folder, there)
    if missing := sorted(wanted - there):
        raise InputError(
            f"weights are missing: {listed(missing)}", where=folder, fix="fetch or copy these files again"
        )
    for name in sorted(wanted):
        if problem := _weights_problem(folder / name):
            raise InputError(problem, where=folder / name, fix="fetch or copy this file again")


def _wanted_files(folder: Path, there: set[str]) -> set[str]:
    """The weight files that transformers reads."""
    if SINGLE in there:
        return {SINGLE}
    if (folder / INDEX).exists():
        weight_map = _json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{INDEX} names no weights", where=folder / INDEX)
        return {str(name) for name in weight_map.values()}
    own = _json(folder / "config.json").get("transformers_weights")
    if isinstance(own, str) and own in there:
        return {own}
    for name in sorted(there):
        if shard := _SHARD.fullmatch(name):
            # An index is written last, so these shards may be incomplete.
            raise InputError(
                f"{name} is one of {int(shard[2])} shards, and {INDEX} is not there",
                where=folder,
                fix=f"fetch or copy {INDEX} too",
            )
    raise InputError(
        f"the weights are in {listed(sorted(there))}, and transformers looks for {SINGLE} or {INDEX}",
        where=folder,
        fix=f"rename a single file to {SINGLE}",
    )


def _weights_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file: 8 bytes of length, a JSON header, then the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or not 0 < length <= min(size - _LENGTH_BYTES, _LONGEST_HEADER):
            return f"{path.name} is not a whole safetensors file"
        try:
            data = max(_ends(json.loads(file.read(length))), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            return f"{path.name} has a damaged header"
    expected = _LENGTH_BYTES + length + data
    return None if size == expected else f"{path.name} has {size:,} bytes, its header says {expected:,}"


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little")))
    return header


def _ends(header: dict[str, Any]) -> Iterator[int]:
    return (int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"it has no {path.name}", where=path.parent) from None
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}", where=path) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path.name} is not whole JSON ({error})", where=path, fix="fetch or copy it again"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path.name} is not a JSON object", where=path)
    return content
