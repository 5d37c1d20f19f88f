"""evalkit score run=DIR | suite=NAME completions=DIR out=DIR [key=value ...]

Scores completions; no language model is needed.

    evalkit score run=results/<model>/<suite>/<run id> protocol.strip=true
    evalkit score suite=jaster data_dir=DATA completions=DIR out=DIR
    evalkit score suite=pfgen completions=trials.jsonl.xz out=DIR

run=DIR scores the kept completions of a run again, by the run's own options unless the command
names others, and shows what moved and why. With out=DIR2 the run stays as it is. Another
reasoning.parser= splits thought and answer anew.

completions=DIR holds completions made anywhere: one <dataset>.jsonl per dataset, a line for each
sample with `id` (as in the `prompts` dump) and `completion`; or llm-jp-eval's own result JSON.
allow_missing=true scores what is there and marks the result partial. For suite=mifeval-ja it may be one
file with lines of `prompt` and `response`. For suite=pfgen it is a published trials.jsonl(.xz), with
config.json beside it, or a folder with pfgen.jsonl (ids like Q01/1) and pfgen.mode=.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from evalkit.cli.command import ANSWERS, DATA, MODEL, SAMPLES, SUITE
from evalkit.cli.printing import new_table, number, print_folder, print_line, report_console
from evalkit.cli.report import print_results
from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.core.progress import say
from evalkit.core.words import shown, t
from evalkit.metrics.prediction import prediction

if TYPE_CHECKING:
    from evalkit.runs.rescore import Change, Rescored

OPTIONS = (
    "run",
    "completions",
    *SUITE,
    "out",
    *DATA,
    *SAMPLES,
    *MODEL,
    *ANSWERS,
    "split",
    "metrics.",
    "export",
    "lang",
)


def run(config: Config) -> int:
    """Scores a run again, or completions made elsewhere; exit code 0, also for a partial result."""
    if (config.run is None) == (config.completions is None):
        raise InputError(
            "what shall be scored? Give either run= or completions=",
            fix="score run=DIR, or score suite=NAME completions=DIR out=DIR",
        )
    prediction("", answer_regex=config.protocol.answer_regex)
    console = report_console()
    if config.run is not None:
        from evalkit.runs.rescore import rescore

        rescored = rescore(config)
        print_results(rescored.results, console)
        _print_changes(rescored, console)
        folder = rescored.folder
    else:
        from evalkit.runs.foreign import score_completions

        assert config.completions is not None
        results = score_completions(config, say=say)
        print_results(results, console)
        folder = Path(config.out or ".")
    print_folder(console, folder)
    return 0


def _print_changes(rescored: "Rescored", console: Console) -> None:
    if rescored.before is None:
        return
    if not rescored.changes:
        console.print("\n" + t("nothing moved: every value is what it was"))
        return
    columns = ("", "before", "after", "difference", "samples")
    table = new_table(*columns, title=t("what moved"), padding=(0, 1))
    for change in rescored.changes:
        table.add_row(change.key, *_cells(change))
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for change in rescored.changes:
        for why in change.why:
            reasons.setdefault(why, []).append(change.key)
    for why, keys in reasons.items():
        whose = t("all") if len(keys) == len(rescored.changes) else ", ".join(keys)
        print_line(console, f"  {shown(why)}   [{whose}]")


def _cells(change: "Change") -> tuple[str, str, str, str]:
    was = change.before.value if change.before else None
    now = change.after.value if change.after else None
    difference = number(now - was, 4, sign=True) if was is not None and now is not None else ""
    samples = "" if change.samples is None else str(change.samples)
    return number(was, 4), number(now, 4), difference, samples
