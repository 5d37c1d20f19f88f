"""One command: a verb and its configuration -> an exit code, whatever happens on the way."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.durable import is_disk_full, write_error
from evalkit.errors import EvalkitError, InputError, InterruptedRunError
from evalkit.redaction import hide, printable
from evalkit.signals import signals_stop_the_run

if TYPE_CHECKING:
    from evalkit.config import Config


VERBS = {
    "run": "evaluate a model: generate, score, print the tables",
    "plan": "estimate tokens, memory and judge cost before anything starts",
    "prepare": "fetch, verify and convert data and models (on a machine with a network)",
    "bundle": "pack data, models and metrics into one file for machines without a network",
    "prompts": "write the exact prompts of a suite, to generate elsewhere",
    "score": "score kept or foreign completions again, no model needed",
    "reproduce": "print a run beside the published llm-jp-3 table",
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


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and, unless that is 0, what went wrong in one sentence."""

    code: int
    why: str = ""


def attempt(action: Callable[[], int]) -> Ended:
    """Runs `action`; a known error becomes one message on standard error and an exit code.

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
    except RuntimeError as error:
        # What pathlib says of `~name/...` when nobody here has that name, from whichever option it came.
        if "home directory" not in str(error):
            raise
        why = "a path begins with ~ and the name of nobody on this machine"
        print(f"evalkit: {why}", file=sys.stderr)
        return Ended(InputError.exit_code, why)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nothing is left to say.
        sys.stderr.close()
        return Ended(0)
    except OSError as error:
        # Libraries write too, into caches and temporary folders: a full disk is one message there too.
        if not is_disk_full(error):
            raise
        failure = write_error(error.filename, error)
        print(f"evalkit: {failure}", file=sys.stderr)
        return Ended(failure.exit_code, failure.what)


def execute(verb: str, config: "Config", *, opened: Callable[[Path], None] | None = None) -> int:
    """Runs one verb.

    Args:
        verb: its name.
        config: the options.
        opened: takes the run directory of the verb `run` once it is known.
    """
    prepare_process(config)
    module = importlib.import_module(f"evalkit.cli.{verb}")
    code = module.run(config, opened=opened) if verb == "run" and opened else module.run(config)
    assert isinstance(code, int)
    return code


def prepare_process(config: "Config") -> None:
    """What every verb of a command finds in place: the language, and the files of a bundle."""
    if config.lang.value != "en":
        from evalkit import words as language

        language.use(config.lang)
    if config.data_dir is not None:
        from evalkit.unpacked import use

        use(Path(config.data_dir).expanduser())
