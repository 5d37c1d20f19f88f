"""Models from a hub: one snapshot at one commit, kept in the hub library's own cache."""

from pathlib import Path

from evalkit.core.errors import EvalkitError, FetchError, InputError

_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
# Copies of the weights in other layouts, beside the ones transformers reads.
_COPIES = ["original/*", "onnx/*", "consolidated*", "*.gguf"]


def snapshot(
    name: str, *, revision: str | None, remote_code: bool, offline: bool, prepare: str, weights: bool = True
) -> Path:
    """The local folder of a hub repository at `revision` (default: its newest commit).

    Args:
        name: repository, `owner/name`.
        revision: commit, tag or branch.
        remote_code: fetch the repository's own Python files too.
        offline: use what the cache holds and open no connection.
        prepare: the command that fetches this model, for error messages.
        weights: fetch the weights, not only config and tokenizer.

    Returns:
        A folder whose name is the commit.

    Raises:
        InputError: no such repository or revision, or a name that cannot be one.
        FetchError: offline and not in the cache, no access, or a failing connection.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_SMALL_FILES, *(["*.safetensors"] if weights else []), *(["*.py"] if remote_code else [])]
    where = f"{name}@{revision}" if revision else name
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=_COPIES,
                local_files_only=offline,
            )
        )
    except HFValidationError:
        raise InputError(
            "neither a folder nor a hub name", where=name, fix="model.path=FOLDER or model.path=owner/name"
        ) from None
    except GatedRepoError:
        raise FetchError(
            "the hub gives this model only to people who accepted its terms",
            where=where,
            fix="accept them on the model's page, then log in: hf auth login",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise InputError(
            "the hub knows no such model or revision (or it is private)",
            where=where,
            fix="check model.path and model.revision; for a private model: hf auth login",
        ) from None
    except LocalEntryNotFoundError:
        reason = "and offline=true fetches nothing" if offline else "and the hub cannot be reached"
        raise FetchError(
            f"the model is not in the hub cache, {reason}",
            where=where,
            fix=f"on a machine with a connection: {prepare}",
        ) from None
    except OSError as error:
        raise _transfer_error(error, where, prepare) from None


def _transfer_error(error: OSError, where: str, prepare: str) -> EvalkitError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FetchError(f"the model could not be fetched: {reason}", where=where, fix=f"again: {prepare}")
