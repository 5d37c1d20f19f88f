"""What can be known of a model without its weights: for servers that hold them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from evalkit.config import ModelConfig
from evalkit.errors import FetchError, InputError
from evalkit.models import (
    ResolvedModel,
    assembled,
    check_source,
    name_of,
    prepare_command,
    tokenizer_of,
)

_COMMIT_DIGITS = 40


def resolve_without_weights(model: ModelConfig, *, offline: bool) -> ResolvedModel:
    """A model whose weights need not be here; `identity` holds what is known of them.

    The tokenizer is taken where it can be had and does without where it cannot.

    Raises:
        InputError: contradictory options, or a folder that does not exist.
    """
    check_source(model)
    name = "served" if model.served and model.name is None else name_of(model)
    tokenizer = tokenizer_of(model, offline=offline)
    return assembled(model, name, _known(model, offline=offline), tokenizer)


def _known(model: ModelConfig, *, offline: bool) -> tuple[Path | None, dict[str, Any]]:
    if model.served:
        return None, {}
    if model.random is not None:
        return None, {"random": asdict(model.random)}
    from evalkit.models.files import folder_identity, is_folder

    if model.pypi is not None:
        from evalkit.models.wheels import kept_folder

        kept = kept_folder(model.pypi)
        own = folder_identity(kept, code=model.trust_remote_code) if kept else {}
        return kept, {"gguf_sha256": model.pypi.sha256} | own
    assert model.path is not None

    if not is_folder(model.path):
        return _known_of_hub(model, offline=offline)
    folder = Path(model.path).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(
            "the model folder does not exist",
            where=f"model.path={folder}",
            fix="model=served model.name=NAME for a model that only the server has",
        )
    return folder, folder_identity(folder, code=model.trust_remote_code)


def _known_of_hub(model: ModelConfig, *, offline: bool) -> tuple[Path | None, dict[str, Any]]:
    from evalkit.models.files import folder_identity
    from evalkit.models.hub import snapshot

    assert model.path is not None
    try:
        folder = snapshot(
            model.path,
            revision=model.revision,
            remote_code=model.trust_remote_code,
            offline=offline,
            prepare=prepare_command(model),
            weights=False,
        )
    except FetchError:
        revision = model.revision or ""
        commit = {"commit": revision} if len(revision) == _COMMIT_DIGITS else {}
        return None, {"hub": model.path} | commit
    own = folder_identity(folder, code=model.trust_remote_code, weights=False)
    return folder, {"hub": model.path, "commit": folder.name} | own
