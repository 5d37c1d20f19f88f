"""The processes that convert and the folder they write to; neither outlives the command."""

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from evalkit.core.durable import is_abandoned, process_tag
from evalkit.core.errors import EvalkitError, write_error
from evalkit.sources.conversion import Conversion, Job, convert

_PREFIX = ".prepare-"


def converted(jobs: Sequence[Job], workers: int | None) -> Iterator[list[Conversion]]:
    """The outcome of each job as it is done, the longest begun first.

    Raises:
        EvalkitError: a worker could not write, or was killed.
    """
    jobs = sorted(jobs, key=lambda job: job.weight, reverse=True)
    count = min(workers or _cores(), len(jobs))
    if count <= 1:
        for job in jobs:
            yield convert(job)
        return
    before = set(multiprocessing.active_children())
    # Spawned, not forked: the parent may hold threads of a progress bar or of a model.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_ignore_interrupt) as pool:
        futures = [pool.submit(convert, job) for job in jobs]
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


def _ignore_interrupt() -> None:
    # Ctrl-C reaches the whole group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def staging_folder(data_dir: Path) -> Iterator[Path]:
    """A hidden folder beside the final files (so that a move into place is one step), removed at the end.

    Raises:
        EvalkitError: `data_dir` cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(data_dir)
        staging = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{process_tag()}-", dir=data_dir))
    except OSError as error:
        raise write_error(data_dir, error, "data_dir") from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_abandoned(data_dir: Path) -> None:
    for folder in data_dir.glob(f"{_PREFIX}*"):
        tag, _, _ = folder.name.removeprefix(_PREFIX).rpartition("-")
        if is_abandoned(tag):
            shutil.rmtree(folder, ignore_errors=True)
