"""The prepared folder: the datasets' files and a record of how they were made.

`DIR/1.3.1/evaluation/{train,dev,test}/<dataset>.json` is llm-jp-eval's own layout. `DIR/1.3.1/prepared.json`
is ours: it records what was written from which upstream files, so that nothing is converted twice.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from evalkit.core.durable import is_abandoned, process_tag, write_text_atomic
from evalkit.core.errors import write_error
from evalkit.core.files import file_sha256
from evalkit.sources.convert import Converted, StagedSplit
from evalkit.tasks.load import prepared_path
from evalkit.tasks.spec import PROTOCOL_VERSION, SPLITS, TaskSpec

RECORD = "prepared.json"
_STAGING = ".prepare-"


class Status(Enum):
    """What is known about a prepared split.

    `verified`: its sha256 is the published one. `derived`: made by the same code and rules, but no
    hash of it was published. `reduced_source`: part of the upstream data is missing in the copy it
    was made from. `own`: the user's own data. `differs`: not the published bytes; not kept.
    `not_available`: the upstream files are not available or cannot be read.
    """

    verified = "verified"
    derived = "derived"
    reduced_source = "reduced source"
    own = "your own"
    differs = "differs"
    not_available = "not available"

    @property
    def usable(self) -> bool:
        """Whether the file is there."""
        return self not in (Status.differs, Status.not_available)


@dataclass(frozen=True)
class PreparedSplit:
    """One prepared file: the number of its samples (None: not known) and the sha256 of its bytes."""

    status: Status
    samples: int | None = None
    sha256: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Entry:
    """One dataset in the record; `made_by`: its fingerprint; `sources`: url -> sha256."""

    made_by: str
    sources: dict[str, str]
    splits: dict[str, PreparedSplit]


class PreparedFolder:
    """The prepared files below `data_dir`, and their record."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._record_path = data_dir / PROTOCOL_VERSION / RECORD
        self._entries = _read_record(self._record_path)

    def kept(self, dataset: str, fingerprint: str) -> dict[str, PreparedSplit] | None:
        """What an earlier command wrote, if the fingerprint is the same and no file has changed."""
        entry = self._entries.get(dataset)
        if entry is None or entry.made_by != fingerprint:
            return None
        unchanged = all(split.sha256 == self._digest(name, dataset) for name, split in entry.splits.items())
        return dict(entry.splits) if unchanged else None

    def sources(self, dataset: str) -> dict[str, str]:
        """url -> sha256 of the upstream files the dataset was made from."""
        entry = self._entries.get(dataset)
        return entry.sources if entry else {}

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A hidden folder on the same disk as the final files (a move is one step), removed at the end.

        Raises:
            EvalkitError: `data_dir` cannot be written.
        """
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned_staging()
            staging = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{process_tag()}-", dir=self._data_dir))
        except OSError as error:
            raise write_error(self._data_dir, error, "data_dir") from error
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def place(self, spec: TaskSpec, converted: Converted, why_missing: str) -> dict[str, PreparedSplit]:
        """Moves a dataset's staged files into the folder and returns the status of each split.

        Nothing of a dataset is placed when a split does not have its published hash. A split that is
        missing, or was made from a reduced source, does not replace a file of a dataset whose
        published files are there. `why_missing` is the reason given for missing splits.

        Raises:
            EvalkitError: the folder cannot be written.
        """
        published = spec.published.get(PROTOCOL_VERSION, {})
        upstream = spec.upstream.get(PROTOCOL_VERSION)
        names = SPLITS if upstream is None else upstream.splits
        for name, made in converted.splits.items():
            if published.get(name, made.sha256) != made.sha256:
                reason = (
                    f"{name}: sha256 expected {published[name]}, got {made.sha256}; nothing of it is kept"
                )
                return {split: PreparedSplit(Status.differs, reason=reason) for split in names}
        verified_before = bool(published) and all(
            self._digest(name, spec.name) == digest for name, digest in published.items()
        )
        splits = {}
        for name in names:
            staged, there = converted.splits.get(name), self._digest(name, spec.name)
            status = Status.verified if name in published else Status.derived
            lacking = staged is None or staged.groups_missing > 0
            if there and lacking and verified_before and not self._is_reduced(spec.name, name):
                splits[name] = PreparedSplit(status, None, there, "was there already and is kept")
            elif staged is None:
                splits[name] = PreparedSplit(Status.not_available, reason=why_missing)
            else:
                if there != staged.sha256:
                    self._move(staged.path, name, spec.name)
                splits[name] = _prepared_split(staged, status)
        return splits

    def record(
        self, dataset: str, fingerprint: str, sources: dict[str, str], splits: dict[str, PreparedSplit]
    ) -> None:
        """Adds a dataset that was written; `write_record` makes it durable."""
        usable = {name: split for name, split in splits.items() if split.status.usable}
        self._entries[dataset] = _Entry(fingerprint, sources, usable)

    def write_record(self) -> None:
        """Writes prepared.json."""
        content = {
            dataset: asdict(entry)
            | {"splits": {k: asdict(v) | {"status": v.status.value} for k, v in entry.splits.items()}}
            for dataset, entry in sorted(self._entries.items())
        }
        write_text_atomic(self._record_path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")

    def _path(self, split: str, dataset: str) -> Path:
        return prepared_path(self._data_dir, split, dataset)

    def _digest(self, split: str, dataset: str) -> str | None:
        """The sha256 of a split's file; None when there is none."""
        path = self._path(split, dataset)
        return file_sha256(path) if path.is_file() else None

    def _is_reduced(self, dataset: str, split: str) -> bool:
        """Whether the file on disk was written by an earlier command from a reduced source."""
        entry = self._entries.get(dataset)
        known = entry.splits.get(split) if entry else None
        return (
            known is not None
            and known.status is Status.reduced_source
            and known.sha256 == self._digest(split, dataset)
        )

    def _move(self, staged: Path, split: str, dataset: str) -> None:
        path = self._path(split, dataset)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(path)
        except OSError as error:
            raise write_error(path, error, "data_dir") from error

    def _remove_abandoned_staging(self) -> None:
        for folder in self._data_dir.glob(f"{_STAGING}*"):
            tag, _, _ = folder.name.removeprefix(_STAGING).rpartition("-")
            if is_abandoned(tag):
                shutil.rmtree(folder, ignore_errors=True)


def _prepared_split(staged: StagedSplit, status: Status) -> PreparedSplit:
    reason = ""
    if staged.groups_missing:
        status = Status.reduced_source
        reason = f"{staged.groups_missing} articles are empty in this copy of the source"
    return PreparedSplit(status, staged.samples, staged.sha256, reason)


def _read_record(path: Path) -> dict[str, _Entry]:
    try:
        content = json.loads(path.read_bytes())
        return {
            dataset: _Entry(
                entry["made_by"],
                dict(entry["sources"]),
                {
                    name: PreparedSplit(**facts | {"status": Status(facts["status"])})
                    for name, facts in entry["splits"].items()
                },
            )
            for dataset, entry in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # A lost, torn or edited record costs a second conversion, nothing else.
        return {}
