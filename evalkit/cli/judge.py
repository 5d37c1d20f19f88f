"""python -m evalkit judge run=DIR [judge=NAME] [--dry-run]

Has a judge rate the MT-Bench answers of a run, and prints the tables. A judgment that was ever made
is kept and never asked again, by no run; the same command continues after any interruption. The API
key comes from the environment: OPENAI_API_KEY, or AZURE_OPENAI_API_KEY with AZURE_OPENAI_ENDPOINT.

    python -m evalkit judge run=results/MODEL/mt-bench-ja/RUN judge=gpt-4o-2024-08-06 --dry-run
    python -m evalkit judge run=DIR judge=openai judge.model=NAME judge.base_url=http://localhost:8000/v1
    python -m evalkit judge run=DIR judge=azure judge.deployment=NAME
    python -m evalkit judge run=DIR judge=local judge.model=smollm2-135m      (only for trying out)
    python -m evalkit judge answers=model_answer.jsonl preset=fastchat out=DIR judge=gpt-4
    python -m evalkit judge run=DIR judge=gpt-4.1-2025-04-14 mode=batch batch.submit=true

--dry-run shows the calls, tokens and cost, and calls nothing.
options: run, or answers and out; judge, judge.model, judge.base_url, judge.deployment,
judge.api_version, judge.api_key_env, judge.identity, judge.parameters.KEY, judge.concurrency,
judge.timeout, judge.retries, judge.max_wait, judge.repeats, judge.reduce (mean, median),
judge.max_cost (dollars), judge.prices (a copy of conf/prices.yaml), judge.store, judge.prompts (a judge
prompt file of your own); preset, language;
mode (online, batch), batch.submit, batch.results, batch.poll; mirror, offline, metrics.resamples
"""

from evalkit.core.config import Config


def run(config: Config) -> int:
    """Judges a run; exit code 1 when judgments failed at the service (the rest is kept)."""
    from rich.console import Console

    from evalkit.cli.mt_bench_report import print_estimate, print_outcome, print_results
    from evalkit.core.progress import say
    from evalkit.mtbench.judge.dispatch import estimate
    from evalkit.mtbench.judge.judging import judge_run, plan_judging

    plan = plan_judging(config)
    console = Console()
    if config.dry_run:
        print_estimate(plan.judge.label, estimate(plan.judge, plan.calls, config.mode, plan.kept), console)
        return 0
    outcome = judge_run(plan, config, say=say)
    if outcome is None:
        return 0
    print_results(outcome.content, console)
    print_outcome(outcome.content, str(plan.folder.path), console)
    return 1 if outcome.failed else 0
