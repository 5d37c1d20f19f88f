"""The life of a run, the same for suites and MT-Bench: lock, recover, generate, finish.

The same command finds its own unfinished run by the hash of its identity, and continues it. Every
record is on disk before the next one is made. results.json is written last: its presence means done.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from evalkit.core.config import Config, given_suite
from evalkit.core.durable import is_whole_text, remove_file, write_checked_json
from evalkit.core.errors import InputError
from evalkit.core.logs import log_to
from evalkit.core.progress import Say, phase
from evalkit.core.signals import signals_stop_the_run, stop_if_signalled
from evalkit.core.text import folder_name
from evalkit.core.words import t
from evalkit.records.environment import (
    CONFIG,
    ENVIRONMENT,
    describe_environment,
    kept_environment,
    write_config,
)
from evalkit.records.run_folder import RESULTS, RunDirectory, SampleRecord, run_id

if TYPE_CHECKING:
    from evalkit.engines.base import Engine, Identified

Opened = Callable[[Path], None]
Content = TypeVar("Content")


@dataclass(frozen=True)
class Outcome(Generic[Content]):
    """How a run ended: its results, the completions made by this call, and those kept from earlier ones."""

    folder: Path
    results: Content
    generated: int
    kept: int


class Run(ABC, Generic[Content]):
    """What differs between the kinds of runs. `Content` is the type of what results.json holds.

    Attributes:
        config: the options, as config.yaml keeps them.
        identified: the model, the engine's family and the precision.
        identity: everything the completions depend on, as plain JSON values.
        directory: the run directory, named by the hash of `identity`.
    """

    def __init__(self, config: Config, identified: "Identified", identity: dict[str, Any]) -> None:
        self.config = config
        self.identified = identified
        self.identity = identity
        folder = Path(config.out or "results").expanduser() / identified.model.label
        self.directory = RunDirectory(folder / folder_name(given_suite(config.suite).name) / run_id(identity))
        # Inside another run nothing looks for runs.
        for above in (folder.parent, folder, self.directory.path.parent):
            if (above / RESULTS).exists():
                raise InputError(
                    f"another run's folder is above this run, which would not be found: {above}",
                    where=f"out={folder.parent}",
                    fix="choose another, or move the results.json and scores/ that are there",
                )

    @property
    def follow_generation_config(self) -> bool:
        """Whether the engine samples as the model's own generation_config says."""
        return self.config.generation.from_model

    @property
    def has_more_context(self) -> bool:
        """Whether the server allows longer prompts than when the kept records were made.

        Prompts that are kept as too long are then asked again.
        """
        now = self.identified.context
        return now is not None and now > (self._context_before or 0)

    @property
    def _context_before(self) -> int | None:
        engine = (kept_environment(self.directory.path) or {}).get("engine")
        return engine.get("context") if isinstance(engine, dict) else None

    def context_of_records(self, described: dict[str, Any]) -> dict[str, Any]:
        """The engine's description, with the context under which prompts that stay were too long."""
        tasks = [path.stem for path in (self.directory.path / "samples").glob("*.jsonl")]
        kept = (record for task in tasks for record in self.directory.records(task).values())
        if self.has_more_context and any(record.over_context for record in kept):
            return {**described, "context": self._context_before}
        return described

    @abstractmethod
    def recover(self, say: Say) -> tuple[int, int]:
        """Drops what a crash left in the logs; returns how many records are kept and how many are missing."""

    @abstractmethod
    def kept_results(self) -> Content | None:
        """The results on disk if this command has nothing to add to them, else None. Writes nothing."""

    def write_files(self, *, keep: bool) -> None:
        """Writes the files a run begins with; `keep`: only those that are missing or damaged."""
        if not (keep and is_whole_text(self.directory.path / CONFIG)):
            write_config(self.config, self.directory.path)

    def engine_started(self, described: dict[str, Any]) -> dict[str, Any]:
        """Receives the engine's description; returns further entries of environment.json."""
        return {}

    @abstractmethod
    def generate(self, engine: "Engine") -> Iterator[tuple[str, SampleRecord]]:
        """Yields the missing records, each with its task and as soon as it is made."""

    @abstractmethod
    def finish(self) -> Content:
        """Writes results.json from the kept records and returns its content."""


def complete(run: Run[Content], *, say: Say, opened: Opened) -> Outcome[Content]:
    """Generates what a run lacks and writes its results, continuing where an earlier call stopped.

    Args:
        run: the run.
        say: receives progress messages, one line at a time.
        opened: receives the run directory once it is locked.

    Raises:
        RunLockedError: another process works on the run.
        EvalkitError: something failed on the way; finished completions are kept.
        InterruptedRunError: a signal came; finished completions are kept.
    """
    directory, generated = run.directory, 0
    with directory, log_to(directory.path / "run.log") as log, signals_stop_the_run():
        opened(directory.path)
        say(t("run: {folder}", folder=directory.path))
        kept, missing = run.recover(say)
        results = None if missing else run.kept_results()
        if results is None:
            log.info("%d completions are kept, %d are to be made", kept, missing)
            # results.json means done, so it is removed before anything is added to the run.
            remove_file(directory.results_path)
        run.write_files(keep=results is not None)
        environment = {"identity": run.identity, **describe_environment()}
        # An existing file names the engine that made the kept completions: it stays until one is started.
        if kept_environment(directory.path) is None:
            write_checked_json(directory.path / ENVIRONMENT, environment)
        if missing:
            from evalkit.engines import build_engine

            config = run.config
            with phase(t("loading the model")):
                built = build_engine(
                    run.identified.model,
                    config.engine,
                    config.dtype,
                    bos=config.protocol.bos,
                    follow_generation_config=run.follow_generation_config,
                )
            with built as engine:
                described = run.context_of_records(engine.describe())
                environment |= {"engine": described, **run.engine_started(described)}
                write_checked_json(directory.path / ENVIRONMENT, environment)
                for task, record in run.generate(engine):
                    directory.append(task, record)
                    generated += 1
                    stop_if_signalled()
        if results is None:
            with phase(t("scoring")):
                results = run.finish()
        return Outcome(directory.path, results, generated, kept)


def finished(run: Run[Any]) -> Path | None:
    """The run directory if the run has nothing left to do, else None; loads no model."""
    return None if run.kept_results() is None else run.directory.path
