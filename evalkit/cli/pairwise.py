"""python -m evalkit pairwise RUN RUN [RUN ...] judge=NAME [pairwise.baseline=MODEL] [--dry-run]

Has a judge compare the MT-Bench answers of models two by two, each match in both orders: a match is
won when both orders agree, else it is a tie. Prints win rates, and how far the judge favours a
position or the longer answer. Every pair, or every model against a baseline.

    python -m evalkit pairwise results/A/mt-bench-ja/RUN results/B/mt-bench-ja/RUN judge=gpt-4
    python -m evalkit pairwise answers=model_answer/ pairwise.baseline=gpt-3.5-turbo preset=fastchat \\
        judge=gpt-4o-2024-08-06 out=DIR
    python -m evalkit pairwise RUN RUN pairwise.source=ratings    (by kept single ratings, no call)
"""

from evalkit.core.config import Config
from evalkit.core.words import t

OPTIONS = (
    "answers",
    "out",
    "pairwise.",
    "judge",
    "judge.",
    "dry_run",
    "preset",
    "language",
    "mode",
    "batch.",
    "mirror",
    "offline",
    "lang",
)


def run(config: Config) -> int:
    """Prints win rates; exit code 1 when games failed at the service (the rest is kept)."""
    from rich.console import Console

    from evalkit.cli.mt_bench_report import print_estimate, print_pairwise
    from evalkit.core.progress import say
    from evalkit.mtbench.judge.dispatch import estimate
    from evalkit.mtbench.pairwise import compare, plan_pairwise

    console = Console()
    plan = plan_pairwise(config)
    if config.dry_run and plan.judge is not None:
        print_estimate(plan.judge.label, estimate(plan.judge, plan.calls, config.mode), console)
        return 0
    content = compare(plan, config, say=say)
    if content is None:
        return 0
    print_pairwise(content["pairwise"], console)
    for reason in content["missing"]:
        console.print(
            "  " + t("left out: {reason}", reason=reason), soft_wrap=True, highlight=False, markup=False
        )
    if failed := content.get("failed"):
        console.print(
            "  " + t("{n} games failed at the service: run the same command again", n=failed), markup=False
        )
    console.print(f"{t('results: ')}{plan.folder}", soft_wrap=True, highlight=False, markup=False)
    return 1 if content.get("failed") else 0
