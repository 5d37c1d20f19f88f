"""Upstream files -> rendered splits in a staging folder, in one process for each core."""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path

from evalkit.core.errors import EvalkitError, InputError, write_error
from evalkit.core.progress import bar
from evalkit.core.signals import stop_with_the_parent
from evalkit.core.text import did_you_mean
from evalkit.core.types import Row
from evalkit.core.words import t
from evalkit.sources.archives import SourceWarning
from evalkit.sources.readers import SourceFiles
from evalkit.sources.splits import Pools, SplitRows, split
from evalkit.tasks.spec import TaskSpec, UpstreamSpec

Converter = Callable[[SourceFiles], Pools]

_DEFINITION = re.compile(r"^def ([a-z]\w*)\(files: SourceFiles\) -> Pools:", re.MULTILINE)


@cache
def module_names() -> dict[str, str]:
    """The module of every converter: each `def name(files: SourceFiles) -> Pools` in this package.

    The files are read, not imported: one that is not used may need a package that is not installed.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {name: path.stem for path in files for name in _DEFINITION.findall(path.read_text("utf-8"))}


@dataclass(frozen=True)
class Conversion:
    """Datasets to convert from one source, and its available files by role, in the table's order."""

    datasets: tuple[tuple[TaskSpec, UpstreamSpec], ...]
    files: SourceFiles
    staging: Path

    @property
    def weight(self) -> tuple[bool, bool, int]:
        """A sort key for the time a conversion takes: KNP above archives above plain files, then by size."""
        every = [file for files in self.files.values() for file in files]
        modules = module_names()
        parses = any(modules.get(upstream.converter) == "wiki_annotated" for _, upstream in self.datasets)
        archive = any(file.pin.members for file in every)
        return parses, archive, sum(file.path.stat().st_size for file in every)


@dataclass(frozen=True)
class StagedSplit:
    """A rendered split, not yet at its final path."""

    path: Path
    samples: int
    sha256: str
    groups_missing: int


@dataclass
class Converted:
    """The outcome for one dataset: its splits, or why it could not be converted."""

    dataset: str
    splits: dict[str, StagedSplit] = field(default_factory=dict)
    error: str = ""
    notes: list[str] = field(default_factory=list)


def converter(name: str) -> Converter:
    """The converter of that name: the source's files by role, in the table's order -> pools.

    It receives the available roles and returns the pools it can build from them.

    Raises:
        InputError: unknown name.
    """
    modules = module_names()
    if name not in modules:
        raise InputError(f"unknown converter {name!r}{did_you_mean(name, modules)}")
    found: Converter = getattr(import_module(f"evalkit.sources.{modules[name]}"), name)
    return found


def convert(conversion: Conversion) -> list[Converted]:
    """Converts the datasets of one source; one that fails does not stop the others.

    Raises:
        EvalkitError: the staging folder cannot be written (no space left).
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", SourceWarning)
        try:
            outcomes = [_convert_one(spec, upstream, conversion) for spec, upstream in conversion.datasets]
        finally:
            _clear_caches()
    # A warning about a shared archive concerns every dataset made from it.
    for outcome in outcomes:
        outcome.notes = sorted({str(warning.message) for warning in caught})
    return outcomes


def _convert_one(spec: TaskSpec, upstream: UpstreamSpec, conversion: Conversion) -> Converted:
    try:
        pools = converter(upstream.converter)(conversion.files) if conversion.files else {}
        splits = split(upstream.split, pools) if pools else {}
    except EvalkitError as error:
        return Converted(spec.name, error=str(error))
    paths = {name: conversion.staging / f"{spec.name}.{name}.json" for name in splits}
    return Converted(spec.name, {name: _stage(paths[name], spec, rows) for name, rows in splits.items()})


def _clear_caches() -> None:
    """Frees what converters keep between the datasets of one source."""
    for module in {*module_names().values()}:
        if clear := getattr(sys.modules.get(f"evalkit.sources.{module}"), "clear_cache", None):
            clear()


def _stage(path: Path, spec: TaskSpec, split_rows: SplitRows) -> StagedSplit:
    data = render(spec, split_rows.rows)
    try:
        with path.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise write_error(path, error, "data_dir") from error
    digest = hashlib.sha256(data).hexdigest()
    return StagedSplit(path, len(split_rows.rows), digest, split_rows.groups_missing)


def render(spec: TaskSpec, rows: Sequence[Row]) -> bytes:
    """The prepared file, byte for byte as llm-jp-eval v1.3.1 writes it.

    UTF-8, keys in llm-jp-eval's order, four spaces, no newline at the end.
    """
    content = {
        "instruction": spec.instruction,
        "output_length": spec.output_length,
        "metrics": list(spec.metrics),
        "few_shots": [],
        "samples": [row._asdict() for row in rows],
    }
    return json.dumps(content, ensure_ascii=False, indent=4).encode()


# --- processes ------------------------------------------------------------------------------------


def convert_all(conversions: Sequence[Conversion]) -> Iterator[list[Converted]]:
    """The outcomes of each conversion as it is done, the longest started first.

    Args:
        conversions: one for each source.

    Raises:
        EvalkitError: a worker could not write, or was killed.
    """
    conversions = sorted(conversions, key=lambda conversion: conversion.weight, reverse=True)
    count = min(_cores(), len(conversions))
    with bar(t("converting"), len(conversions)) as progress:
        # The processes work on the first ones that are not done.
        waiting = [[spec.name for spec, _ in conversion.datasets] for conversion in conversions]
        progress.detail = ", ".join(name for names in waiting[:count] for name in names)
        for outcomes in _converted(conversions, count):
            waiting.remove([outcome.dataset for outcome in outcomes])
            progress.detail = ", ".join(name for names in waiting[:count] for name in names)
            progress.advance()
            yield outcomes


def _converted(conversions: Sequence[Conversion], count: int) -> Iterator[list[Converted]]:
    """The outcomes of conversions in so many processes, as they are done."""
    if count <= 1:
        yield from map(convert, conversions)
        return
    before = set(multiprocessing.active_children())
    # Spawned, not forked: the parent may hold threads of a progress bar or of a model.
    context = multiprocessing.get_context("spawn")
    # Starting the tracker unblocks signals, so it starts before they are blocked.
    resource_tracker.ensure_running()
    mine = (os.getpid(),)
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=stop_with_the_parent, initargs=mine
    ) as pool:
        with _interrupt_blocked():
            futures = [pool.submit(convert, conversion) for conversion in conversions]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise EvalkitError(
                "a converting process was killed, perhaps for want of memory",
                fix="run the same command again: it continues",
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        # Not every system says which cores a process may use.
        return os.cpu_count() or 1


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Delays Ctrl-C here and blocks it for good in the processes that start inside.

    It reaches the whole process group. The parent ends its workers; without the block, one that is
    still importing would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
