"""Which prepared files are right, and moving those into their place."""

from pathlib import Path

from evalkit.core.errors import write_error
from evalkit.sources.conversion import Conversion, StagedSplit
from evalkit.sources.prepared import Folder, PreparedSplit, Status
from evalkit.tasks.spec import SPLITS, TaskSpec

_KEPT = "was there already and is kept"


def place(spec: TaskSpec, conversion: Conversion, folder: Folder, reason: str) -> dict[str, PreparedSplit]:
    """Moves a dataset's staged files into the folder and says what each split is worth.

    Nothing of a dataset is placed when a split does not have its published hash. A split that could
    not be made, or only of a reduced source, does not displace a file that is there beside the
    published one.

    Args:
        spec: the dataset, with the published hashes.
        conversion: its staged splits.
        folder: the prepared folder.
        reason: why splits that were not made are missing.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    published = spec.published.get(folder.version, {})
    for name, made in conversion.splits.items():
        if published.get(name, made.sha256) != made.sha256:
            reason = f"{name}: sha256 expected {published[name]}, got {made.sha256}; nothing of it is kept"
            return {split: PreparedSplit(Status.differs, reason=reason) for split in SPLITS}
    genuine = _is_genuine(spec, folder, published)
    splits = {}
    for name in SPLITS:
        staged = conversion.splits.get(name)
        there = folder.digest(name, spec.name)
        if there and genuine and (staged is None or staged.groups_missing) and _not_ours(folder, spec, name):
            status = Status.verified if published.get(name) == there else Status.derived
            splits[name] = PreparedSplit(status, None, there, _KEPT)
        elif staged is None:
            splits[name] = PreparedSplit(Status.not_available, reason=reason)
        else:
            splits[name] = _placed(staged, folder.path(name, spec.name), name in published, there)
    return splits


def _is_genuine(spec: TaskSpec, folder: Folder, published: dict[str, str]) -> bool:
    return bool(published) and all(folder.digest(name, spec.name) == sha for name, sha in published.items())


def _not_ours(folder: Folder, spec: TaskSpec, name: str) -> bool:
    """Whether a file on disk is not the reduced one an earlier command wrote."""
    return folder.written(spec.name, name) is not Status.reduced_source


def _placed(staged: StagedSplit, path: Path, is_published: bool, there: str | None) -> PreparedSplit:
    if there != staged.sha256:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.path.replace(path)
        except OSError as error:
            raise write_error(path, error, "data_dir") from error
    if staged.groups_missing:
        reason = f"{staged.groups_missing} articles are empty in this copy of the source"
        return PreparedSplit(Status.reduced_source, staged.samples, staged.sha256, reason)
    status = Status.verified if is_published else Status.derived
    return PreparedSplit(status, staged.samples, staged.sha256)
