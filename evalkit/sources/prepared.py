"""The prepared file, byte for byte as llm-jp-eval v1.3.1 writes it, and what is known about a folder.

`DIR/1.3.1/prepared.json` remembers what was written from which upstream files, so that the same
command need not convert again. The layout is llm-jp-eval's own; the record is ours.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from evalkit import __version__
from evalkit.core.text import canonical_json, text_sha256
from evalkit.core.types import Row
from evalkit.sources.checksums import sha256_of
from evalkit.sources.pins import Pin
from evalkit.tasks.load import prepared_path
from evalkit.tasks.spec import TaskSpec, UpstreamSpec

RECORD = "prepared.json"


class Status(Enum):
    """What is known about a prepared split.

    `verified`: its sha256 is the published one. `derived`: made by the same code and rules, but no
    hash of it was published. `reduced_source`: part of the upstream data is not in the copy it was
    made of. `own`: data the user brought. `differs`: not the published bytes; not kept.
    `not_available`: the upstream files could not be had or read.
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
    """One prepared file: the number of its samples and the sha256 of its bytes, where it was made."""

    status: Status
    samples: int | None = None
    sha256: str | None = None
    reason: str = ""


def render(spec: TaskSpec, rows: Sequence[Row]) -> bytes:
    """The file: UTF-8, keys in llm-jp-eval's order, four spaces, no newline at the end."""
    content = {
        "instruction": spec.instruction,
        "output_length": spec.output_length,
        "metrics": list(spec.metrics),
        "few_shots": [],
        "samples": [row._asdict() for row in rows],
    }
    return json.dumps(content, ensure_ascii=False, indent=4).encode()


def fingerprint(spec: TaskSpec, upstream: UpstreamSpec, pins: Sequence[Pin], version: str) -> str:
    """What a dataset's files and their standing depend on besides the upstream bytes.

    evalkit, the task file (with the hashes published for that protocol version) and the pins.
    """
    facts = {
        "evalkit": __version__,
        "published": spec.published.get(version, {}),
        "header": [spec.instruction, spec.output_length, list(spec.metrics)],
        "rule": [upstream.converter, upstream.split.value],
        "pins": [asdict(pin) for pin in pins],
    }
    return text_sha256(canonical_json(facts))


@dataclass(frozen=True)
class _Entry:
    """What the record says of one dataset; `sources`: url -> sha256 of the upstream files."""

    made_by: str
    sources: dict[str, str]
    splits: dict[str, PreparedSplit]


class Folder:
    """A prepared folder of one protocol version: its record and its files."""

    def __init__(self, data_dir: Path, version: str) -> None:
        self.data_dir = data_dir
        self.version = version
        self.record_path = data_dir / version / RECORD
        self._entries = _read_record(self.record_path)

    def path(self, split: str, dataset: str) -> Path:
        """Where a prepared split lies."""
        return prepared_path(self.data_dir, split, dataset, self.version)

    def digest(self, split: str, dataset: str) -> str | None:
        """The sha256 of a split's file, None when there is none."""
        path = self.path(split, dataset)
        return sha256_of(path) if path.is_file() else None

    def remembered(self, dataset: str, made_by: str) -> dict[str, PreparedSplit] | None:
        """What an earlier command wrote, if it was made the same way and every file is still as it was."""
        entry = self._entries.get(dataset)
        if entry is None or entry.made_by != made_by:
            return None
        as_written = all(split.sha256 == self.digest(name, dataset) for name, split in entry.splits.items())
        return dict(entry.splits) if as_written else None

    def sources(self, dataset: str) -> dict[str, str]:
        """url -> sha256 of the upstream files the dataset was made of."""
        entry = self._entries.get(dataset)
        return dict(entry.sources) if entry else {}

    def written(self, dataset: str, split: str) -> Status | None:
        """What the record says of the file now on disk; None: it is not the file we wrote."""
        entry = self._entries.get(dataset)
        known = entry.splits.get(split) if entry else None
        return known.status if known and known.sha256 == self.digest(split, dataset) else None

    def remember(
        self, dataset: str, made_by: str, sources: dict[str, str], splits: dict[str, PreparedSplit]
    ) -> None:
        """Takes note of a dataset that was written; `record_text` is what makes it last."""
        usable = {name: split for name, split in splits.items() if split.status.usable}
        self._entries[dataset] = _Entry(made_by, sources, usable)

    def record_text(self) -> str:
        """The record as it is written."""
        content = {
            dataset: asdict(entry)
            | {"splits": {k: asdict(v) | {"status": v.status.value} for k, v in entry.splits.items()}}
            for dataset, entry in sorted(self._entries.items())
        }
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


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


def digest_of(data: bytes) -> str:
    """The sha256 of a file's content, hex."""
    return hashlib.sha256(data).hexdigest()
