"""evalkit: evaluate Japanese language models, exactly and without losing work.

python -m evalkit model=1.8b-instruct suite=jaster      # the default verb is run
python -m evalkit list models
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from evalkit import __version__
from evalkit.errors import EvalkitError, InputError

VERBS = {
    "run": "evaluate a model: generate, score, print the tables",
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
    "certify": "show that batch size and order do not change the outputs",
    "list": "list models, suites, tasks or judges",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"evalkit {__version__}")
        return 0
    try:
        return _command(words)
    except EvalkitError as error:
        print(f"evalkit: {error}", file=sys.stderr)
        return error.exit_code
    except RuntimeError as error:
        # What pathlib says of `~name/...` when nobody here has that name, from whichever option it came.
        if "home directory" not in str(error):
            raise
        print("evalkit: a path begins with ~ and the name of nobody on this machine", file=sys.stderr)
        return InputError.exit_code
    except KeyboardInterrupt:
        print("evalkit: interrupted; the same command continues where this one stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nothing is left to say.
        sys.stderr.close()
        return 0


def _command(words: list[str]) -> int:
    from evalkit.cli import options

    line = options.parse(words, VERBS)
    if line.help:
        from evalkit.cli.help import print_help

        verb = line.verb if line.verb in words else None
        return print_help(VERBS, verb)
    config = options.load_config(line)
    if config.lang.value != "en":
        from evalkit import words as language

        language.use(config.lang)
    if config.data_dir is not None:
        from evalkit.unpacked import use

        use(Path(config.data_dir).expanduser())
    code = importlib.import_module(f"evalkit.cli.{line.verb}").run(config)
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    sys.exit(main())
