"""evalkit calibrate run=DIR judge=NAME [--reference gpt-4] [--dry-run]

Compares another judge with one that has judged before (gpt-4-0613 is no longer served): it rates the
same answers. Prints, overall and by category, how often both give the same rating, how often within
one point, their rank correlation, and how much the new judge gives more or less. The run's own
table is left alone.

    evalkit calibrate judgments=gpt-4_single.jsonl answers=model_answer/ preset=fastchat \\
        out=DIR judge=gpt-4.1-2025-04-14
    evalkit calibrate run=DIR judge=openai judge.model=NAME judge.base_url=URL
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from evalkit.cli.agreement import print_ratings
from evalkit.cli.command import path_of
from evalkit.cli.judge import ASKING, asked, judging_plan
from evalkit.cli.printing import number, print_folder, print_line, report_console
from evalkit.core.config import Config
from evalkit.core.errors import InputError
from evalkit.core.words import t
from evalkit.mtbench.agreement import GPT4_NOISE, Calibration, calibrate, find_reference
from evalkit.mtbench.books import BookOptions
from evalkit.mtbench.judging import JudgingPlan
from evalkit.mtbench.replay import replay

OPTIONS = ("run", "judgments", "answers", "out", "reference", *ASKING, "metrics.resamples", "lang")


def run(config: Config) -> int:
    """Prints the comparison; exit code 1 when judgments failed at the service."""
    if config.judgments is None:
        if config.answers is not None:
            raise InputError(
                "the judgments to compare with are not given",
                fix="judgments=FILE.jsonl beside answers=, or run=DIR of a judged run",
            )
        return _calibrate(config)
    # A dry run leaves no files.
    place: AbstractContextManager[str | None] = (
        TemporaryDirectory() if config.dry_run else nullcontext(config.out)
    )
    with place as out:
        path = _replayed(replace(config, out=out))
        return _calibrate(replace(config, run=path, answers=None, out=None, judgments=None))


def _calibrate(config: Config) -> int:
    console = report_console()
    plan = judging_plan(config)
    judge, folder = plan.judge, plan.folder
    reference = find_reference(folder, judge.label, config.reference)
    replies = asked(config, judge, plan.calls, folder.path, console, plan.kept)
    if replies is None:
        return 0
    calibration = calibrate(plan, reference, replies)
    _print_calibration(calibration, plan, console)
    if replies.failed:
        text = "{n} judgments failed at the service: run the same command again"
        print_line(console, f"  {t(text, n=replies.failed)}")
    print_folder(console, calibration.path)
    return 1 if replies.failed else 0


def _replayed(config: Config) -> str:
    """The logs of `judgments=` and `answers=` as a run; returns its folder."""
    assert config.judgments is not None
    if config.answers is None:
        raise InputError("the answers that were judged are needed", fix="answers=FILE.jsonl")
    path, _ = replay(
        Path(config.judgments).expanduser(),
        Path(config.answers).expanduser(),
        # Judge prompts of the user's own are for the new judge.
        replace(BookOptions.of(config), prompts=None),
        out=path_of(config.out),
        resamples=config.metrics.resamples,
    )
    return str(path)


def _print_calibration(calibration: Calibration, plan: JudgingPlan, console: Console) -> None:
    """Prints the table by category, the averages, and how far gpt-4 agrees with itself."""
    label, reference = plan.judge.label, calibration.reference
    print_line(console, t("{label} beside the judgments by {reference}", label=label, reference=reference))
    print_ratings(calibration.agreement, reference, label, console)
    rule = plan.books.preset.aggregation
    for model, averages in calibration.averages.items():
        shown = " -> ".join(number(averages[name], 2) for name in ("reference", "other"))
        text = "{model}: average {shown} (rule {rule})"
        print_line(console, f"  {t(text, model=model, shown=shown, rule=rule)}")
    noise = t(
        "for comparison, gpt-4 against itself: same rating {same}, within one point {near}, deviation {sd}",
        same=f"{GPT4_NOISE['exact']:.0%}",
        near=f"{GPT4_NOISE['within_one']:.0%}",
        sd=GPT4_NOISE["deviation"],
    )
    print_line(console, f"  {noise}")
