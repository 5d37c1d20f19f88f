"""Prepares datasets: fetches and verifies their upstream files, converts them, and writes the prepared files.

from evalkit.sources.prepare import prepare
prepare([load_spec("jamp")], Path("data"), mirror=Path("mirror"))
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evalkit import __version__
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.text import canonical_json, text_sha256
from evalkit.sources.convert import Conversion, convert_all
from evalkit.sources.fetch import Fetched, Fetcher
from evalkit.sources.pins import Pin, SourceFile, pins_of
from evalkit.sources.prepared import PreparedFolder, PreparedSplit, Status
from evalkit.tasks.own import load_own
from evalkit.tasks.spec import PROTOCOL_VERSION, TaskSpec, UpstreamSpec


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
    fetcher: Fetcher | None = None,
) -> list[PreparedReport]:
    """Writes `data_dir/1.3.1/evaluation/{train,dev,test}/<dataset>.json` for every dataset.

    Files that are already correct are not written again. A dataset is not kept when a split with a
    published hash has another one.

    Args:
        specs: the datasets; the data of a user's own task is only read (and fetched, from the hub).
        data_dir: the folder; it is created where it does not exist.
        mirror: a folder with manifests that replaces the network.
        offline: take upstream files from the mirror and the cache only.
        fetcher: replaces the one that `mirror` and `offline` describe.

    Returns:
        One report for each dataset, in the order of `specs`.

    Raises:
        InputError: no such mirror, or a task that has no source.
        EvalkitError: the folder cannot be written or is full.
    """
    fetcher = fetcher or Fetcher.of(mirror, offline)
    folder = PreparedFolder(data_dir)
    datasets = {spec.name: _dataset(spec, folder) for spec in specs if spec.data is None}
    unfinished = [dataset for dataset in datasets.values() if not dataset.finished]
    fetched = fetcher.fetch([pin for dataset in unfinished for pin in dataset.pins])
    changed = [
        dataset
        for dataset in unfinished
        if dataset.kept is None or dataset.sources(fetched) != folder.sources(dataset.spec.name)
    ]
    reports = _convert_and_write(changed, fetched, folder, fetcher) if changed else {}
    return [
        _own_report(spec, offline)
        if spec.data is not None
        else reports.get(spec.name) or datasets[spec.name].kept_report(fetched)
        for spec in specs
    ]


@dataclass(frozen=True)
class _Dataset:
    """A dataset to prepare; `kept`: the splits that an earlier command wrote by the same rules."""

    spec: TaskSpec
    upstream: UpstreamSpec
    pins: tuple[Pin, ...]
    fingerprint: str
    kept: Mapping[str, PreparedSplit] | None

    @property
    def finished(self) -> bool:
        """Whether an earlier command wrote every split from the whole source."""
        kept = self.kept or {}
        made = (Status.verified, Status.derived)
        return all(name in kept and kept[name].status in made for name in self.upstream.splits)

    def sources(self, fetched: Fetched) -> dict[str, str]:
        """url -> sha256 of the upstream files that are available."""
        found = ((pin.url, fetched[pin]) for pin in self.pins)
        return {url: file.digest for url, file in found if isinstance(file, SourceFile)}

    def why_missing(self, fetched: Fetched) -> str:
        """Why a split could not be made."""
        problems = [error for pin in self.pins if isinstance(error := fetched[pin], EvalkitError)]
        if not problems:
            return "the source has no such split"
        more = f"; and {len(problems) - 1} more of its files" if len(problems) > 1 else ""
        return f"{problems[0].what} ({problems[0].where}){more}"

    def kept_report(self, fetched: Fetched) -> PreparedReport:
        """The report of a dataset that this command did not convert."""
        kept = self.kept or {}
        splits = {
            name: kept.get(name) or PreparedSplit(Status.not_available, reason=self.why_missing(fetched))
            for name in self.upstream.splits
        }
        return PreparedReport(self.spec, splits)


def _dataset(spec: TaskSpec, folder: PreparedFolder) -> _Dataset:
    upstream = spec.upstream.get(PROTOCOL_VERSION)
    if upstream is None:
        raise InputError(
            f"{spec.name}: the task file names neither upstream nor data for version {PROTOCOL_VERSION}",
            where=f"task {spec.name}, field upstream",
        )
    pins = pins_of(upstream.source)
    # Everything but the upstream bytes that decides the files and their status.
    facts = {
        "evalkit": __version__,
        "published": spec.published.get(PROTOCOL_VERSION, {}),
        "header": [spec.instruction, spec.output_length, list(spec.metrics)],
        "rule": [upstream.converter, upstream.split.value],
        "pins": [asdict(pin) for pin in pins],
    }
    fingerprint = text_sha256(canonical_json(facts))
    return _Dataset(spec, upstream, pins, fingerprint, folder.kept(spec.name, fingerprint))


def _convert_and_write(
    datasets: Sequence[_Dataset],
    fetched: Fetched,
    folder: PreparedFolder,
    fetcher: Fetcher,
) -> dict[str, PreparedReport]:
    """The report of each dataset by name; the record is written after each source."""
    by_name = {dataset.spec.name: dataset for dataset in datasets}
    reports: dict[str, PreparedReport] = {}
    refused: set[Pin] = set()
    with folder.staging() as staging:
        for outcomes in convert_all(_conversions(datasets, fetched, staging)):
            for outcome in outcomes:
                dataset = by_name[outcome.dataset]
                splits = folder.place(dataset.spec, outcome, outcome.error or dataset.why_missing(fetched))
                folder.record(outcome.dataset, dataset.fingerprint, dataset.sources(fetched), splits)
                reports[outcome.dataset] = PreparedReport(dataset.spec, splits, tuple(outcome.notes))
                if outcome.error or splits["dev"].status is Status.differs:
                    refused.update(dataset.pins)
            folder.write_record()
    # Unpinned files may be damaged: the next command fetches them again.
    for pin in refused:
        file = fetched[pin]
        if isinstance(file, SourceFile) and not pin.is_pinned:
            fetcher.discard(file)
    return reports


def _conversions(datasets: Sequence[_Dataset], fetched: Fetched, staging: Path) -> list[Conversion]:
    """One for each source."""
    together: dict[str, list[_Dataset]] = {}
    for dataset in datasets:
        together.setdefault(dataset.upstream.source, []).append(dataset)
    return [
        Conversion(
            tuple((dataset.spec, dataset.upstream) for dataset in members),
            _files_by_role(members[0].pins, fetched),
            staging,
        )
        for members in together.values()
    ]


def _files_by_role(pins: Iterable[Pin], fetched: Fetched) -> dict[str, list[SourceFile]]:
    """The files of each role that is complete."""
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
    # Few-shot examples are listed under train, as other datasets take theirs from it; samples under dev.
    return PreparedReport(
        spec,
        {
            "train": PreparedSplit(Status.own, len(data.few_shots)),
            "dev": PreparedSplit(Status.own, len(data.samples), data.sha256["data"]),
        },
    )
