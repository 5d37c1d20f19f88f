"""evalkit replay judgments=FILE [answers=FILE] [preset=fastchat] [out=DIR]

Reads FastChat's model_judgment (and model_answer) JSONL files, or folders of them, into a run:
parses every judgment again, renders the judge prompts again from questions, references and answers,
counts how many equal the logged ones byte for byte, and prints all tables of every model. Pairwise
logs too. No judge is called.

    evalkit replay judgments=gpt-4_single.jsonl answers=model_answer/ preset=fastchat
    evalkit replay judgments=example      a made-up log that comes with evalkit
"""

from dataclasses import replace
from pathlib import Path

from evalkit.cli.command import path_of
from evalkit.cli.mt_bench_report import print_results
from evalkit.cli.printing import print_folder, report_console
from evalkit.core import assets
from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.mtbench.books import BookOptions
from evalkit.mtbench.replay import replay

# judgments=example: the log in tasks/mt_bench_example.
EXAMPLE = "example"
OPTIONS = (
    "judgments",
    "answers",
    "preset",
    "language",
    "judge",
    "judge.prompts",
    "out",
    "mirror",
    "offline",
    "metrics.resamples",
    "lang",
)


def run(config: Config) -> int:
    """Replays a log and prints its tables; exit code 0 also where prompts or scores differ."""
    if config.judgments is None:
        raise InputError("no judgments are given", fix="judgments=FILE.jsonl")
    if config.judge is not None and config.judge.prompts is None:
        raise InputError(
            "no judge is asked, the log says who judged", where="option judge", fix="leave it out"
        )
    judgments = Path(config.judgments).expanduser()
    if config.judgments == EXAMPLE and not judgments.exists():
        own = assets.TASKS / "mt_bench_example"
        judgments, answers, preset = (own / n for n in ("judgments.jsonl", "answers.jsonl", "preset.yaml"))
        config = replace(config, answers=str(answers), preset=str(preset))
    folder, content = replay(
        judgments,
        path_of(config.answers),
        BookOptions.of(config),
        out=path_of(config.out),
        resamples=config.metrics.resamples,
    )
    console = report_console()
    print_results(content, console)
    print_folder(console, folder)
    return 0
