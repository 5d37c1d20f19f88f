"""Rows for other tools: a README block for the hub, files in lm-evaluation-harness's form, W&B runs.

- model card: `model-index` metadata and the two tables.
- lm-eval: `results` maps a task to `<metric>,none` and `<metric>_stderr,none`. Tasks are the datasets and,
  as groups, the nine categories and AVG, under the names evalkit gives them.
- W&B: one run for each model and protocol in the project `evalkit` (WANDB_PROJECT), with the figures of
  its checkpoints by `step` and a table of samples. Its id is made of their names: another export updates
  it, and adds only what it does not have to its history, which W&B lets nobody change. WANDB_MODE chooses
  online or offline, which writes to <out>/wandb for a later `wandb sync`; without an API key, in the
  environment or from `wandb login`, it is offline.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from evalkit import __version__
from evalkit.core.durable import write_text_atomic
from evalkit.core.errors import EvalkitError
from evalkit.core.text import canonical_json, folder_name, text_sha256
from evalkit.leaderboard.frames import sample_rows
from evalkit.leaderboard.rows import BoardRow, Origin, Table, measured, tables_of
from evalkit.leaderboard.runs import FinishedRun
from evalkit.leaderboard.steps import step_of_row
from evalkit.leaderboard.tables import markdown_tables
from evalkit.records.results import AVERAGE, WITHOUT_MT, Figure, Results
from evalkit.scoring.categories import category_members

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BEGIN, END = "<!-- evalkit: begin -->", "<!-- evalkit: end -->"
# The hub's names of the benchmarks.
_HUB_DATASETS = {
    "jaster": "llm-jp-eval",
    "mt": "mt-bench-ja",
    "mt_en": "mt-bench",
    "instructions": "m-ifeval",
    "pfgen": "pfgen-bench",
}
# lm-eval names a filter after the metric; none was applied.
_FILTER = "none"
_GROUP_METRIC = "score"
WANDB_PROJECT = "evalkit"
# What a W&B run's history has, as hashes: in its config, and in a file of an offline run's folder.
_LOGGED = "evalkit_logged"
_WANDB_SAMPLE = ("dataset", "id", "metric", "value", "input", "prediction", "gold", "completion")


def _file_name(stem: str, distinction: object, suffix: str, taken: set[str]) -> str:
    """`stem` with the suffix, and with the distinction too where that name is taken; adds it to `taken`."""
    name = f"{stem}-{distinction}{suffix}" if f"{stem}{suffix}" in taken else f"{stem}{suffix}"
    taken.add(name)
    return name


# --- model card -----------------------------------------------------------------------------------


def model_card(row: BoardRow) -> str:
    """The README block of one row: YAML metadata first, then Markdown between two comments.

    Partial figures are in the tables only; without any other there is no metadata.
    """
    return f"{_metadata(row)}{BEGIN}\n\n{markdown_tables([row], heading='###')}\n\n{END}\n"


def model_card_files(rows: Sequence[BoardRow]) -> Iterator[tuple[str, str]]:
    """The name and content of one file for each row that was measured here."""
    taken: set[str] = set()
    for number, row in enumerate(row for row in rows if row.kind is Origin.run):
        stem = f"model-card-{folder_name(row.model)}"
        yield _file_name(stem, number, ".md", taken), model_card(row)


def _metadata(row: BoardRow) -> str:
    from huggingface_hub import ModelCardData

    results = [result for table in tables_of([row]) for result in _hub_results(row, table)]
    if not results:
        return ""
    data = ModelCardData(model_name=row.model, eval_results=results)
    return f"---\n{data.to_yaml()}\n---\n\n"


def _hub_results(row: BoardRow, table: Table) -> "Iterator[EvalResult]":
    from huggingface_hub import EvalResult

    cells = table.cells(row)
    for column in table.columns:
        cell = cells.get(column)
        if cell is None or cell.value is None or cell.partial:
            continue
        yield EvalResult(
            task_type="text-generation",
            dataset_type=_HUB_DATASETS.get(table.name, column),
            dataset_name=f"{table.title} {column}",
            dataset_config=column,
            dataset_args={"protocol": str(table.rules(row)), "samples": cell.n},
            metric_type=column,
            metric_name=column,
            metric_value=round(cell.value, table.digits),
            metric_args={"ci95": [round(end, table.digits) for end in cell.ci95]} if cell.ci95 else None,
        )


# --- lm-evaluation-harness ------------------------------------------------------------------------


def lm_eval_files(rows: Sequence[BoardRow]) -> Iterator[tuple[str, str]]:
    """The name and content of lm-eval-<model>.json for each row with a run of llm-jp-eval's datasets.

    Raises:
        InputError: no row was measured here.
    """
    taken: set[str] = set()
    for run in (row.run for row in measured(rows) if row.run is not None):
        name = _file_name(f"lm-eval-{folder_name(run.model)}", run.folder.name, ".json", taken)
        yield name, json.dumps(lm_eval_json(run), ensure_ascii=False, indent=2) + "\n"


def lm_eval_json(run: FinishedRun) -> dict[str, Any]:
    """One run's results as the harness writes them."""
    results = run.results
    options, identity = results.protocol.options, results.run.get("identity", {})
    groups = {
        name: _figures_of(name, {_GROUP_METRIC: value})
        for name, value in {**results.categories, **results.average}.items()
        if name != WITHOUT_MT and name not in results.partial.categories and value.value is not None
    }
    # A task of one's own may be called as a group is.
    taken = (*category_members(), AVERAGE)
    tasks = {f"task_{name}" if name in taken else name: name for name in results.datasets}
    metrics = {task: results.datasets[name].metrics for task, name in tasks.items()}
    parts = {task: run.leaf(name).results for task, name in tasks.items()}
    return {
        "results": {
            **{
                task: _figures_of(task, {m: results.scores[f"{tasks[task]}_{m}"] for m in computed})
                for task, computed in metrics.items()
            },
            **groups,
        },
        "groups": groups,
        "group_subtasks": {name: names for name, names in _subtasks(results).items() if name in groups},
        "configs": {task: _task_config(part, tasks[task]) | {"task": task} for task, part in parts.items()},
        "versions": {
            **{task: part.protocol.name for task, part in parts.items()},
            **dict.fromkeys(groups, results.protocol.name),
        },
        "n-shot": {task: _few_shots(part, tasks[task]) for task, part in parts.items()},
        "higher_is_better": {task: dict.fromkeys(computed, True) for task, computed in metrics.items()},
        "n-samples": {
            task: dict.fromkeys(("original", "effective"), results.datasets[name].n)
            for task, name in tasks.items()
        },
        "config": {
            "model": "evalkit",
            "model_args": identity.get("model", {}),
            "limit": options.get("limit"),
            "bootstrap_iters": options.get("metrics.resamples"),
            "random_seed": identity.get("seed"),
        },
        "model_name": run.model,
        "model_name_sanitized": folder_name(run.model),
        "evalkit": {
            "version": __version__,
            "protocol": results.protocol.name,
            "deviations": results.protocol.deviations,
            "partial": list(run.reasons),
            "run": results.run.get("id"),
        },
    }


def _subtasks(results: Results) -> dict[str, list[str]]:
    """The datasets of each category, and the categories of AVG."""
    members = category_members()
    subtasks = {name: [m for m in members[name] if m in results.datasets] for name in results.categories}
    return subtasks | ({AVERAGE: list(subtasks)} if AVERAGE in results.average else {})


def _task_config(results: Results, name: str) -> dict[str, Any]:
    metrics = results.datasets[name].metrics
    version = {"version": results.scores[f"{name}_{metrics[0]}"].metric_version} if metrics else {}
    return {
        "num_fewshot": _few_shots(results, name),
        "metric_list": [{"metric": metric, "higher_is_better": True} for metric in metrics],
        "output_type": "generate_until",
        "metadata": version,
    }


def _few_shots(results: Results, name: str) -> Any:
    options = results.protocol.options
    return options.get(f"suite.num_few_shots.{name}", options.get("num_few_shots"))


def _figures_of(name: str, values: dict[str, Figure]) -> dict[str, Any]:
    entry: dict[str, Any] = {"alias": name}
    for metric, value in values.items():
        entry[f"{metric},{_FILTER}"] = value.value
        entry[f"{metric}_stderr,{_FILTER}"] = "N/A" if value.stderr is None else value.stderr
    return entry


# --- Weights & Biases -----------------------------------------------------------------------------


def log_to_wandb(rows: Sequence[BoardRow], out: Path) -> list[str]:
    """Logs every measured row; returns a line for people on each W&B run.

    Raises:
        EvalkitError: W&B is not installed, or refuses.
    """
    try:
        import wandb
    except ImportError:
        raise EvalkitError("W&B is not installed", fix="pip install 'evalkit[wandb]'") from None
    out.mkdir(parents=True, exist_ok=True)
    said = []
    for key, points in _by_series(measured(rows)).items():
        last_step, last = points[-1]
        # The name may be nothing but the step.
        name = key[0] or last.model
        identity = text_sha256("\n".join(key))[:16]
        earlier = f"offline-run-*-{identity}"
        project = os.environ.get("WANDB_PROJECT", WANDB_PROJECT)
        kept = f"{_LOGGED}-{folder_name(project)}.json"
        try:
            run = wandb.init(
                project=project,
                id=identity,
                resume="allow",
                name=name,
                dir=str(out),
                mode=_wandb_mode(wandb.setup().settings),
                config={**_wandb_facts(last), **(last.run.results.protocol.options if last.run else {})},
                # The run is there already: its options may have changed.
                allow_val_change=True,
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off"),
            )
            offline = run.settings.mode == "offline"
            logged = set(run.config.get(_LOGGED, ()))
            for path in out.glob(f"wandb/{earlier}/{kept}") if offline else ():
                logged |= set(json.loads(path.read_text(encoding="utf-8")))
            if last_step is not None:
                run.define_metric("*", step_metric="step")
            for line in _wandb_lines(points):
                if (digest := text_sha256(canonical_json(line))[:16]) not in logged:
                    logged.add(digest)
                    if samples := line.get("samples"):
                        line["samples"] = wandb.Table(columns=list(_WANDB_SAMPLE), data=samples)
                    run.log(line)
            run.config.update({_LOGGED: sorted(logged)}, allow_val_change=True)
            run.summary.update(_wandb_figures(last))
            folder = Path(run.dir).parent
            run.finish()
        except wandb.errors.Error as error:
            raise EvalkitError(f"W&B refused: {error}", fix="WANDB_MODE=offline") from None
        if offline:
            write_text_atomic(folder / kept, json.dumps(sorted(logged)))
        sync = f"   (to send it: wandb sync {folder.parent / earlier})" if offline else ""
        said.append(f"wandb: {name} ({run.settings.mode}) -> {folder}{sync}")
    return said


def _wandb_mode(settings: Any) -> Literal["offline"] | None:
    """`offline` where W&B would find no key; None leaves it to WANDB_MODE and the user's settings."""
    if "WANDB_MODE" in os.environ or settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    homes = (Path(os.path.expanduser("~")) / name for name in (".netrc", "_netrc"))  # noqa: PTH111
    for path in [Path(os.environ["NETRC"])] if os.environ.get("NETRC") else homes:
        # What `wandb login` leaves.
        with suppress(OSError, NetrcParseError):
            if {urlsplit(settings.base_url).netloc, "api.wandb.ai"} & netrc(path).hosts.keys():
                return None
    return "offline"


def _by_series(rows: Sequence[BoardRow]) -> dict[tuple[str, str], list[tuple[int | None, BoardRow]]]:
    """The rows by model without its step, and protocol; each with its step, in their order."""
    found: dict[tuple[str, str], list[tuple[int | None, BoardRow]]] = {}
    for row in rows:
        series, step = step_of_row(row) or (row.model, None)
        found.setdefault((series, row.lasting_rules), []).append((step, row))
    return {key: sorted(points, key=lambda point: point[0] or 0) for key, points in found.items()}


def _wandb_lines(points: Sequence[tuple[int | None, BoardRow]]) -> Iterator[dict[str, Any]]:
    """The history of a series: the figures of each step, and the samples of the last one."""
    for step, row in points:
        yield _wandb_figures(row) | ({} if step is None else {"step": step})
    if run := points[-1][1].run:
        yield {"samples": [[sample.get(column) for column in _WANDB_SAMPLE] for sample in sample_rows(run)]}


def _wandb_figures(row: BoardRow) -> dict[str, float]:
    """Every figure by name: `AVG`, `NLI`, `mt_bench/coding`, `datasets/jamp_exact_match`, each with
    `_low` and `_high` where there is an interval.
    """
    groups = (("", row.cells), ("mt_bench/", row.mt_bench), ("datasets/", row.datasets))
    found: dict[str, float] = {}
    for prefix, cells in groups:
        for name, cell in cells.items():
            if cell.value is not None:
                found[prefix + name] = cell.value
                if cell.ci95:
                    found[f"{prefix}{name}_low"], found[f"{prefix}{name}_high"] = cell.ci95
    return found


def _wandb_facts(row: BoardRow) -> dict[str, str]:
    """Model, protocol, run id, suite, hub page, and whether the row is partial."""
    results = row.run.results if row.run else None
    facts = {
        "model": row.model,
        "protocol": row.rules,
        "mt_bench_rules": row.mt_bench_rules,
        "url": row.url,
        "partial": str(row.partial).lower(),
        "run_id": results.run.get("id") if results else None,
        "suite": results.run.get("suite") if results else None,
    }
    return {key: str(value) for key, value in facts.items() if value}
