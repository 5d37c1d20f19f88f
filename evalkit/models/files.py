"""Model folders: what must be in one, and what identifies its content."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from evalkit.errors import InputError
from evalkit.models.whole import refuse_other_kinds, refuse_other_things
from evalkit.reading import read_json_object, read_text

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
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
CONFIG_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")
# Where a configuration may ask for a kernel of the hub, `owner/name`.
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "kernel_config")
_SAMPLES = 64
_SAMPLE_BYTES = 4096


def is_folder(path: str) -> bool:
    """Whether `path` names a folder rather than a hub repository.

    What exists is a folder; so is what is written like a path (`/x`, `./x`, `~/x`, `a/b/c`),
    so that a mistyped one is not looked for on the hub.
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


def folder_identity(folder: Path) -> dict[str, Any]:
    """What tells this folder's completions from another's: hashes of its small files and weights.

    Weight files count with their size and a hash over 64 blocks of 4 KiB spread evenly, so that two
    checkpoints of one training run differ though sizes and index are equal.
    """
    return {
        "files": {name: _sha256(folder / name) for name in CONFIG_FILES if (folder / name).is_file()}
        | tokenizer_hashes(folder),
        "weights": {
            path.name: {"bytes": path.stat().st_size, "sampled_sha256": _sampled_sha256(path)}
            for path in sorted(folder.glob("*.safetensors"))
        },
    }


def tokenizer_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every tokenizer file in the folder, by file name."""
    return {name: _sha256(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}


def generation_config(folder: Path) -> dict[str, Any]:
    """What the folder's generation_config.json sets, special tokens apart; empty without the file."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    named = {"transformers_version", "_from_model_config", "bos_token_id", "pad_token_id", "use_cache"}
    return {key: value for key, value in read_json_object(path).items() if key not in named}


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


def text_hash(text: str) -> str:
    """sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sampled_sha256(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
