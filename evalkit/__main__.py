"""evalkit: evaluate Japanese language models, exactly and without losing work.

evalkit model=1.8b-instruct suite=jaster      # the default verb is run
evalkit list models
"""

import sys
from collections.abc import Sequence

from evalkit import __version__
from evalkit.cli.command import (
    VERBS,
    attempt,
    execute,
    options_of,
    prepare_process,
    refuse_other_options,
    takes_long,
)
from evalkit.core import terminal
from evalkit.core.logs import quiet_libraries
from evalkit.core.progress import say


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        terminal.prepare()
        quiet_libraries()
        if takes_long(words):
            # Before anything heavy is imported.
            say(f"evalkit {__version__}: starting")
    if "--version" in words:
        print(f"evalkit {__version__}")
        return 0
    code = attempt(lambda: _command(words)).code
    if argv is None:
        terminal.finish()
    return code


def _command(words: list[str]) -> int:
    from evalkit.core import options

    line = options.parse(words, VERBS, options_of)
    if line.help:
        from evalkit.cli.help import print_help

        verb = line.verb if line.verb in words else None
        return print_help(VERBS, verb)
    refuse_other_options(line)
    if line.multirun:
        from evalkit.cli.child import run_job
        from evalkit.runs.sweep.multirun import multirun

        return multirun(line, run_job)
    config = options.load_config(line)
    if line.verb == "run" and config.watch is not None:
        from evalkit.runs.watch.watcher import watch

        prepare_process(config)
        return watch(line, config)
    return execute(line.verb, config)


if __name__ == "__main__":
    sys.exit(main())
