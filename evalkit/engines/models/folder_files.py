"""Model folders: the files one needs, their hashes, and small settings read from them."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any

from evalkit.core.errors import InputError
from evalkit.core.files import read_json_object, read_text
from evalkit.engines.models.digests import file_digests
from evalkit.engines.models.whole import refuse_other_kinds, refuse_other_things

log = logging.getLogger(__name__)

# One of these makes a tokenizer; the others only configure it.
TOKENIZER_MODELS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.tiktoken",
    "tekken.json",
)
# Keys of a configuration that may name a kernel on the hub, `owner/name`.
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "kernel_config")

# Keys of a generation_config that say nothing about how tokens are chosen.
NOT_GENERATION = ("transformers_version", "_from_model_config", "bos_token_id", "pad_token_id", "use_cache")

# Patterns of lower-case names that no loader reads; every other file counts.
_DOCUMENTS = (
    *("readme*", "license*", "licence*", "notice*", "copying*", "use_policy*", "*.md", "*.rst", "*.html"),
    *("*.pdf", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.mp3", "*.mp4", "*.wav"),
)
_TRAINING = (
    *("optimizer*", "scheduler*", "scaler.*", "rng_state*", "random_states*", "trainer_state.json"),
    *(
        "training_args.*",
        "*_results.json",
        "events.out.tfevents.*",
        "latest",
        "latest_checkpointed_iteration*",
    ),
    *("*.log", "*.out", "*.err", "*.lock", "*.tmp", "*.part", "*.incomplete"),
)
_OTHER_WEIGHTS = (
    *("pytorch_model*", "tf_model*", "flax_model*", "rust_model*", "consolidated*", "*.h5", "*.msgpack"),
    *("*.ot", "*.onnx", "*.onnx_data", "*.gguf", "*.ggml", "*.tflite", "*.mlmodel", "*.nemo", "*.distcp"),
)
_UNREAD = (*_DOCUMENTS, *_TRAINING, *_OTHER_WEIGHTS)
# transformers reads none of these; code that a model brings may.
_READ_BY_CODE = (
    *("*.pt", "*.pth", "*.ckpt", "*.bin", "*.pkl", "*.pickle", "*.npy", "*.npz", "*.csv", "*.tsv"),
    *("*.jsonl", "*.parquet", "*.arrow", "*.yaml", "*.yml", "*.toml", "*.cfg", "*.ini", "*.sh", "*.ipynb"),
    *("*.zip", "*.tar", "*.gz", "*.tgz", "*.bz2", "*.xz", "*.zst", "*.7z"),
)
_TRAINING_FOLDERS = ("__pycache__", "checkpoint-*", "global_step*", "runs", "wandb", "logs")
_UNREAD_FOLDERS = (*_TRAINING_FOLDERS, "original", "onnx", "openvino", "coreml")
_TEMPLATES = "additional_chat_templates"
_INDEX = ".safetensors.index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_folder(path: str) -> bool:
    """Whether `path` names a folder rather than a hub repository.

    An existing path is a folder. So is what is written like a path (`/x`, `./x`, `~/x`, `a/b/c`), so
    that a mistyped one is not looked for on the hub.
    """
    return Path(path).expanduser().exists() or path.startswith(("/", ".", "~", "\\")) or path.count("/") > 1


def check_folder(folder: Path, *, needs_tokenizer: bool) -> None:
    """Refuses a folder that cannot hold a model.

    Raises:
        InputError: no such folder, no config.json, no safetensors weights, no tokenizer, or something
            else than a causal language model.
    """
    if not folder.exists():
        raise InputError(
            "the model folder does not exist",
            where=f"model.path={folder}",
            fix="give an existing folder or a hub name (owner/name)",
        )
    refuse_other_things(folder, option="model.path")
    if not (folder / "config.json").is_file():
        raise InputError("the model folder has no config.json", where=f"model.path={folder}")
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            "the model folder has no *.safetensors weights",
            where=f"model.path={folder}",
            fix="convert them once: load with transformers and save_pretrained(FOLDER)",
        )
    refuse_other_kinds(folder)
    if needs_tokenizer:
        check_tokenizer(folder, option="model.path")


def check_tokenizer(folder: Path, *, option: str) -> None:
    """Refuses a folder without a tokenizer.

    Raises:
        InputError: none of the files that make a tokenizer is there.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_MODELS):
        raise InputError(
            f"no tokenizer in the folder (none of {', '.join(TOKENIZER_MODELS)})",
            where=f"{option}={folder}",
            fix="model.tokenizer=FOLDER_OR_HUB_NAME with the tokenizer this model was trained with",
        )


def refuse_foreign_kernels(folder: Path) -> None:
    """Refuses a config.json that names a repository whose kernels transformers would run as code.

    Raises:
        InputError: it does; only `model.trust_remote_code` lets such a model through.
    """
    path = folder / "config.json"
    content = read_json_object(path, "the model's configuration")
    for key in _KERNEL_KEYS:
        value = content.get(key)
        if "/" in json.dumps(value):
            raise InputError(
                f"the model asks for code from elsewhere: its {key} is {value!r}",
                where=path,
                fix="take the key out; or, if you trust that code: model.trust_remote_code=true",
            )


def folder_identity(folder: Path, *, code: bool, weights: bool = True) -> dict[str, Any]:
    """What identifies a folder's completions: the sha256 of every file that loading can read.

    Args:
        folder: of the model.
        code: the model's own code is trusted: it counts, and what it may read.
        weights: the weights count too.

    Returns:
        `files`: path below the folder -> sha256. `code`: the same of other repositories whose code
        the configuration names.
    """
    identity: dict[str, Any] = {"files": file_hashes(folder, code=code, weights=weights)}
    if code and (foreign := _foreign_code(folder)):
        identity["code"] = foreign
    return identity


def file_hashes(folder: Path, *, code: bool, weights: bool = True) -> dict[str, str]:
    """sha256 of every file of a folder that loading can read, by its path below the folder.

    Raises:
        InputError: a file cannot be read.
        EvalkitError: a file changed while it was read.
    """
    return _hashes(_read_files(folder, code=code, weights=weights))


def files_of(folder: Path) -> dict[str, Path]:
    """Every file of a folder, by its path below it, but hidden ones, those of a training, and runs.

    All that `file_hashes` counts is among them, and the same weights in other formats.

    Raises:
        InputError: the folder cannot be read.
    """
    found = _found(
        folder,
        lambda inside: not _matches(PurePath(inside).name, _TRAINING_FOLDERS),
        lambda name: not _matches(name, _TRAINING),
    )
    return found | {name: folder / name for name in _named_weights(folder) if (folder / name).is_file()}


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    digests = file_digests(files.values())
    for path, digest in digests.items():
        # The hub's cache names a large file by its sha256; the content may have changed since.
        blob = path.resolve()
        if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) and blob.name != digest:
            log.warning("%s is not the file that was downloaded: its content was changed or damaged", path)
    # The identity is written as UTF-8, whatever bytes a name has.
    names = {name: os.fsencode(name).decode("utf-8", "backslashreplace") for name in files}
    return {names[name]: digests[path] for name, path in sorted(files.items())}


def _read_files(folder: Path, *, code: bool, weights: bool) -> dict[str, Path]:
    found = _found(
        folder,
        lambda inside: (
            inside == _TEMPLATES or (code and not _matches(PurePath(inside).name, _UNREAD_FOLDERS))
        ),
        lambda name: _may_be_read(name, code=code),
    )
    named = _named_weights(folder)
    kept = {}
    for name, path in found.items():
        if path.suffix == ".safetensors":
            # With an index, transformers reads the files it names, model.safetensors and an adapter.
            # Without one vLLM reads all files.
            reads = not named or code or name in named or path.name.startswith("adapter_")
            if not (weights and reads):
                continue
        elif name.endswith(_INDEX) and not weights:
            continue
        kept[name] = path
    if weights:
        # An index may name files of any folder.
        kept |= {name: folder / name for name in named if (folder / name).is_file()}
    return kept


def _found(folder: Path, enters: Callable[[str], bool], keeps: Callable[[str], bool]) -> dict[str, Path]:
    """The files of a model folder by their paths below it, but hidden ones and those of runs.

    `enters` says of a path below it whether that folder is searched, `keeps` whether a file's name counts.
    """
    try:
        return _walked(folder, enters, keeps)
    except OSError as error:
        raise InputError(
            f"the model folder cannot be read: {error.strerror}", where=error.filename or folder
        ) from None


def _walked(folder: Path, enters: Callable[[str], bool], keeps: Callable[[str], bool]) -> dict[str, Path]:
    found = {}
    waiting = [("", folder)]
    seen = set()
    while waiting:
        prefix, place = waiting.pop()
        # A link may lead back to a folder above.
        if (real := place.resolve()) in seen:
            continue
        seen.add(real)
        paths = sorted(place.iterdir())
        # A run whose results lie below the model must not change the model.
        if prefix and {"config.yaml", "environment.json"} <= {path.name for path in paths}:
            continue
        for path in paths:
            if path.name.startswith("."):
                continue
            if path.is_dir():
                if enters(f"{prefix}{path.name}"):
                    waiting.append((f"{prefix}{path.name}/", path))
            elif path.is_file() and keeps(path.name):
                found[f"{prefix}{path.name}"] = path
    return found


def _may_be_read(name: str, *, code: bool) -> bool:
    if name.endswith((".py", ".pyc")):
        return code and name.endswith(".py")
    if _matches(name, _UNREAD):
        return False
    return code or name == "adapter_model.bin" or not _matches(name, _READ_BY_CODE)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _named_weights(folder: Path) -> set[str]:
    """The weights that an index or the configuration names; empty where nothing does."""
    named: set[str] = set()
    for path in folder.glob(f"*{_INDEX}"):
        weight_map = _content(path).get("weight_map")
        named |= {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else set()
    if named:
        named |= {"model.safetensors", str(_content(folder / "config.json").get("transformers_weights"))}
    return named


def _foreign_code(folder: Path) -> dict[str, dict[str, str]]:
    """The Python files of other repositories that `auto_map` names (`owner/name--module.Class`)."""
    found: dict[str, dict[str, str]] = {}
    for file in ("config.json", "tokenizer_config.json"):
        for reference in _strings(_content(folder / file).get("auto_map")):
            place, separator, member = reference.partition("--")
            source = _code_folder(place, f"{member.partition('.')[0]}.py") if separator else None
            if source is not None:
                paths = [path for path in source.rglob("*.py") if path.is_file()]
                found[place] = _hashes({path.relative_to(source).as_posix(): path for path in paths})
    return found


def _code_folder(place: str, module: str) -> Path | None:
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(place, module)
    except ValueError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _content(path: Path) -> dict[str, Any]:
    """A JSON object; empty when it cannot be read, since loading reports what is wrong with it."""
    try:
        return read_json_object(path)
    except InputError:
        return {}


def generation_config(folder: Path) -> dict[str, Any]:
    """What the folder's generation_config.json sets, special tokens apart; empty without the file."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    return {key: value for key, value in read_json_object(path).items() if key not in NOT_GENERATION}


def chat_template(value: str, folder: Path | None) -> str:
    """A chat template given as Jinja text, as the path of a file, or by the name it has in `folder`.

    Raises:
        InputError: a path that cannot be read.
    """
    if is_template_text(value):
        return value
    named = {} if folder is None else named_templates(folder)
    if value in named:
        return named[value]
    path = Path(value).expanduser()
    if named and not path.exists():
        names = sorted(named)
        raise InputError(
            f"neither a file nor one of the tokenizer's chat templates: {', '.join(names)}",
            where=f"model.chat_template={value}",
            fix=f"model.chat_template={names[0]}, or FILE.jinja",
        )
    return read_text(path, "the chat template (model.chat_template)")


def is_template_text(value: str) -> bool:
    """Whether a value of `model.chat_template` is the template itself and no name of one."""
    return "{" in value or "\n" in value


def named_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a tokenizer's folder that have names; what cannot be read has none."""
    found: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        listed = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
        if isinstance(listed, list):
            found = {str(one["name"]): str(one["template"]) for one in listed}
    with suppress(OSError, ValueError):
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            found[path.stem] = path.read_text(encoding="utf-8")
    return found


def template_file(folder: Path) -> Path:
    """The file in a tokenizer's folder that its chat template is read from."""
    for name in ("chat_template.jinja", "additional_chat_templates", "tokenizer_config.json"):
        if (folder / name).exists():
            return folder / name
    return folder
