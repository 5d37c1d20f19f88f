"""Prepares datasets: fetches the pinned files, converts them, checks the outcome, moves it into place.

from evalkit.sources.prepare import prepare
prepare([load_spec("jamp")], Path("data"), mirror=Path("mirror"))

`DIR/1.3.1/prepared.json` records what was written from which upstream files, so that the same
command need not convert again. The layout is llm-jp-eval's own; the record is ours.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit import __version__
from evalkit.core.durable import write_text_atomic
from evalkit.core.errors import EvalkitError, InputError, write_error
from evalkit.core.text import canonical_json, text_sha256
from evalkit.sources.convert import SEPARATE, Conversion, Converted, StagedSplit, convert_all, staging_folder
from evalkit.sources.fetch import Fetched, Fetcher
from evalkit.sources.mirror import Mirror
from evalkit.sources.pins import Pin, pins_of, sha256_of
from evalkit.sources.readers import SourceFile
from evalkit.tasks.load import prepared_path
from evalkit.tasks.own import load_own
from evalkit.tasks.spec import PROTOCOL_VERSION, SPLITS, TaskSpec, UpstreamSpec

if TYPE_CHECKING:
    from rich.console import Console

RECORD = "prepared.json"


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
class PreparedReport:
    """What `prepare` did for one dataset."""

    spec: TaskSpec
    splits: dict[str, PreparedSplit]
    notes: tuple[str, ...] = ()

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.spec.name

    @property
    def complete(self) -> bool:
        """Whether every split is usable."""
        return all(split.status.usable for split in self.splits.values())


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
    folder = _PreparedFolder(data_dir, version)
    datasets = {spec.name: _dataset(spec, folder) for spec in specs if spec.data is None}
    to_fetch = [dataset for dataset in datasets.values() if not dataset.finished]
    fetched = fetcher.fetch([pin for dataset in to_fetch for pin in dataset.pins], console=console)
    to_convert = [
        dataset
        for dataset in to_fetch
        if dataset.kept is None or dataset.sources(fetched) != folder.sources(dataset.spec.name)
    ]
    if to_convert:
        _convert(to_convert, fetched, folder, workers)
        _discard_refused(to_convert, fetched, fetcher)
    return [
        _own_report(spec, offline) if spec.data is not None else datasets[spec.name].finish(fetched)
        for spec in specs
    ]


@dataclass
class _Dataset:
    """A dataset on its way; `kept`: the splits that an earlier command wrote in the same way."""

    spec: TaskSpec
    upstream: UpstreamSpec
    pins: tuple[Pin, ...]
    fingerprint: str
    kept: dict[str, PreparedSplit] | None
    report: PreparedReport | None = None
    refused: bool = False

    @property
    def finished(self) -> bool:
        """Whether an earlier command made all of it, of the whole source."""
        kept = self.kept or {}
        return all(name in kept and kept[name].status in (Status.verified, Status.derived) for name in SPLITS)

    def sources(self, fetched: Fetched) -> dict[str, str]:
        """url -> sha256 of the upstream files that are available."""
        found = ((pin.url, fetched[pin]) for pin in self.pins)
        return {url: file.digest for url, file in found if isinstance(file, SourceFile)}

    def why_missing(self, fetched: Fetched) -> str:
        problems = [error for pin in self.pins if isinstance(error := fetched[pin], EvalkitError)]
        if not problems:
            return "the source has no such split"
        more = f"; and {len(problems) - 1} more of its files" if len(problems) > 1 else ""
        return f"{problems[0].what} ({problems[0].where}){more}"

    def finish(self, fetched: Fetched) -> PreparedReport:
        """The report of this command's conversion, or on what was kept."""
        if self.report is not None:
            return self.report
        kept = self.kept or {}
        splits = {
            name: kept.get(name) or PreparedSplit(Status.not_available, reason=self.why_missing(fetched))
            for name in SPLITS
        }
        return PreparedReport(self.spec, splits)


def _dataset(spec: TaskSpec, folder: "_PreparedFolder") -> _Dataset:
    upstream = spec.upstream_of(folder.version)
    if upstream is None:
        raise InputError(
            f"{spec.name}: the task file names neither upstream nor data for version {folder.version}",
            where=f"task {spec.name}, field upstream",
        )
    pins = pins_of(upstream.source)
    # Everything the files and their status depend on besides the upstream bytes.
    facts = {
        "evalkit": __version__,
        "published": spec.published.get(folder.version, {}),
        "header": [spec.instruction, spec.output_length, list(spec.metrics)],
        "rule": [upstream.converter, upstream.split.value],
        "pins": [asdict(pin) for pin in pins],
    }
    fingerprint = text_sha256(canonical_json(facts))
    return _Dataset(spec, upstream, pins, fingerprint, folder.kept(spec.name, fingerprint))


def _convert(
    datasets: Sequence[_Dataset], fetched: Fetched, folder: "_PreparedFolder", workers: int | None
) -> None:
    by_name = {dataset.spec.name: dataset for dataset in datasets}
    with staging_folder(folder.data_dir) as staging:
        for outcomes in convert_all(_conversions(datasets, fetched, staging), workers):
            for outcome in outcomes:
                dataset = by_name[outcome.dataset]
                splits = _place(dataset.spec, outcome, folder, outcome.error or dataset.why_missing(fetched))
                dataset.report = PreparedReport(dataset.spec, splits, tuple(outcome.notes))
                dataset.refused = bool(outcome.error) or splits["dev"].status is Status.differs
                folder.record(dataset.spec.name, dataset.fingerprint, dataset.sources(fetched), splits)
            folder.write_record()


def _conversions(datasets: Sequence[_Dataset], fetched: Fetched, staging: Path) -> list[Conversion]:
    """One for each source, and one for each dataset that shares no parsing with the others of its source."""
    together: dict[tuple[str, str], list[_Dataset]] = {}
    for dataset in datasets:
        name = dataset.upstream.converter
        together.setdefault((dataset.upstream.source, name if name in SEPARATE else ""), []).append(dataset)
    return [
        Conversion(
            tuple((dataset.spec, dataset.upstream) for dataset in members),
            _files_by_role(members[0].pins, fetched),
            staging,
        )
        for members in together.values()
    ]


def _files_by_role(pins: Iterable[Pin], fetched: Fetched) -> dict[str, list[SourceFile]]:
    """The files of each role of which none is missing."""
    files: dict[str, list[SourceFile]] = {}
    incomplete = set()
    for pin in pins:
        file = fetched[pin]
        if isinstance(file, SourceFile):
            files.setdefault(pin.role, []).append(file)
        else:
            incomplete.add(pin.role)
    return {role: found for role, found in files.items() if role not in incomplete}


def _own_report(spec: TaskSpec, offline: bool) -> PreparedReport:
    try:
        data = load_own(spec, offline=offline)
    except EvalkitError as error:
        return PreparedReport(spec, {"dev": PreparedSplit(Status.not_available, reason=str(error))})
    # Examples are listed under train, where other datasets' few-shots come from; samples under dev.
    return PreparedReport(
        spec,
        {
            "train": PreparedSplit(Status.own, len(data.few_shots)),
            "dev": PreparedSplit(Status.own, len(data.samples), data.sha256["data"]),
        },
    )


def _discard_refused(datasets: Iterable[_Dataset], fetched: Fetched, fetcher: Fetcher) -> None:
    """Removes unpinned files from the cache when a dataset could not be made of them."""
    for pin in {pin for dataset in datasets if dataset.refused for pin in dataset.pins}:
        file = fetched[pin]
        if isinstance(file, SourceFile) and not pin.is_pinned:
            fetcher.discard(file)


# --- files into their place -----------------------------------------------------------------------


def _place(
    spec: TaskSpec, outcome: Converted, folder: "_PreparedFolder", reason: str
) -> dict[str, PreparedSplit]:
    """Moves a dataset's staged files into the folder and gives the status of each split.

    Nothing of a dataset is placed when a split does not have its published hash. A split that is
    missing, or was made of a reduced source, does not replace a file that lies next to the published
    one. `reason` says why missing splits were not made.

    Raises:
        EvalkitError: the folder cannot be written.
    """
    published = spec.published.get(folder.version, {})
    for name, made in outcome.splits.items():
        if published.get(name, made.sha256) != made.sha256:
            reason = f"{name}: sha256 expected {published[name]}, got {made.sha256}; nothing of it is kept"
            return {split: PreparedSplit(Status.differs, reason=reason) for split in SPLITS}
    genuine = bool(published) and all(
        folder.digest(name, spec.name) == digest for name, digest in published.items()
    )
    splits = {}
    for name in SPLITS:
        staged = outcome.splits.get(name)
        there = folder.digest(name, spec.name)
        lacking = staged is None or staged.groups_missing > 0
        if there and genuine and lacking and not folder.is_reduced(spec.name, name):
            status = Status.verified if published.get(name) == there else Status.derived
            splits[name] = PreparedSplit(status, None, there, "was there already and is kept")
        elif staged is None:
            splits[name] = PreparedSplit(Status.not_available, reason=reason)
        else:
            if there != staged.sha256:
                _move(staged.path, folder.path(name, spec.name))
            splits[name] = _prepared_split(staged, name in published)
    return splits


def _move(staged: Path, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(path)
    except OSError as error:
        raise write_error(path, error, "data_dir") from error


def _prepared_split(staged: StagedSplit, is_published: bool) -> PreparedSplit:
    if staged.groups_missing:
        reason = f"{staged.groups_missing} articles are empty in this copy of the source"
        return PreparedSplit(Status.reduced_source, staged.samples, staged.sha256, reason)
    status = Status.verified if is_published else Status.derived
    return PreparedSplit(status, staged.samples, staged.sha256)


# --- the folder and its record --------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """One dataset in the record; `made_by`: its fingerprint; `sources`: url -> sha256."""

    made_by: str
    sources: dict[str, str]
    splits: dict[str, PreparedSplit]


class _PreparedFolder:
    """A prepared folder of one protocol version: its files and its record."""

    def __init__(self, data_dir: Path, version: str) -> None:
        self.data_dir = data_dir
        self.version = version
        self._record_path = data_dir / version / RECORD
        self._entries = _read_record(self._record_path)

    def path(self, split: str, dataset: str) -> Path:
        return prepared_path(self.data_dir, split, dataset, self.version)

    def digest(self, split: str, dataset: str) -> str | None:
        """The sha256 of a split's file, None when there is none."""
        path = self.path(split, dataset)
        return sha256_of(path) if path.is_file() else None

    def kept(self, dataset: str, fingerprint: str) -> dict[str, PreparedSplit] | None:
        """What an earlier command wrote, if the fingerprint is the same and no file has changed."""
        entry = self._entries.get(dataset)
        if entry is None or entry.made_by != fingerprint:
            return None
        unchanged = all(split.sha256 == self.digest(name, dataset) for name, split in entry.splits.items())
        return dict(entry.splits) if unchanged else None

    def sources(self, dataset: str) -> dict[str, str]:
        """url -> sha256 of the upstream files the dataset was made of."""
        entry = self._entries.get(dataset)
        return entry.sources if entry else {}

    def is_reduced(self, dataset: str, split: str) -> bool:
        """Whether the file on disk was written by an earlier command from a reduced source."""
        entry = self._entries.get(dataset)
        known = entry.splits.get(split) if entry else None
        return (
            known is not None
            and known.status is Status.reduced_source
            and known.sha256 == self.digest(split, dataset)
        )

    def record(
        self, dataset: str, fingerprint: str, sources: dict[str, str], splits: dict[str, PreparedSplit]
    ) -> None:
        """Adds a dataset that was written; `write_record` makes it durable."""
        usable = {name: split for name, split in splits.items() if split.status.usable}
        self._entries[dataset] = _Entry(fingerprint, sources, usable)

    def write_record(self) -> None:
        content = {
            dataset: asdict(entry)
            | {"splits": {k: asdict(v) | {"status": v.status.value} for k, v in entry.splits.items()}}
            for dataset, entry in sorted(self._entries.items())
        }
        write_text_atomic(self._record_path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


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
