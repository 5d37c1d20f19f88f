"""evalkit judge run=DIR [judge=NAME] [--dry-run]

Has a judge rate the MT-Bench answers of a run, and prints the tables. A judgment that was ever made
is kept and never asked again, by no run; the same command continues after any interruption. The API
key comes from the environment: OPENAI_API_KEY, or AZURE_OPENAI_API_KEY with AZURE_OPENAI_ENDPOINT.

    evalkit judge run=results/MODEL/mt-bench-ja/RUN judge=gpt-4o-2024-08-06 --dry-run
    evalkit judge run=DIR judge=openai judge.model=NAME judge.base_url=http://localhost:8000/v1
    evalkit judge run=DIR judge=azure judge.deployment=NAME
    evalkit judge run=DIR judge=local judge.model=smollm2-135m      (only for trying out)
    evalkit judge answers=model_answer.jsonl preset=fastchat out=DIR judge=gpt-4
    evalkit judge run=DIR judge=gpt-4.1-2025-04-14 mode=batch batch.submit=true

--dry-run shows the calls, tokens and cost, and calls nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from evalkit.cli.command import PRESET
from evalkit.cli.mt_bench_report import print_results
from evalkit.cli.printing import print_folder, print_line, report_console
from evalkit.core.config import Config, JudgeKind, JudgeMode
from evalkit.core.errors import InputError
from evalkit.core.progress import say
from evalkit.core.words import t
from evalkit.mtbench.books import BookOptions
from evalkit.mtbench.folder import MtBenchFolder, open_folder
from evalkit.mtbench.judge.asking import ask_judge, estimate
from evalkit.mtbench.judge.budget import EXPLANATION_TOKENS
from evalkit.mtbench.judge.calls import JudgeCall, JudgeReplies
from evalkit.mtbench.judge.judges import Judge, open_judge
from evalkit.mtbench.judge.store import CachedReply
from evalkit.mtbench.judging import JudgingPlan, given_answers, plan_judging, write_results

# What every verb that asks a judge takes.
ASKING = (
    *("judge", "judge.", "dry_run", *PRESET, "mode", "batch.", "mirror", "offline"),
    # Of a judge that evalkit runs itself.
    *("dtype", "engine", "engine.", "protocol.bos"),
)
OPTIONS = ("run", "answers", "out", *ASKING, "metrics.resamples", "lang")


def run(config: Config) -> int:
    """Judges a run; exit code 1 when judgments failed at the service (the rest is kept)."""
    plan = judging_plan(config)
    judge, folder = plan.judge, plan.folder.path
    console = report_console()
    replies = asked(config, judge, plan.calls, folder, console, plan.kept)
    if replies is None:
        return 0
    content = write_results(plan, replies, config.mode, config.metrics.resamples)
    print_results(content, console)
    _print_outcome(content, folder, console)
    return 1 if replies.failed else 0


def judging_plan(config: Config) -> JudgingPlan:
    """The calls for the run that `run=` names, or for the answers of `answers=` as a run in `out=`.

    Raises:
        InputError: no run or answers, an unknown preset, an incomplete judge.
        FetchError: a file of the preset cannot be fetched.
    """
    options = BookOptions.of(config)
    if config.answers is None:
        folder = open_folder(config.run)
        header, turns = folder.header(), folder.turns()
    elif config.run is not None or config.out is None:
        raise InputError("answers= are judged into a folder of their own", fix="out=DIR, and no run=")
    else:
        folder = MtBenchFolder(Path(config.out).expanduser())
        folder.refuse_another("mt_bench", "given")
        header, turns = given_answers(Path(config.answers).expanduser(), options)
    books = options.books(header.preset, header.language)
    plan = plan_judging(folder, header, turns, books, open_judge(config, books.preset))
    if config.answers is not None and not config.dry_run:
        folder.write_header(header)
        folder.write_turns(turns)
    return plan


def asked(
    config: Config,
    judge: Judge,
    calls: Sequence[JudgeCall],
    folder: Path,
    console: Console,
    kept: Sequence[CachedReply] = (),
) -> JudgeReplies | None:
    """The replies (see `ask_judge`); None while a batch is under way, and where a dry run prints the cost."""
    if config.dry_run:
        _print_estimate(judge, calls, config.mode, console, kept)
        return None
    batch = config.batch if config.mode is JudgeMode.batch else None
    return ask_judge(judge, calls, folder, say=say, batch=batch, kept=kept)


def _print_estimate(
    judge: Judge, calls: Sequence[JudgeCall], mode: JudgeMode, console: Console, kept: Sequence[CachedReply]
) -> None:
    found = estimate(judge, calls, mode, kept)
    to_make = t(
        "judge {judge}: {n} judgments, {kept} are kept, {calls} calls to make",
        judge=judge.label,
        n=found.wanted,
        kept=found.wanted - found.calls,
        calls=found.calls,
    )
    tokens = t(
        "about {input} input tokens (by {how}) and {output} output tokens ({each} each)",
        input=f"{found.input_tokens:,}",
        how=found.counted_by,
        output=f"{found.output_tokens:,}",
        each=EXPLANATION_TOKENS,
    )
    cost = t("cost: not known, the price table has no such model (judge.prices=FILE)")
    if judge.config.kind is JudgeKind.local:
        cost = t("cost: none, evalkit runs this judge itself")
    elif found.dollars is not None:
        cost = t("cost: about ${dollars}", dollars=f"{found.dollars:.2f}")
    print_line(console, to_make)
    print_line(console, f"  {tokens}")
    print_line(console, f"  {cost}")


def _print_outcome(content: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Prints what the judging cost, who answered, and where the results are."""
    cost, judge = content["cost"], content["judge"]
    dollars = "" if cost["dollars"] is None else f", ${cost['dollars']:.2f}"
    used = t(
        "{calls} calls, {input} input and {output} output tokens",
        calls=cost["calls"],
        input=f"{cost['input_tokens']:,}",
        output=f"{cost['output_tokens']:,}",
    )
    print_line(console, used + dollars)
    if judge["service"] == "local":
        note = t("note: a small local judge is for trying out; `calibrate` says what a judge is worth")
        print_line(console, note)
    asked = judge["model"]
    for served, number in judge["answered_by"].items():
        if served != "?" and not (served.startswith(asked) or asked.startswith(served)):
            text = "warning: {n} judgments were made by {served}, not by {asked}"
            print_line(console, t(text, n=number, served=served, asked=asked))
    print_folder(console, folder)
