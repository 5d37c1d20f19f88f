"""python -m evalkit calibrate run=DIR judge=NAME [--reference gpt-4] [--dry-run]

What is another judge worth? Has it rate answers that were judged before (gpt-4-0613 is no longer
served) and prints, overall and by category, how often both give the same rating, how often within
one point, their rank correlation, and how much the new judge gives more or less. The run's own
table is left alone.

    python -m evalkit calibrate judgments=gpt-4_single.jsonl answers=model_answer/ preset=fastchat \\
        out=DIR judge=gpt-4.1-2025-04-14
    python -m evalkit calibrate run=DIR judge=openai judge.model=NAME judge.base_url=URL
"""

from evalkit.core.config import Config
from evalkit.core.words import t

OPTIONS = (
    "run",
    "judgments",
    "answers",
    "out",
    "reference",
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
    """Prints the comparison; exit code 1 when judgments failed at the service."""
    from rich.console import Console

    from evalkit.cli.judge_comparisons import print_calibration
    from evalkit.cli.mt_bench_report import print_estimate
    from evalkit.core.progress import say
    from evalkit.mtbench.calibrate import calibrate, calibration_path, plan_calibration
    from evalkit.mtbench.judge.dispatch import estimate

    console = Console()
    plan, reference = plan_calibration(config)
    if config.dry_run:
        print_estimate(plan.judge.label, estimate(plan.judge, plan.calls, config.mode, plan.kept), console)
        return 0
    calibration = calibrate(plan, reference, config, say=say)
    if calibration is None:
        return 0
    print_calibration(calibration, console)
    console.print(f"{t('results: ')}{calibration_path(plan)}", soft_wrap=True, highlight=False, markup=False)
    return 1 if calibration.failed else 0
