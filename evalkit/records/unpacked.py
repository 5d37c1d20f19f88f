"""An unpacked bundle: model names resolve to its files, and its data must be as packed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evalkit.core.errors import InputError
from evalkit.core.files import read_text

MARK = "bundle.json"
SUMS = "SHA256SUMS"


def use(data_dir: Path) -> bool:
    """Has model names resolve to the files of an unpacked bundle; False when the folder is no bundle.

    It holds for this process and those it starts, within `put_back` until the block ends.
    """
    if not (data_dir / MARK).is_file():
        return False
    for inside in ("hub", "cache"):
        if not (data_dir / inside).resolve().is_relative_to(data_dir.resolve()):
            raise InputError(
                f"the bundle's folder {inside} leads out of it by a link", where=data_dir / inside
            )
    from huggingface_hub import constants

    hub, cache = (str((data_dir / inside).resolve()) for inside in ("hub", "cache"))
    os.environ.update(HF_HUB_CACHE=hub, EVALKIT_CACHE=cache)
    # The library reads the variable when it is imported, which may be long ago.
    constants.HF_HUB_CACHE = hub
    return True


@contextmanager
def put_back(data_dir: Path | None) -> Iterator[None]:
    """Undoes at its end what `use` of this folder does in the block: a program goes on without the bundle."""
    if data_dir is None or not (data_dir / MARK).is_file():
        yield
        return
    from huggingface_hub import constants

    hub = constants.HF_HUB_CACHE
    before = {name: os.environ.get(name) for name in ("HF_HUB_CACHE", "EVALKIT_CACHE")}
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = hub
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def packed_sums(data_dir: Path) -> dict[str, str]:
    """The real path of each file -> its sha256 as it was packed; empty for a folder that is no bundle.

    Raises:
        InputError: the bundle has lost its list of hashes.
    """
    if not (data_dir / MARK).is_file():
        return {}
    again = "unpack the bundle again"
    try:
        lines = read_text(data_dir / SUMS, "the list of hashes of the bundle").splitlines()
        parts = (line.partition("  ") for line in lines)
        return {os.path.realpath(data_dir / name): digest for digest, _, name in parts}
    except InputError as error:
        raise InputError(error.what, where=error.where, fix=again) from None
    except ValueError as error:
        raise InputError(
            f"the list of hashes is damaged: {error}", where=data_dir / SUMS, fix=again
        ) from None


def check_unchanged(path: Path, digest: str, data_dir: Path, packed: dict[str, str]) -> None:
    """Refuses a file of a bundle whose bytes are not the packed ones; a file from elsewhere passes.

    Raises:
        InputError: another hash than the packed file's.
    """
    expected = packed.get(os.path.realpath(path), digest)
    if digest != expected:
        raise InputError(
            f"a file of the bundle was changed: sha256 expected {expected}, got {digest}",
            where=path,
            fix=f"unpack the bundle again; to check all of it: cd {data_dir} && sha256sum --quiet -c {SUMS}",
        )
