"""An unpacked bundle: model names resolve to its files, and its data must be as packed."""

import os
from pathlib import Path

from evalkit.core.errors import InputError
from evalkit.core.files import read_text

MARK = "bundle.json"
SUMS = "SHA256SUMS"


def use(data_dir: Path) -> bool:
    """Has model names resolve to the files of an unpacked bundle; False when the folder is no bundle."""
    if not (data_dir / MARK).is_file():
        return False
    for inside in ("hub", "cache"):
        if not (data_dir / inside).resolve().is_relative_to(data_dir.resolve()):
            raise InputError(
                f"the bundle's folder {inside} leads out of it by a link", where=data_dir / inside
            )
    # Both variables are read later: when the hub library is imported, or a path is requested.
    os.environ["HF_HUB_CACHE"] = str((data_dir / "hub").resolve())
    os.environ["EVALKIT_CACHE"] = str((data_dir / "cache").resolve())
    return True


def packed_sums(data_dir: Path) -> dict[str, str]:
    """path inside the bundle -> sha256 of the file as it was packed; empty for a folder that is no bundle.

    Raises:
        InputError: the bundle has lost its list of hashes.
    """
    if not (data_dir / MARK).is_file():
        return {}
    try:
        lines = read_text(data_dir / SUMS, "the list of hashes of the bundle").splitlines()
    except InputError as error:
        raise InputError(error.what, where=error.where, fix="unpack the bundle again") from None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check_unchanged(path: Path, digest: str, data_dir: Path, packed: dict[str, str]) -> None:
    """Refuses a file of a bundle whose bytes are not the packed ones.

    Raises:
        InputError: another hash than the packed file's.
    """
    expected = packed.get(path.relative_to(data_dir).as_posix(), digest)
    if digest != expected:
        raise InputError(
            f"a file of the bundle was changed: sha256 expected {expected}, got {digest}",
            where=path,
            fix=f"unpack the bundle again; to check all of it: cd {data_dir} && sha256sum --quiet -c {SUMS}",
        )
