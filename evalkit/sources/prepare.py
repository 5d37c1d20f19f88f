"""Prepares datasets: fetches what is pinned, converts in parallel, checks, and puts files in place.

from evalkit.sources.prepare import prepare
prepare([load_spec("jamp")], Path("data"), mirror=Path("mirror"))
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.core.durable import write_text_atomic
from evalkit.core.errors import EvalkitError, InputError
from evalkit.sources.conversion import Conversion, Job
from evalkit.sources.converters import APART
from evalkit.sources.fetch import Fetcher
from evalkit.sources.mirror import Mirror
from evalkit.sources.pins import Pin, pins_of
from evalkit.sources.placing import place
from evalkit.sources.prepared import Folder, PreparedSplit, Status, fingerprint
from evalkit.sources.readers import SourceFile
from evalkit.sources.workers import converted, staging_folder
from evalkit.tasks.own import load_own
from evalkit.tasks.spec import PROTOCOL_VERSION, SPLITS, TaskSpec, UpstreamSpec

if TYPE_CHECKING:
    from rich.console import Console

Fetched = dict[Pin, SourceFile | EvalkitError]


@dataclass(frozen=True)
class PreparedReport:
    """What `prepare` did for one dataset: its splits, remarks, licence."""

    spec: TaskSpec
    splits: dict[str, PreparedSplit]
    notes: tuple[str, ...] = ()

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.spec.name

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is there."""
        return all(split.status.usable for split in self.splits.values())


@dataclass
class _Dataset:
    spec: TaskSpec
    upstream: UpstreamSpec
    pins: tuple[Pin, ...]
    made_by: str
    remembered: dict[str, PreparedSplit] | None
    report: PreparedReport | None = None
    refused: bool = False

    @property
    def finished(self) -> bool:
        """Whether an earlier command made all of it, of the whole source."""
        splits = self.remembered or {}
        return all(
            name in splits and splits[name].status in (Status.verified, Status.derived) for name in SPLITS
        )


def prepare(
    specs: Sequence[TaskSpec],
    data_dir: Path,
    *,
    mirror: Path | None = None,
    offline: bool = False,
    version: str = PROTOCOL_VERSION,
    console: "Console | None" = None,
    workers: int | None = None,
    fetcher: Fetcher | None = None,
) -> list[PreparedReport]:
    """Writes `data_dir/<version>/evaluation/{train,dev,test}/<dataset>.json` for every dataset.

    Files that are there and right stay as they are. A dataset whose published split comes out with
    another hash is not kept.

    Args:
        specs: the datasets; the data of a user's own task is read (and, from the hub, fetched) only.
        data_dir: the folder, made when it is not there.
        mirror: a folder with manifests, used in place of the network.
        offline: take upstream files from the mirror and the cache only.
        version: the protocol version whose files are written.
        console: where progress is shown.
        workers: processes that convert; by default one for each core.
        fetcher: in place of the one that `mirror` and `offline` describe.

    Returns:
        One report for each dataset, in the order of `specs`.

    Raises:
        InputError: no such mirror, or a task that has no source.
        EvalkitError: the folder cannot be written or is full.
    """
    fetcher = fetcher or Fetcher(Mirror.open(mirror) if mirror else None, offline)
    folder = Folder(data_dir, version)
    datasets = {spec.name: _dataset(spec, folder) for spec in specs if spec.data is None}
    to_fetch = [dataset for dataset in datasets.values() if not dataset.finished]
    fetched = fetcher.fetch([pin for dataset in to_fetch for pin in dataset.pins], console=console)
    to_make = [dataset for dataset in to_fetch if not _unchanged(dataset, fetched, folder)]
    if to_make:
        _make(to_make, fetched, folder, workers)
        _discard_refused(to_make, fetched, fetcher)
    return [
        _own_report(spec, offline) if spec.data is not None else _report(datasets[spec.name], fetched)
        for spec in specs
    ]


def _dataset(spec: TaskSpec, folder: Folder) -> _Dataset:
    upstream = spec.upstream_of(folder.version)
    if upstream is None:
        raise InputError(
            f"{spec.name}: the task file names neither upstream nor data for version {folder.version}",
            where=f"task {spec.name}, field upstream",
        )
    pins = pins_of(upstream.source)
    made_by = fingerprint(spec, upstream, pins, folder.version)
    return _Dataset(spec, upstream, pins, made_by, folder.remembered(spec.name, made_by))


def _unchanged(dataset: _Dataset, fetched: Fetched, folder: Folder) -> bool:
    return dataset.remembered is not None and _sources(dataset, fetched) == folder.sources(dataset.spec.name)


def _sources(dataset: _Dataset, fetched: Fetched) -> dict[str, str]:
    found = ((pin.url, fetched[pin]) for pin in dataset.pins)
    return {url: file.digest for url, file in found if isinstance(file, SourceFile)}


def _make(datasets: Sequence[_Dataset], fetched: Fetched, folder: Folder, workers: int | None) -> None:
    by_name = {dataset.spec.name: dataset for dataset in datasets}
    with staging_folder(folder.data_dir) as staging:
        for conversions in converted(_jobs(datasets, fetched, staging), workers):
            for conversion in conversions:
                _finish(by_name[conversion.dataset], conversion, fetched, folder)
            _save(folder)


def _jobs(datasets: Sequence[_Dataset], fetched: Fetched, staging: Path) -> list[Job]:
    together: dict[tuple[str, str], list[_Dataset]] = {}
    for dataset in datasets:
        name = dataset.upstream.converter
        together.setdefault((dataset.upstream.source, name if name in APART else ""), []).append(dataset)
    return [
        Job(
            tuple((dataset.spec, dataset.upstream) for dataset in members),
            _files_by_role(members[0].pins, fetched),
            staging,
        )
        for members in together.values()
    ]


def _files_by_role(pins: Iterable[Pin], fetched: Fetched) -> dict[str, list[SourceFile]]:
    files: dict[str, list[SourceFile]] = {}
    incomplete = set()
    for pin in pins:
        file = fetched[pin]
        if isinstance(file, SourceFile):
            files.setdefault(pin.role, []).append(file)
        else:
            incomplete.add(pin.role)
    return {role: found for role, found in files.items() if role not in incomplete}


def _finish(dataset: _Dataset, conversion: Conversion, fetched: Fetched, folder: Folder) -> None:
    splits = place(dataset.spec, conversion, folder, conversion.error or _why_missing(dataset, fetched))
    dataset.report = PreparedReport(dataset.spec, splits, tuple(conversion.notes))
    dataset.refused = bool(conversion.error) or splits["dev"].status is Status.differs
    folder.remember(dataset.spec.name, dataset.made_by, _sources(dataset, fetched), splits)


def _save(folder: Folder) -> None:
    write_text_atomic(folder.record_path, folder.record_text())


def _why_missing(dataset: _Dataset, fetched: Fetched) -> str:
    problems = [error for pin in dataset.pins if isinstance(error := fetched[pin], EvalkitError)]
    if not problems:
        return "the source has no such split"
    more = f"; and {len(problems) - 1} more of its files" if len(problems) > 1 else ""
    return f"{problems[0].what} ({problems[0].where}){more}"


def _report(dataset: _Dataset, fetched: Fetched) -> PreparedReport:
    if dataset.report is not None:
        return dataset.report
    splits = dict(dataset.remembered or {})
    for name in SPLITS:
        if name not in splits:
            splits[name] = PreparedSplit(Status.not_available, reason=_why_missing(dataset, fetched))
    return PreparedReport(dataset.spec, {name: splits[name] for name in SPLITS})


def _own_report(spec: TaskSpec, offline: bool) -> PreparedReport:
    try:
        data = load_own(spec, offline=offline)
    except EvalkitError as error:
        return PreparedReport(spec, {"dev": PreparedSplit(Status.not_available, reason=str(error))})
    # The examples stand where the few-shots of other datasets come from, the samples where they are read.
    return PreparedReport(
        spec,
        {
            "train": PreparedSplit(Status.own, len(data.few_shots)),
            "dev": PreparedSplit(Status.own, len(data.samples), data.sha256["data"]),
        },
    )


def _discard_refused(datasets: Iterable[_Dataset], fetched: Fetched, fetcher: Fetcher) -> None:
    """Forgets fetched files that no pin vouches for when a dataset could not be made of them."""
    for pin in {pin for dataset in datasets if dataset.refused for pin in dataset.pins}:
        file = fetched[pin]
        if isinstance(file, SourceFile) and not pin.is_pinned:
            fetcher.discard(file)
