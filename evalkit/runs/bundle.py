"""One tar file with everything a run needs, for machines without a network.

    <name>/
        bundle.json              what it holds
        SHA256SUMS               of every other file: check with `sha256sum -c SHA256SUMS`
        1.3.1/evaluation/...     prepared data: `data_dir=` is the unpacked folder itself
        tasks/<name>/            tasks of the user's own, each with its data files
        hub/                     model and metric files, laid out as the hub library's cache
        cache/                   evalkit's cache: converted models, MT-Bench's questions and prompts
        models/<name>/           models that came from a plain folder

Because hub/ and cache/ are caches, a run from the unpacked folder resolves every name as it would
elsewhere and gets the same run id.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit import __version__
from evalkit.core import assets
from evalkit.core.config import Config, DataOptions, MetricsConfig, ModelConfig, SuiteData
from evalkit.core.durable import atomic_file
from evalkit.core.errors import EvalkitError, FetchError, InputError
from evalkit.core.files import read_yaml
from evalkit.core.progress import Say
from evalkit.engines.models import check
from evalkit.engines.models.folder_files import files_of
from evalkit.records.unpacked import MARK, SUMS
from evalkit.runs.suite import suite_specs
from evalkit.tasks.spec import TaskSpec, is_task_file


@dataclass
class Contents:
    """What goes into a bundle.

    Attributes:
        files: path inside the bundle -> file.
        texts: path inside the bundle -> content.
        facts: what bundle.json says.
        options: what a command needs in addition to `data_dir`, for files that no name resolves to.
    """

    files: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)

    def add_folder(self, inside: str, folder: Path) -> None:
        """Adds the files of `folder` (`files_of`); links are followed, so that none is in the bundle."""
        self.files |= {f"{inside}/{name}": path for name, path in files_of(folder).items()}


def collect(config: Config, *, say: Say) -> Contents:
    """Gathers what a bundle holds, fetching and preparing what is missing.

    Raises:
        InputError: neither a suite nor a model is named.
        EvalkitError: something is unavailable (unless `allow_missing`).
    """
    if config.suite is None and config.model is None:
        raise InputError("what shall be packed?", fix="suite=jaster and/or model=1.8b-instruct")
    if config.model is not None:
        check(config.model, offline=config.data.offline)
    contents = Contents(facts={"evalkit": __version__})
    if config.suite is not None:
        from evalkit.mtbench.books import BookOptions, fetch_all

        books = BookOptions.of(config)
        contents.facts["suite"] = config.suite.name
        if config.suite.mt_bench is not None:
            language = config.language or config.suite.mt_bench
            _add_mt_bench(contents, language, fetch_all(books, language))
        elif config.suite.pfgen:
            _add_pfgen(contents, config.data)
        else:
            specs = suite_specs(config.suite)
            if config.suite.data is SuiteData.prepared:
                _add_data(contents, specs, config.data, say)
                _add_own_tasks(contents, config.suite.tasks, specs, say)
                try:
                    _add_mt_bench(contents, "ja", fetch_all(books, "ja"))
                except FetchError as error:
                    # Only the suite was requested; these few files are an addition.
                    say(f"left out: MT-Bench, {error.what}")
            if any("comet_wmt22" in spec.metrics for spec in specs):
                _add_comet(contents, config.metrics, config.data, say)
    if config.model is not None:
        _add_model(contents, config.model, say, offline=config.data.offline)
    return contents


def _add_mt_bench(contents: Contents, language: str, files: Mapping[str, Path]) -> None:
    contents.files |= {f"cache/{inside}": path for inside, path in files.items()}
    contents.facts["mt_bench"] = language


def _add_pfgen(contents: Contents, data: DataOptions) -> None:
    """The questions with their references, and the tables of these."""
    from evalkit.metrics.pfgen import table_path, tables_of
    from evalkit.sources.pfgen import fetch_data, fetch_files

    files = fetch_files(data.mirror, offline=data.offline)
    contents.files |= {f"cache/sources/{name}": path for name, path in files.items()}
    questions, _ = fetch_data(data.mirror, offline=data.offline)
    for question in questions:
        tables_of(question)
        if (path := table_path(question)).is_file():
            contents.files[f"cache/pfgen/{path.name}"] = path
    contents.facts["datasets"] = ["pfgen"]


def _add_data(contents: Contents, specs: list[TaskSpec], data: DataOptions, say: Say) -> None:
    from evalkit.sources.prepare import prepare

    folder, packed = data.data_dir or assets.default_data_dir(), []
    for report in prepare(specs, folder, mirror=data.mirror, offline=data.offline):
        paths = sorted(folder.glob(f"*/evaluation/*/{report.dataset}.json"))
        lacking = {name: split.reason for name, split in report.splits.items() if not split.status.usable}
        if lacking:
            what = (
                f"{report.dataset} has no {', '.join(lacking)}: {'; '.join(dict.fromkeys(lacking.values()))}"
            )
            _missing(what, data, say, how="incomplete" if paths else "left out")
        if paths or not lacking:
            packed.append(report.dataset)
        contents.files |= {path.relative_to(folder).as_posix(): path for path in paths}
    for path in folder.glob("*/prepared.json"):
        contents.files[path.relative_to(folder).as_posix()] = path
    contents.facts["datasets"] = sorted(packed)


def _add_own_tasks(contents: Contents, names: Sequence[str], specs: Sequence[TaskSpec], say: Say) -> None:
    """Adds the user's own task files and the data files beside or below them."""
    packed = []
    for name, spec in zip(names, specs, strict=True):
        if not is_task_file(name):
            packed.append(name)
            continue
        if spec.name not in contents.facts["datasets"]:
            continue
        path, inside = Path(name).expanduser(), f"tasks/{spec.name}"
        written = read_yaml(path).get("data") or {}
        data = [Path(written[key]) for key in ("file", "few_shots_file") if written.get(key)]
        if not data or any(file.expanduser().is_absolute() or ".." in file.parts for file in data):
            say(
                f"left out: {spec.name}, its data are no files in the folder of {name}: copy them there, "
                "and name them in it by their paths from that folder"
            )
            contents.facts["datasets"].remove(spec.name)
            continue
        contents.files |= {
            f"{inside}/{file.as_posix()}": path.parent / file for file in (Path(path.name), *data)
        }
        packed.append(f"BUNDLE/{inside}/{path.name}")
    if packed and packed != [*names]:
        contents.options.append(f"suite={','.join(packed)}")


def _add_comet(contents: Contents, metrics: MetricsConfig, data: DataOptions, say: Say) -> None:
    from evalkit.metrics.metric import MetricUnavailableError
    from evalkit.metrics.model_files import comet_files

    try:
        folders = comet_files(metrics, data.offline)
    except MetricUnavailableError as error:
        _missing(f"comet_wmt22: {error.what}", data, say)
        return
    for option, folder in zip(("checkpoint", "encoder"), folders, strict=True):
        if not _add_snapshot(contents, folder):
            contents.add_folder(f"metrics/comet-{option}", folder if folder.is_dir() else folder.parent)
            contents.options.append(f"metrics.comet.{option}=BUNDLE/metrics/comet-{option}")


def _add_model(contents: Contents, options: ModelConfig, say: Say, *, offline: bool) -> None:
    from evalkit.engines.models import resolve

    model = resolve(options, offline=offline)
    contents.facts["model"] = {"name": model.name, "identity": model.identity, "license": model.license}
    for folder, option in ((model.path, "path"), (model.tokenizer, "tokenizer")):
        if folder is None or _add_snapshot(contents, folder):
            continue
        if folder.is_relative_to(assets.cache_dir()):
            contents.add_folder(f"cache/{folder.relative_to(assets.cache_dir()).as_posix()}", folder)
        else:
            inside = f"models/{model.label}" + ("" if option == "path" else "-tokenizer")
            contents.add_folder(inside, folder)
            contents.options.append(f"model.{option}=BUNDLE/{inside}")
    say(f"model {model.name}: {model.path or 'built from its shape when it runs'}")


def _add_snapshot(contents: Contents, folder: Path) -> bool:
    """Adds a folder of the hub library's cache with the names that point to it; False if it is none."""
    repository = folder.parent.parent
    if folder.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return False
    contents.add_folder(f"hub/{repository.name}/snapshots/{folder.name}", folder)
    references = [path for path in sorted((repository / "refs").rglob("*")) if path.is_file()]
    for path in references:
        if path.read_text(encoding="utf-8").strip() == folder.name:
            inside = path.relative_to(repository).as_posix()
            contents.texts[f"hub/{repository.name}/{inside}"] = folder.name
    return True


def _missing(what: str, data: DataOptions, say: Say, how: str = "left out") -> None:
    if not data.allow_missing:
        raise EvalkitError(
            what, fix="run it where there is a network, or pack the rest with allow_missing=true"
        )
    say(f"{how}: {what}")


def write(contents: Contents, out: Path, *, progress: Callable[[int], None]) -> int:
    """Writes the tar file, whole or not at all; returns its size in bytes.

    Args:
        contents: what goes in.
        out: the file; the folder inside the tar is named like it.
        progress: receives the bytes of each file as it is packed.

    Raises:
        EvalkitError: no space left, `out` cannot be written, or a file cannot be read.
    """
    name = out.name.removesuffix(".tar")
    contents.texts[MARK] = json.dumps(contents.facts, ensure_ascii=False, indent=2) + "\n"
    sums = []
    with atomic_file(out) as partial, tarfile.open(partial, "w") as tar:
        for inside, path in sorted(contents.files.items()):
            sums.append(f"{_add_file(tar, f'{name}/{inside}', path)}  {inside}\n")
            progress(path.stat().st_size)
        for inside, text in sorted(contents.texts.items()):
            sums.append(f"{_add_text(tar, f'{name}/{inside}', text)}  {inside}\n")
        _add_text(tar, f"{name}/{SUMS}", "".join(sorted(sums, key=lambda line: line[66:])))
    return out.stat().st_size


def _add_file(tar: tarfile.TarFile, inside: str, path: Path) -> str:
    # Hashed while it is packed: weights are read once.
    with _reads(path):
        file, size = path.open("rb"), path.stat().st_size
    with file:
        hashing = _Hashing(file, path)
        tar.addfile(_entry(inside, size), hashing)
    return hashing.digest.hexdigest()


@contextmanager
def _reads(path: Path) -> Iterator[None]:
    """A file that cannot be read is not the fault of the bundle that is written."""
    try:
        yield
    except OSError as error:
        raise EvalkitError(f"cannot read: {error.strerror or error}", where=path) from error


def _add_text(tar: tarfile.TarFile, inside: str, text: str) -> str:
    data = text.encode("utf-8")
    tar.addfile(_entry(inside, len(data)), io.BytesIO(data))
    return hashlib.sha256(data).hexdigest()


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry


class _Hashing:
    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._file = file
        self._path = path

    def read(self, size: int = -1) -> bytes:
        with _reads(self._path):
            block = self._file.read(size)
        if len(block) < size:
            raise EvalkitError("the file became shorter while it was packed", where=self._path)
        self.digest.update(block)
        return block


def total_bytes(paths: Iterable[Path]) -> int:
    """The size of files together."""
    return sum(path.stat().st_size for path in paths)
