"""One source converted: the datasets made of it, rendered into a staging folder. Runs in a worker."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evalkit.core.errors import EvalkitError, write_error
from evalkit.sources.archives import SourceWarning
from evalkit.sources.converters import converter, forget
from evalkit.sources.prepared import digest_of, render
from evalkit.sources.readers import SourceFile
from evalkit.sources.splits import SplitRows, split
from evalkit.tasks.spec import TaskSpec, UpstreamSpec


@dataclass(frozen=True)
class Job:
    """Datasets of one source and the files that can be had, by role, in the table's order."""

    datasets: tuple[tuple[TaskSpec, UpstreamSpec], ...]
    files: Mapping[str, Sequence[SourceFile]]
    staging: Path

    @property
    def weight(self) -> tuple[bool, int]:
        """Sorts jobs by how long they take: archives before plain files, large before small."""
        every = [file for files in self.files.values() for file in files]
        return any(file.pin.members for file in every), sum(file.path.stat().st_size for file in every)


@dataclass(frozen=True)
class StagedSplit:
    """A rendered split, not yet in its place."""

    path: Path
    samples: int
    sha256: str
    groups_missing: int


@dataclass
class Conversion:
    """What came of one dataset: its splits, or why it could not be converted."""

    dataset: str
    splits: dict[str, StagedSplit] = field(default_factory=dict)
    error: str = ""
    notes: list[str] = field(default_factory=list)


def convert(job: Job) -> list[Conversion]:
    """Converts the datasets of a job; one that fails does not stop the others.

    Raises:
        EvalkitError: the staging folder cannot be written (no space left).
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", SourceWarning)
        try:
            done = [_converted(spec, upstream, job) for spec, upstream in job.datasets]
        finally:
            forget()
    # What is wrong with the members of a shared archive concerns every dataset made of it.
    for conversion in done:
        conversion.notes = sorted({str(warning.message) for warning in caught})
    return done


def _converted(spec: TaskSpec, upstream: UpstreamSpec, job: Job) -> Conversion:
    try:
        pools = converter(upstream.converter)(job.files) if job.files else {}
        splits = split(upstream.split, pools) if pools else {}
    except EvalkitError as error:
        return Conversion(spec.name, error=str(error))
    staged = {
        name: _stage(job.staging / f"{spec.name}.{name}.json", spec, rows) for name, rows in splits.items()
    }
    return Conversion(spec.name, staged)


def _stage(path: Path, spec: TaskSpec, split_rows: SplitRows) -> StagedSplit:
    data = render(spec, split_rows.rows)
    try:
        with path.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise write_error(path, error, "data_dir") from error
    return StagedSplit(path, len(split_rows.rows), digest_of(data), split_rows.groups_missing)
