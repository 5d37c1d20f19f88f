"""evalkit certify model=NAME suite=NAME [limit=N] [dtype=bfloat16]

Answers the suite one prompt at a time and then in several batch sizes and orders, and reports the
share of outputs that changed, with its 95 % interval (Wilson), and how far each score moved. In float32
nothing may change but ties of the two best logits (within 1e-4): exit code 1 otherwise. In bfloat16
outputs do change with batch size and order; how many is measured and shown.
"""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from evalkit.cli.command import CHAT, DATA, MODEL, SAMPLES, SUITE
from evalkit.cli.printing import report_console
from evalkit.core.config import Config, given_model, given_suite
from evalkit.core.errors import InputError
from evalkit.core.progress import phase, say
from evalkit.core.words import t
from evalkit.engines import build_engine, check
from evalkit.engines.models import resolve
from evalkit.runs.suite import asking_of, load_suite

if TYPE_CHECKING:
    from evalkit.runs.certify import VariantResult

OPTIONS = (
    *MODEL,
    *SUITE,
    *SAMPLES,
    *CHAT,
    "generation",
    "generation.",
    "protocol.",
    "seed",
    "split",
    "dtype",
    "engine",
    "engine.device",
    "engine.device_map",
    "engine.prefix",
    "engine.attention",
    "engine.threads",
    *DATA,
    "metrics.",
    "lang",
)


def run(config: Config) -> int:
    """Prints the certificate; exit code 1 when float32 outputs changed."""
    model = given_model(config.model)
    if config.engine.name != "local":
        raise InputError("certify is about the local engine", where="option engine", fix="engine=local")
    if given_suite(config.suite).pfgen:
        raise InputError(
            "certify compares greedy answers, and pfgen draws its answers",
            where="suite=pfgen",
            fix="the same model and engine with another suite: suite=sample",
        )
    check(model, config.engine, offline=config.data.offline)
    suite = load_suite(given_suite(config.suite), config.data, say=say)
    from evalkit.engines.local.engine import LocalEngine
    from evalkit.runs.certify import certify

    with phase(t("loading the model")):
        built = build_engine(
            resolve(model, offline=config.data.offline),
            config.engine,
            config.dtype,
            bos=config.protocol.bos,
            follow_generation_config=config.generation.from_model,
        )
    with built as engine:
        assert isinstance(engine, LocalEngine)
        facts = engine.describe()
        comparisons = certify(
            suite,
            engine,
            config.protocol,
            config.metrics,
            asking_of(config, engine.tokenizer),
            say=say,
        )
    console = report_console()
    _print_table(comparisons, console)
    exact = facts["dtype"] == "float32"
    changed = sum(len(comparison.changed) for comparison in comparisons)
    words = ", ".join(f"{key} {facts[key]}" for key in ("device", "dtype", "attention", "prefix", "way"))
    console.print(f"{suite.name}: {comparisons[0].requests} prompts; {words}", highlight=False)
    shares = [comparison.share for comparison in comparisons]
    if not exact:
        spread = f"{min(shares):.1%} to {max(shares):.1%}"
        console.print(f"measured: {spread} of the outputs differ by batch size and order", highlight=False)
        return 0
    verdict = f"NOT exact: {changed} outputs changed"
    if not changed:
        verdict = "certified: nothing changed" + (" but ties of the two best logits" if any(shares) else "")
    console.print(verdict, style="bold green" if not changed else "bold red")
    return 1 if changed else 0


def _print_table(comparisons: "list[VariantResult]", console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    table.add_column("run")
    for header in ("changed", "ties", "share", "95 % interval", "largest margin"):
        table.add_column(header, justify="right")
    table.add_column("scores that moved")
    for one in comparisons:
        moved = ", ".join(f"{key} {change:+.4f}" for key, change in one.moved.items()) or "none"
        share, interval = f"{one.share:.1%}", "{:.1%}–{:.1%}".format(*one.ci95)
        counts = (str(len(one.changed)), str(len(one.ties)), share, interval, f"{one.largest_margin:.2g}")
        table.add_row(one.variant.name, *counts, moved)
    console.print(table)
