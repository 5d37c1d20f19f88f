"""One command: a verb and its configuration -> an exit code, whatever happens on the way."""

import errno
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.core import words as language
from evalkit.core.errors import (
    EvalkitError,
    InputError,
    InterruptedRunError,
    UnreachableError,
    is_disk_full,
    reason,
    write_error,
)
from evalkit.core.secrets import hide, printable
from evalkit.core.signals import signals_stop_the_run
from evalkit.core.text import command, did_you_mean

if TYPE_CHECKING:
    from evalkit.core.config import Config
    from evalkit.core.options import CommandLine


VERBS = {
    "run": "evaluate a model: generate, score, print the tables",
    "plan": "estimate tokens, memory and judge cost before anything starts",
    "prepare": "fetch, verify and convert data and models (on a machine with a network)",
    "bundle": "pack data, models and metrics into one file for machines without a network",
    "prompts": "write the exact prompts of a suite, to generate elsewhere",
    "score": "score kept or foreign completions again, no model needed",
    "reproduce": "print a run next to the published llm-jp-3 table",
    "card": "print the evaluation section of a model card",
    "leaderboard": "collect runs into CSV, Markdown and one offline page",
    "compare": "say which of two runs is better, with paired intervals",
    "judge": "have a judge model rate the MT-Bench answers of a run",
    "replay": "read FastChat's judgment logs into a run and print their tables, no judge needed",
    "calibrate": "compare a judge with kept judgments of another on the same answers",
    "pairwise": "have a judge compare models two by two, each match in both orders",
    "agreement": "how far judges and human votes agree",
    "ask": "ask a model one question and see the prompt it gets",
    "certify": "measure how many outputs batch size and order change (float32: none but ties)",
    "list": "list models, suites, tasks, judges or launchers",
}


# These say at once that they have begun: before a model is loaded, libraries are, which takes seconds.
_LONG = ("run", "prepare", "bundle", "score", "judge", "pairwise", "calibrate", "ask", "certify")


def takes_long(words: Sequence[str]) -> bool:
    """Whether a command line does work that takes more than a moment."""
    verb = next((word for word in words if word in VERBS), "run")
    return verb in _LONG and bool(words) and not {"--help", "-h", "--version"} & set(words)


# Options that several verbs take.
MODEL = ("model", "model.")
SUITE = ("suite", "suite.tasks")
SAMPLES = ("limit", "num_few_shots", "suite.num_few_shots")
CHAT = ("suite.chat", "suite.chat_turns", "suite.system", "reasoning.")
PFGEN = ("samples", "pfgen.")
DATA = ("data_dir", "mirror", "offline", "allow_missing")
# What decides a prompt and its answer beside the suite and the model.
ANSWERS = (*CHAT, *PFGEN, "generation", "generation.", "protocol.")
PRESET = ("preset", "language")
# Every verb takes these.
COMMON = ("lang", "data_dir", "mirror", "offline")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and, unless that is 0, what went wrong in one sentence."""

    code: int
    why: str = ""


def attempt(action: Callable[[], int]) -> Ended:
    """Runs `action`; whatever it raises becomes one message on standard error and an exit code.

    Signals that stop a run count as Ctrl-C from the first moment, also while models are loaded.
    """
    try:
        with signals_stop_the_run():
            return Ended(action())
    except (EvalkitError, InterruptedRunError) as error:
        print(f"evalkit: {printable(hide(str(error)))}", file=sys.stderr)
        return Ended(error.exit_code, hide(error.what))
    except KeyboardInterrupt:
        print("evalkit: interrupted; the same command continues where this one stopped", file=sys.stderr)
        return Ended(130, "interrupted")
    except Exception as error:
        failure = environment_error(error) or _unexpected(error)
        print(f"evalkit: {printable(hide(str(failure)))}", file=sys.stderr)
        return Ended(failure.exit_code, hide(failure.what))


def environment_error(error: Exception) -> EvalkitError | None:
    """The message for an exception that is about this machine or this account; None for any other."""
    text = str(error)
    if isinstance(error, OSError):
        # Libraries write into caches and temporary folders too.
        if is_disk_full(error):
            return write_error(error.filename, error)
        if "No usable temporary directory" in text:
            return InputError("no folder for temporary files can be written", fix="export TMPDIR=FOLDER")
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and error.filename is not None:
            return EvalkitError(
                f"no permission: {error.strerror}",
                where=error.filename,
                fix="where it is a cache: export EVALKIT_CACHE=FOLDER HF_HOME=FOLDER, which you may write to",
            )
    if isinstance(error, ModuleNotFoundError) and not (error.name or "evalkit").startswith("evalkit"):
        fix = "pip install evalkit, which installs what it needs"
        return EvalkitError(f"a package is not installed: {error.name}", fix=fix)
    # pathlib raises this for `~/...` and `~name/...` where there is no such home.
    if isinstance(error, RuntimeError) and "home directory" in text:
        if os.path.expanduser("~") == "~":  # noqa: PTH111 (this one does not raise)
            fix = "export HOME=FOLDER, or the caches alone: export EVALKIT_CACHE=FOLDER HF_HOME=FOLDER"
            return InputError("this account has no home folder, and a path begins with ~", fix=fix)
        return InputError("a path begins with ~ and the name of nobody on this machine")
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        return InputError(
            f"a file name cannot be written in this locale ({sys.getfilesystemencoding()}): {error.object!r}",
            fix="export PYTHONUTF8=1",
        )
    return None


def _unexpected(error: Exception) -> EvalkitError:
    """An unexpected error as one message; the traceback goes into a file for a bug report."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}evalkit{os.sep}" in frame.filename] or frames
    kind, text = type(error).__name__, reason(error)
    log = None
    with suppress(OSError):
        descriptor, log = tempfile.mkstemp(prefix="evalkit-error-", suffix=".log")
        os.close(descriptor)
        trace = printable(hide("".join(traceback.format_exception(error))))
        Path(log).write_text(trace, encoding="utf-8", errors="backslashreplace")
    return EvalkitError(
        f"unexpected error: {text if text.startswith(kind) else f'{kind}: {text}'}",
        where=f"{own[-1].filename}, line {own[-1].lineno}" if own else None,
        fix=f"what was finished is kept; please report this with {log or 'the whole command'}",
    )


def options_of(verb: str, words: Iterable[str]) -> set[str]:
    """The options that a verb takes beside these words."""
    own = _declared(verb)
    # What goes before a run takes its words as they are, so that one line of a script serves all; score
    # says itself which of them decided the completions of a run.
    of_run = verb == "score" and any(word.startswith("run=") for word in words)
    if of_run or verb in ("plan", "prepare", "prompts", "bundle"):
        own |= _declared("run") - ({"out"} if verb == "prepare" else set())
    return own


def _declared(verb: str) -> set[str]:
    from evalkit.cli.help import names_of

    return {*names_of(importlib.import_module(f"evalkit.cli.{verb}").OPTIONS), *COMMON}


def refuse_other_options(line: "CommandLine") -> None:
    """Refuses unknown options, and those and the flags of other verbs, which would be ignored.

    Raises:
        InputError: naming the first one.
    """
    from evalkit.cli.help import FLAG_OF
    from evalkit.core.habits import IN_A_QUESTION
    from evalkit.core.options import option_of

    words = {word.partition("=")[0]: f"{word.partition('=')[0]}=" for word in line.overrides}
    own = options_of(line.verb, line.overrides)
    for key, word in (words | {name: FLAG_OF[name] for name, _ in line.flags}).items():
        if (name := option_of(key)) in own:
            continue
        asked = f"; {IN_A_QUESTION}: {key} =..." if line.verb == "ask" and key in words else ""
        if name is None:
            what = f"unknown option {key!r}{did_you_mean(key, own)}"
            raise InputError(what, fix=f"evalkit {line.verb} --help{asked}")
        others = ", ".join(verb for verb in VERBS if name in _declared(verb))
        fix = f"leave it out (it belongs to {others})" if others else "leave it out"
        if (line.verb, name) == ("run", "dry_run"):
            kept = [word for word in line.overrides if not word.startswith("dry_run=")]
            fix = command(*["-m"] * line.multirun, "plan", *kept)
        raise InputError(f"`{word}` is no option of the verb {line.verb}", fix=f"{fix}{asked}")


def execute(verb: str, config: "Config", *, opened: Callable[[Path], None] | None = None) -> int:
    """Runs one verb.

    Args:
        verb: its name.
        config: the options.
        opened: takes the run directory of the verb `run` once it is known.
    """
    prepare_process(config)
    module = importlib.import_module(f"evalkit.cli.{verb}")
    try:
        code = module.run(config, opened=opened) if verb == "run" and opened else module.run(config)
    except EvalkitError as error:
        raise _elsewhere(error, config) from error
    assert isinstance(code, int)
    return code


def _elsewhere(error: EvalkitError, config: "Config") -> EvalkitError:
    """The error; where something is not here, its fix is the command that fetches all the command needs."""
    from evalkit.tasks.load import MissingDataError

    if not isinstance(error, UnreachableError | MissingDataError) or not (config.model or config.suite):
        return error
    from evalkit.runs.suite import prepare_command

    fix = f"on a machine with a network: {prepare_command(config)}"
    if isinstance(error, MissingDataError):
        if config.mirror is not None:
            fix = prepare_command(replace(config, model=None), f"mirror={config.mirror}")
        return InputError(error.what, where=error.where, fix=f"{fix}   (or allow_missing=true)")
    return UnreachableError(error.what, where=error.where, fix=fix)


def path_of(option: str | None) -> Path | None:
    """The path that an option names, with `~` as the home folder; None where nothing is given."""
    return Path(option).expanduser() if option else None


def prepare_process(config: "Config") -> None:
    """Sets the language, and the files of a bundle, for every verb of a command."""
    language.use(config.lang)
    if config.data_dir is not None:
        from evalkit.records.unpacked import use

        use(Path(config.data_dir).expanduser())
