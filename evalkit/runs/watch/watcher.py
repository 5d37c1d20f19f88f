"""Watching a folder (`watch=`): each checkpoint is evaluated once it is completely written.

Each evaluation is a process of its own with `model=hf model.path=... model.name=...`.
"""

import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from evalkit.core.config import Config, EngineConfig, ModelConfig, given_suite
from evalkit.core.errors import EvalkitError, InputError, InterruptedRunError, foreign
from evalkit.core.options import CommandLine
from evalkit.core.progress import Say, say
from evalkit.runs.jobs import INTERRUPTED, Job, run_in_child
from evalkit.runs.life import Run, finished
from evalkit.runs.suite import check_run, load_suite
from evalkit.runs.watch.checkpoints import Signature, candidates, problem, signature

# The watcher sets these for each checkpoint; the other options are the evaluation's.
_REPLACED = ("watch", "watch_poll", "watch_settle", "watch_timeout", "model", "model.name")


@dataclass(frozen=True)
class Evaluated:
    """How the evaluation of a checkpoint ended; `new`: it was not finished by an earlier watch."""

    code: int
    folder: str | None
    why: str = ""
    new: bool = True


# Evaluates the checkpoint in a folder under a name.
Evaluate = Callable[[Path, str], Evaluated]


@dataclass
class _Seen:
    """The state of a checkpoint folder at the last look, and since when it has not changed.

    `settled`: it was evaluated or reported in this state.
    """

    signature: Signature
    since: float
    settled: bool = False


@dataclass
class Watcher:
    """Evaluates the checkpoints below a folder, each once.

    Finished evaluations are found by their run ids, so the watcher can be stopped and started again
    at any time.

    Attributes:
        folder: the folder to watch.
        series: the name of the training run; the names of its models begin with it.
        evaluate: evaluates one checkpoint.
        poll: seconds between two looks.
        settle: seconds without a change until a checkpoint counts as written.
        timeout: ends after so many seconds without a new checkpoint; None: never.
        needs_tokenizer: whether a checkpoint is whole only with a tokenizer of its own.
        say: receives progress messages, one line at a time.
        done: by the model's name, how each evaluation ended.
    """

    folder: Path
    series: str
    evaluate: Evaluate
    poll: float
    settle: float
    timeout: float | None
    needs_tokenizer: bool
    say: Say
    done: dict[str, Evaluated] = field(default_factory=dict)
    _seen: dict[Path, _Seen] = field(default_factory=dict)

    def run(self) -> int:
        """Watches until `timeout` seconds bring nothing new; 0, or the largest code of a failure.

        Raises:
            InputError: the folder cannot be read.
            InterruptedRunError: an evaluation was interrupted.
        """
        end = "until it is stopped" if self.timeout is None else f"{self.timeout:g} s"
        self.say(f"watching {self.folder} (ends when nothing new comes: {end})")
        quiet_since = time.monotonic()
        while True:
            moving = self._look()
            if self._next():
                quiet_since = time.monotonic()
                continue
            now = time.monotonic()
            if moving:
                quiet_since = now
            elif self.timeout is not None and now - quiet_since >= self.timeout:
                return max((evaluated.code for evaluated in self.done.values()), default=0)
            time.sleep(self.poll)

    def _look(self) -> bool:
        """Lists the checkpoints; returns whether one is not evaluated or reported yet."""
        now = time.monotonic()
        try:
            there = candidates(self.folder)
        except OSError as error:
            raise InputError(
                f"the folder cannot be read: {error.strerror}", where=f"watch={self.folder}"
            ) from None
        # A folder that was removed and returns counts as new. The order is that of the training steps.
        self._seen = {path: self._as_seen(path, now) for path in there}
        return any(not seen.settled for seen in self._seen.values())

    def _as_seen(self, path: Path, now: float) -> _Seen:
        current, before = signature(path), self._seen.get(path)
        return before if before and before.signature == current else _Seen(current, now)

    def _next(self) -> bool:
        """Evaluates the first checkpoint without recent changes; returns whether there was one."""
        now = time.monotonic()
        for path, seen in self._seen.items():
            if not seen.settled and now - seen.since >= self.settle:
                seen.settled = True
                self._evaluate(path)
                return True
        return False

    def _evaluate(self, path: Path) -> None:
        if why := problem(path, needs_tokenizer=self.needs_tokenizer):
            self.say(f"{path.name}: skipped, {why}; it is looked at again when it changes")
            return
        name = checkpoint_name(self.series, path)
        try:
            evaluated = self.evaluate(path, name)
        except EvalkitError as error:
            evaluated = Evaluated(error.exit_code, None, error.what)
        self.done[name] = evaluated
        if evaluated.code:
            self.say(f"{path.name}: failed, {evaluated.why}; it is tried again when it changes")
        else:
            self.say(f"{path.name}: {'done' if evaluated.new else 'was done before'}: {evaluated.folder}")


def series_name(model: ModelConfig | None, folder: Path) -> str:
    """The name of a training run: `model.name=`, else that of the watched folder."""
    return (model.name if model else None) or folder.resolve().name


def checkpoint_name(series: str, path: Path) -> str:
    """The model's name in tables: that of the training run, and that of the checkpoint's folder."""
    return path.name if path.name.startswith(series) else f"{series}-{path.name}"


def watch(line: CommandLine, config: Config) -> int:
    """Watches a folder; returns the exit code.

    Raises:
        InputError: bad options or data; nothing was started.
        InterruptedRunError: an evaluation was interrupted; the same command continues.
    """
    model = config.model or ModelConfig()
    folder = _watched_folder(config.watch, model, config.engine)
    check_run(config)
    chosen = given_suite(config.suite)
    run_of: Callable[[Config], Run[Any]]
    if chosen.mt_bench is not None:
        from evalkit.runs.mt_bench import MtBenchRun

        run_of = MtBenchRun
    else:
        from evalkit.runs.run import SuiteRun

        # The data is read once.
        run_of = partial(SuiteRun, suite=load_suite(chosen, config.data, say=say))

    def evaluate(path: Path, name: str) -> Evaluated:
        path = path.absolute()
        single = replace(config, model=replace(model, path=str(path), name=name), watch=None)
        # The training run may remove or change a file of the checkpoint meanwhile.
        with foreign("the checkpoint cannot be read", where=path):
            done = finished(run_of(single))
        return Evaluated(0, str(done), new=False) if done else _in_a_child(_words(line, path, name), name)

    watcher = Watcher(
        folder,
        series_name(model, folder),
        evaluate,
        poll=config.watch_poll,
        settle=config.watch_settle,
        timeout=config.watch_timeout,
        needs_tokenizer=model.tokenizer is None,
        say=say,
    )
    code = watcher.run()
    _print_end(watcher.done.values())
    return code


def _watched_folder(watch: str | None, model: ModelConfig, engine: EngineConfig) -> Path:
    folder = Path(watch or "").expanduser()
    if not watch or not folder.is_dir():
        raise InputError("the folder to watch does not exist", where=f"watch={watch}")
    if model.path or model.pypi or model.random or model.served:
        raise InputError(
            "the models come from the folder that is watched, not from an option",
            where=f"watch={watch}",
            fix="model=hf without model.path, or no model= at all",
        )
    if engine.name == "api":
        raise InputError(
            "a server answers with the model that it has, not with the checkpoints of a folder",
            where="option engine=api",
            fix="engine=local, engine=ray or engine=vllm; a served model is a run of its own, without watch=",
        )
    return folder


def _words(line: CommandLine, path: Path, name: str) -> tuple[str, ...]:
    kept = [word for word in line.overrides if word.partition("=")[0] not in _REPLACED]
    return ("run", "model=hf", f"model.path={path}", f"model.name={name}", *kept)


def _in_a_child(words: tuple[str, ...], name: str) -> Evaluated:
    # A process of its own frees all memory and contains crashes.
    with tempfile.TemporaryDirectory(prefix="evalkit-watch-") as folder:
        path = Path(folder) / "job.json"
        Job(words, name, str(Path.cwd())).write(path)
        code = run_in_child(path)
        job = Job.read(path)
    if code == INTERRUPTED:
        raise InterruptedRunError(
            f"the evaluation of {name} was interrupted; what was finished is kept",
            fix="run the same command again: it continues",
        )
    return Evaluated(code, job.folder, job.why)


def _print_end(results: Collection[Evaluated]) -> None:
    fine = [evaluated for evaluated in results if not evaluated.code]
    print(f"{len(results)} checkpoints: {len(fine)} ok, {len(results) - len(fine)} failed")
    if len(fine) > 1:
        folders = " ".join(str(Path(evaluated.folder or "").parent) for evaluated in fine[:2])
        more = " ..." if len(fine) > 2 else ""
        print(f"  next: evalkit compare {folders}{more} --steps")
