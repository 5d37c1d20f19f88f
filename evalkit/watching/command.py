"""The command with watch=: each checkpoint becomes `model=hf model.path=... model.name=...`."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from evalkit.cli.options import CommandLine
from evalkit.config import Config
from evalkit.errors import InterruptedRunError, foreign
from evalkit.watching.watcher import (
    INTERRUPTED,
    Evaluated,
    Watcher,
    check,
    checkpoint_config,
)

# Said by the watcher for each checkpoint; the others are options of the evaluation.
_REPLACED = ("watch", "watch_poll", "watch_settle", "watch_timeout", "model", "model.name")


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
        # A file of the checkpoint may go or change at this very moment.
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
    # In a process of its own: whatever it leaves in memory, or breaks, goes with it.
    from evalkit.jobs.process import run_in_child
    from evalkit.jobs.record import Job

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
    """Tells the run directory of a command that has nothing left to do; the data is read once."""
    assert config.suite is not None
    if config.suite.mt_bench is not None:
        from evalkit.mtbench.answer_run import finished_answers

        return finished_answers
    from evalkit.cli.run import say
    from evalkit.loading import load_suite
    from evalkit.run import finished_run

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
