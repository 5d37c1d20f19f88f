"""tasks/*.yaml and prepared files -> Task: the few-shots and samples of one dataset.

A prepared folder has llm-jp-eval's layout, `DIR/1.3.1/evaluation/{train,dev,test}/<dataset>.json`;
one made by llm-jp-eval itself serves as well. Files: docs/protocol/jaster.md, section 2.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.core import assets
from evalkit.core.errors import InputError
from evalkit.core.files import decode, parse_json, read_bytes
from evalkit.core.text import command
from evalkit.core.types import Sample
from evalkit.metrics.ifeval import read_instructions
from evalkit.tasks.spec import PROTOCOL_VERSION, TaskSpec


@dataclass(frozen=True)
class Task:
    """A dataset with its samples and few-shots. `sha256` maps each file read to the hash of its bytes."""

    spec: TaskSpec
    few_shots: tuple[Sample, ...]
    samples: tuple[Sample, ...]
    sha256: dict[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.spec.name

    @property
    def facts(self) -> dict[str, Any]:
        """What a result records of its data, as plain JSON values: file hashes, licence, citation.

        Of a user's own task also `counts`, the metric that is compared.
        """
        if "bundled" in self.sha256:
            return {"sha256": self.sha256, "license": "Apache-2.0 (bundled items)", "citation": None}
        facts = {"sha256": self.sha256, "license": self.spec.license, "citation": self.spec.citation}
        if self.spec.data is not None:
            # The file of a user's own task may be gone, or another, when its results are read.
            facts["counts"] = self.spec.counts or self.spec.metrics[0]
        return facts


def prepared_path(data_dir: Path, split: str, name: str) -> Path:
    """The path of a prepared split below `data_dir`."""
    return data_dir / PROTOCOL_VERSION / "evaluation" / split / f"{name}.json"


def load_task(
    spec: TaskSpec,
    data_dir: Path,
    *,
    split: str = "dev",
    limit: int = 100,
    num_few_shots: int = 4,
    offline: bool = False,
) -> Task:
    """A task from prepared files: few-shots from the head of train, samples from the head of `split`.

    A task with data of its own is read from there; `data_dir` and `split` do not apply to it.

    Args:
        spec: the dataset.
        data_dir: a folder `prepare` or llm-jp-eval wrote.
        split: train, dev or test.
        limit: number of samples; 0 or below means all.
        num_few_shots: number of examples in each prompt.
        offline: take hub data from the library's cache only.

    Raises:
        InputError: a file is missing or malformed, an instruction is unknown, or train is shorter than
            `num_few_shots`.
    """
    if spec.data is not None:
        return _load_own(spec, limit=limit, num_few_shots=num_few_shots, offline=offline)
    examples: list[dict[str, str]] = []
    hashes: dict[str, str] = {}
    if num_few_shots > 0:
        examples, hashes["train"] = _read_prepared(prepared_path(data_dir, "train", spec.name))
    rows, hashes[split] = _read_prepared(prepared_path(data_dir, split, spec.name))
    warnings = [
        f"{spec.name}: {prepared_path(data_dir, which, spec.name)} is not the published file "
        f"(sha256 {hashes[which]}, published {spec.published[PROTOCOL_VERSION][which]})"
        for which in spec.differing(hashes)
    ]
    if len(examples) < num_few_shots:
        where = prepared_path(data_dir, "train", spec.name)
        raise _too_few(spec.name, num_few_shots, len(examples), "samples in train", where)
    return Task(
        spec=spec,
        few_shots=_samples(spec, "train", examples, num_few_shots),
        samples=_samples(spec, split, rows, limit if limit > 0 else None),
        sha256=hashes,
        warnings=tuple(warnings),
    )


def _load_own(spec: TaskSpec, *, limit: int, num_few_shots: int, offline: bool) -> Task:
    from evalkit.tasks.own import load_own

    data = load_own(spec, offline=offline)
    if len(data.few_shots) < num_few_shots:
        where = f"task {spec.name}, field data.few_shots"
        raise _too_few(spec.name, num_few_shots, len(data.few_shots), "examples are there", where)
    examples, rows = ([row._asdict() for row in part] for part in (data.few_shots, data.samples))
    return Task(
        spec=spec,
        few_shots=_samples(spec, "few-shot", examples, num_few_shots),
        samples=_samples(spec, "own", rows, limit if limit > 0 else None),
        sha256=data.sha256,
    )


def load_bundled(spec: TaskSpec, *, limit: int = 100, num_few_shots: int = 4) -> Task:
    """A task from the bundled items of `tasks/samples/` (format: few_shots and samples).

    Raises:
        InputError: no bundled items, a malformed file, or fewer than `num_few_shots` examples.
    """
    path = assets.SAMPLES / f"{spec.name}.json"
    if not path.is_file():
        raise InputError(
            f"no items of {spec.name} are bundled",
            where="option suite.tasks",
            fix="suite=task for other tasks",
        )
    content, digest = _read_json(path)
    if not isinstance(content, dict):
        raise InputError("bundled items must be an object with few_shots and samples", where=path)
    examples, rows = (_rows(content.get(name), path, name) for name in ("few_shots", "samples"))
    if len(examples) < num_few_shots:
        raise _too_few(spec.name, num_few_shots, len(examples), "are bundled", path)
    return Task(
        spec=spec,
        few_shots=_samples(spec, "few-shot", examples, num_few_shots),
        samples=_samples(spec, "bundled", rows, limit if limit > 0 else None),
        sha256={"bundled": digest},
    )


def _too_few(name: str, wanted: int, found: int, what: str, where: object) -> InputError:
    return InputError(
        f"{name}: {wanted} few-shots asked for, {found} {what}",
        where=where,
        fix=f"num_few_shots={found}, or for this task alone suite.num_few_shots.{name}={found}",
    )


def _samples(
    spec: TaskSpec, part: str, rows: Sequence[dict[str, str]], most: int | None
) -> tuple[Sample, ...]:
    """The first `most` rows (None: all) as samples."""
    samples = tuple(
        Sample(id=f"{spec.name}/{part}/{index}", input=row["input"], gold=row["output"])
        for index, row in enumerate(rows[:most])
    )
    if spec.verbatim:
        for sample in samples:
            where = f"sample {sample.id}"
            read_instructions(parse_json(sample.gold, where), where)
    return samples


def _read_prepared(path: Path) -> tuple[list[dict[str, str]], str]:
    try:
        content, digest = _read_json(path)
        if not isinstance(content, dict) or "samples" not in content:
            raise InputError("not a prepared file: an object with the field samples was expected", where=path)
        return _rows(content["samples"], path, "samples"), digest
    except MissingDataError:
        raise
    except InputError as error:
        raise InputError(error.what, where=error.where, fix=error.fix or _prepare_again(path)) from None


def _prepare_again(path: Path) -> str:
    """The command that writes a prepared file."""
    return command("prepare", "suite=task", f"suite.tasks=[{path.stem}]", f"data_dir={path.parents[3]}")


def _read_json(path: Path) -> tuple[Any, str]:
    try:
        missing = not path.exists()
    except (OSError, ValueError):
        missing = False
    if missing:
        raise MissingDataError(path)
    data = read_bytes(path)
    return parse_json(decode(data, path), path), hashlib.sha256(data).hexdigest()


def _rows(value: Any, path: Path, field_name: str) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise InputError("a list was expected", where=f"{path}, field {field_name}")
    for index, row in enumerate(value):
        for key in ("input", "output"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise InputError("a string was expected", where=f"{path}, field {field_name}[{index}].{key}")
    return value


class MissingDataError(InputError):
    """A prepared file is missing; with `allow_missing=true` its dataset is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fix = f"{_prepare_again(path)}   (or allow_missing=true)"
        super().__init__("a prepared file is missing", where=path, fix=fix)
