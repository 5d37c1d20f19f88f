"""python -m evalkit replay judgments=FILE [answers=FILE] [preset=fastchat] [out=DIR]

Reads FastChat's model_judgment (and model_answer) JSONL files, or folders of them, into a run:
parses every judgment again, renders the judge prompts again from questions, references and answers,
counts how many equal the logged ones byte for byte, and prints all tables of every model. Pairwise
logs too. No judge is called.

    python -m evalkit replay judgments=gpt-4_single.jsonl answers=model_answer/ preset=fastchat
"""

from evalkit.core.config import Config
from evalkit.core.words import t

OPTIONS = (
    "judgments",
    "answers",
    "preset",
    "language",
    "out",
    "mirror",
    "offline",
    "metrics.resamples",
    "lang",
)


def run(config: Config) -> int:
    """Replays a log and prints its tables; exit code 0 also where prompts or scores differ."""
    from rich.console import Console

    from evalkit.cli.mt_bench_report import print_results
    from evalkit.mtbench.replay import replay

    folder, content = replay(config)
    console = Console()
    print_results(content, console)
    console.print(f"{t('results: ')}{folder}", soft_wrap=True, highlight=False, markup=False)
    return 0
