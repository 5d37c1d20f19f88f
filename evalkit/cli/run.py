"""evalkit [run] model=NAME suite=NAME [key=value ...]

Evaluates a model: prompts, completions, scores, tables. The same command again continues an
unfinished run and finds a finished one. Everything is kept in results/<model>/<suite>/<run id>/.

    evalkit model=smollm2-135m suite=sample
    evalkit model=1.8b-instruct suite=jaster data_dir=DATA
    evalkit model=/checkpoints/step-1000 suite=nli limit=20
    evalkit model=1.8b-instruct suite=mt-bench-ja       (answers; then the verb judge)
    evalkit model=1.8b suite=pfgen [samples=100] [pfgen.mode=qa]
    evalkit model=1.8b suite=jaster engine=api engine.base_url=http://gpu1:8000/v1
    evalkit model=served model.name=NAME suite=qa engine=api engine.base_url=http://a/v1
    evalkit -m model=1.8b,3.7b,13b suite=jaster [hydra/launcher=slurm ...]
    evalkit watch=/checkpoints/my-model suite=nli       (checkpoints as they appear)

engine=api asks OpenAI-compatible servers: vLLM, SGLang, TGI, llama.cpp, commercial ones. The key is
read from the environment (engine.api_key_env, default OPENAI_API_KEY). engine=vllm runs vLLM in
this process. docs/servers.md

-m runs one job for each combination of values: commas outside quotes and brackets separate them
(see: list launchers). watch= evaluates every checkpoint in a folder once it is whole, lowest step
first, once each. engine=ray uses every GPU of a machine or a cluster. All three: docs/clusters.md.
"""

from collections.abc import Callable
from pathlib import Path

from evalkit.cli.command import ANSWERS, DATA, MODEL, PRESET, SAMPLES, SUITE
from evalkit.cli.printing import print_folder, report_console
from evalkit.cli.report import print_results
from evalkit.core.config import Config
from evalkit.core.progress import say
from evalkit.core.text import command
from evalkit.core.words import t
from evalkit.runs.run import evaluate

OPTIONS = (
    *MODEL,
    *SUITE,
    *SAMPLES,
    *ANSWERS,
    "seed",
    "split",
    "dtype",
    "engine",
    "engine.",
    *DATA,
    "out",
    "export",
    "lang",
    "metrics.",
    *PRESET,
    "watch",
    "watch_poll",
    "watch_settle",
    "watch_timeout",
)


def run(config: Config, *, opened: Callable[[Path], None] = lambda folder: None) -> int:
    """Runs an evaluation and prints its tables; exit code 0, also for a partial result.

    `opened` takes the run directory once it is known.
    """
    if config.suite is not None and config.suite.mt_bench is not None:
        return _mt_bench(config, opened)
    outcome = evaluate(config, say=say, opened=opened)
    console = report_console()
    if not outcome.generated:
        text = "finished already: all {n} completions are kept, nothing was generated"
        console.print(t(text, n=outcome.kept))
    print_results(outcome.results, console, outcome.folder)
    return 0


def _mt_bench(config: Config, opened: Callable[[Path], None]) -> int:
    from evalkit.cli.mt_bench_report import print_results as print_mt_bench
    from evalkit.runs.mt_bench import answer_questions

    outcome = answer_questions(config, say=say, opened=opened)
    console = report_console()
    if not outcome.generated:
        text = "finished already: all {n} answered turns are kept, nothing was generated"
        console.print(t(text, n=outcome.kept))
    print_mt_bench(outcome.results, console)
    judge = command("judge", f"run={outcome.folder}", "judge=gpt-4o-2024-08-06", "--dry-run")
    print_folder(console, outcome.folder, judge)
    return 0
