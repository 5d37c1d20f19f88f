"""evalkit: evaluate Japanese language models, exactly and without losing work.

python -m evalkit model=1.8b-instruct suite=jaster      # the default verb is run
python -m evalkit list models
"""

import sys
from collections.abc import Sequence

from evalkit import __version__
from evalkit.command import attempt, execute, prepare_process

VERBS = {
    "run": "evaluate a model: generate, score, print the tables",
    "plan": "estimate tokens, time, memory and judge cost before anything starts",
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
    "serve": "an OpenAI-compatible endpoint over the local engine",
    "certify": "show that batch size and order do not change the outputs",
    "list": "list models, suites, tasks, judges or launchers",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"evalkit {__version__}")
        return 0
    return attempt(lambda: _command(words)).code


def _command(words: list[str]) -> int:
    from evalkit.cli import options

    line = options.parse(words, VERBS)
    if line.help:
        from evalkit.cli.help import print_help

        verb = line.verb if line.verb in words else None
        return print_help(VERBS, verb)
    if line.multirun:
        from evalkit.sweep import multirun

        return multirun(line)
    config = options.load_config(line)
    if line.verb == "run" and config.watch is not None:
        from evalkit.watching.command import watch

        prepare_process(config)
        return watch(line, config)
    return execute(line.verb, config)


if __name__ == "__main__":
    sys.exit(main())
