"""Watching a folder (`watch=`): each checkpoint is evaluated once it is completely written.

Each evaluation is a process of its own with `model=hf model.path=... model.name=...`.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from evalkit.core.config import Config, ModelConfig
from evalkit.core.errors import EvalkitError, InputError, InterruptedRunError, foreign
from evalkit.core.options import CommandLine
from evalkit.core.progress import say
from evalkit.runs.jobs import Job, run_in_child
from evalkit.runs.watch.checkpoints import Signature, candidates, problem, signature

INTERRUPTED = 130
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
    """

    config: Config
    evaluate: Evaluate
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    done: dict[str, Evaluated] = field(default_factory=dict)
    _seen: dict[Path, _Seen] = field(default_factory=dict)

    def run(self) -> int:
        """Watches until `watch_timeout` seconds bring nothing new; 0, or the largest code of a failure.

        Raises:
            InputError: the folder is not there or cannot be read.
            InterruptedRunError: an evaluation was interrupted.
        """
        folder, config = check(self.config), self.config
        end = "until it is stopped" if config.watch_timeout is None else f"{config.watch_timeout:g} s"
        self.say(f"watching {folder} (ends when nothing new comes: {end})")
        quiet_since = time.monotonic()
        while True:
            moving = self._look(folder)
            if self._next():
                quiet_since = time.monotonic()
                continue
            now = time.monotonic()
            if moving:
                quiet_since = now
            elif config.watch_timeout is not None and now - quiet_since >= config.watch_timeout:
                return max((evaluated.code for evaluated in self.done.values()), default=0)
            time.sleep(config.watch_poll)

    def _look(self, folder: Path) -> bool:
        """Lists the checkpoints; returns whether one is not evaluated or reported yet."""
        now = time.monotonic()
        try:
            there = candidates(folder)
        except OSError as error:
            raise InputError(
                f"the folder cannot be read: {error.strerror}", where=f"watch={folder}"
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
            if not seen.settled and now - seen.since >= self.config.watch_settle:
                seen.settled = True
                self._settle(path)
                return True
        return False

    def _settle(self, path: Path) -> None:
        model = self.config.model
        name = checkpoint_name(self.config, path)
        if why := problem(path, needs_tokenizer=model is None or model.tokenizer is None):
            self.say(f"{path.name}: skipped, {why}; it is looked at again when it changes")
            return
        try:
            evaluated = self.evaluate(path, name)
        except EvalkitError as error:
            evaluated = Evaluated(error.exit_code, None, error.what)
        self.done[name] = evaluated
        if evaluated.code:
            self.say(f"{path.name}: failed, {evaluated.why}; it is tried again when it changes")
        else:
            self.say(f"{path.name}: {'done' if evaluated.new else 'was done before'}: {evaluated.folder}")


def check(config: Config) -> Path:
    """The folder to watch.

    Raises:
        InputError: it is not there, or options that do not go with `watch=`.
    """
    folder = Path(config.watch or "").expanduser()
    if not config.watch or not folder.is_dir():
        raise InputError("the folder to watch does not exist", where=f"watch={config.watch}")
    model = config.model
    if model is not None and (model.path or model.pypi or model.random):
        raise InputError(
            "the models come from the folder that is watched, not from an option",
            where=f"watch={config.watch}",
            fix="model=hf without model.path, or no model= at all",
        )
    if config.suite is None:
        raise InputError("no suite is given", fix="suite=jaster   (python -m evalkit list suites)")
    return folder


def checkpoint_name(config: Config, path: Path) -> str:
    """The model's name in tables: the training run's (model.name=, else the watched folder's), the step's."""
    own = config.model.name if config.model else None
    series = own or Path(config.watch or "").expanduser().resolve().name
    return path.name if path.name.startswith(series) else f"{series}-{path.name}"


def checkpoint_config(config: Config, path: Path, name: str) -> Config:
    """The options of a single run on a checkpoint."""
    model = dataclasses.replace(config.model or ModelConfig(), path=str(path), name=name)
    return dataclasses.replace(config, model=model, watch=None)


def watch(line: CommandLine, config: Config) -> int:
    """Watches a folder; returns the exit code.

    Raises:
        InputError: bad options or data; nothing was started.
        InterruptedRunError: an evaluation was interrupted; the same command continues.
    """
    check(config)
    finished = _finished(config)

    def evaluate(path: Path, name: str) -> Evaluated:
        path = path.absolute()
        # The training run may remove or change a file of the checkpoint meanwhile.
        with foreign("the checkpoint cannot be read", where=path):
            folder = finished(checkpoint_config(config, path, name))
        if folder:
            return Evaluated(0, str(folder), new=False)
        return _in_a_child(_words(line, path, name), name)

    watcher = Watcher(config, evaluate)
    code = watcher.run()
    _print_end(watcher)
    return code


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


def _finished(config: Config) -> Callable[[Config], Path | None]:
    """Returns a function that gives the run directory of a finished command; the data is read once."""
    assert config.suite is not None
    if config.suite.mt_bench is not None:
        from evalkit.runs.mt_bench import finished_answers

        return finished_answers
    from evalkit.runs.run import finished_run
    from evalkit.runs.suite import load_suite

    suite = load_suite(config, say=say)
    return lambda single: finished_run(single, suite)


def _print_end(watcher: Watcher) -> None:
    results = list(watcher.done.values())
    fine = [evaluated for evaluated in results if not evaluated.code]
    print(f"{len(results)} checkpoints: {len(fine)} ok, {len(results) - len(fine)} failed")
    if len(fine) > 1:
        folders = " ".join(str(Path(evaluated.folder or "").parent) for evaluated in fine[:2])
        more = " ..." if len(fine) > 2 else ""
        print(f"  next: python -m evalkit compare {folders}{more} --steps")
