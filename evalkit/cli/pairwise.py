"""evalkit pairwise RUN RUN [RUN ...] judge=NAME [pairwise.baseline=MODEL] [--dry-run]

Has a judge compare the MT-Bench answers of models two by two, each match in both orders: a match is
won when both orders agree, else it is a tie. Prints win rates, and how far the judge favours a
position or the longer answer. Every pair, or every model against a baseline.

    evalkit pairwise results/A/mt-bench-ja/RUN results/B/mt-bench-ja/RUN judge=gpt-4
    evalkit pairwise answers=model_answer/ pairwise.baseline=gpt-3.5-turbo preset=fastchat \\
        judge=gpt-4o-2024-08-06 out=DIR
    evalkit pairwise RUN RUN pairwise.source=ratings    (by kept single ratings, no call)
"""

from evalkit.cli.command import path_of
from evalkit.cli.judge import ASKING, asked
from evalkit.cli.mt_bench_report import print_pairwise
from evalkit.cli.printing import print_folder, print_line, report_console
from evalkit.core.config import Config, JudgeMode, PairSource
from evalkit.core.errors import InputError
from evalkit.core.words import t
from evalkit.mtbench.books import BookOptions
from evalkit.mtbench.folder import MtBenchFolder, open_folder
from evalkit.mtbench.judge.judges import open_judge, resolve_judge
from evalkit.mtbench.pairwise import (
    answers_to_compare,
    common_preset,
    default_folder,
    kept_replies,
    pair_models,
    plan_pairwise,
    rated_matches,
    write_matches,
)
from evalkit.mtbench.win_rates import pairwise_json

OPTIONS = ("answers", "out", "pairwise.", *ASKING, "metrics.resamples", "lang")


def run(config: Config) -> int:
    """Prints win rates; exit code 1 when games failed at the service (the rest is kept)."""
    console, options = report_console(), config.pairwise
    runs = [open_folder(word, "pairwise") for word in config.folders]
    books = BookOptions.of(config).books(config.preset or common_preset(runs))
    answers, further = answers_to_compare(runs, path_of(config.answers))
    pairs = pair_models(list(answers), options.baseline)
    by_ratings = options.source is PairSource.ratings
    if by_ratings and (config.answers is not None or config.mode is JudgeMode.batch):
        raise InputError(
            "kept ratings are those of runs, and no judge is asked",
            where="option pairwise.source",
            fix="pairwise RUN RUN pairwise.source=ratings, without answers= and mode=batch",
        )
    judge = None if by_ratings else open_judge(config, books.preset)
    label = resolve_judge(config.judge, books.preset).label if config.judge else None
    by = judge.record() if judge else label
    out = path_of(config.out) or default_folder(books.preset, answers, options, by)
    MtBenchFolder(out).refuse_another("mt_bench_pairwise")
    if judge is None:
        matches = rated_matches(runs, pairs, label)
        if config.dry_run:
            print_pairwise(pairwise_json(matches), console)
            return 0
        content = write_matches(out, books.preset, options, matches)
    else:
        plan = plan_pairwise(pairs, answers, books, judge, further)
        replies = asked(config, judge, plan.calls, out, console, kept_replies(out, judge))
        if replies is None:
            return 0
        content = write_matches(out, books.preset, options, plan.matches(replies), (plan, replies))
    print_pairwise(content["pairwise"], console)
    for reason in content["missing"]:
        print_line(console, "  " + t("left out: {reason}", reason=reason))
    failed = content.get("failed", 0)
    if failed:
        text = "{n} games failed at the service: run the same command again"
        print_line(console, f"  {t(text, n=failed)}")
    print_folder(console, out)
    return 1 if failed else 0
