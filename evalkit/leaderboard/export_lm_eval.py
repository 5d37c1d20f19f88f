"""Rows -> results files in the form of lm-evaluation-harness.

`results` maps a task to `<metric>,none` and `<metric>_stderr,none`; here tasks are the datasets and,
as groups, the nine categories and AVG, under the names evalkit gives them.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from evalkit import __version__
from evalkit.core.text import folder_name
from evalkit.leaderboard.rows import Row, Run, measured
from evalkit.records.results import AVERAGE, Figure
from evalkit.scoring.categories import category_members

# The harness names a filter after the metric; none was applied.
_FILTER = "none"
_GROUP_METRIC = "score"


def lm_eval_files(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """The name and content of lm-eval-<model>.json for each row with a run of llm-jp-eval's datasets.

    Raises:
        InputError: no row was measured here.
    """
    names: set[str] = set()
    for run in (row.run for row in measured(rows) if row.run is not None):
        name = f"lm-eval-{folder_name(run.model)}"
        name = f"{name}-{run.folder.name}.json" if f"{name}.json" in names else f"{name}.json"
        names.add(name)
        yield name, json.dumps(lm_eval_json(run), ensure_ascii=False, indent=2) + "\n"


def lm_eval_json(run: Run) -> dict[str, Any]:
    """One run's results as the harness writes them."""
    results = run.results
    names = list(results.datasets)
    groups = {**results.categories, **results.average}
    metrics = {name: results.datasets[name].metrics for name in names}
    tasks = {name: _task(name, {m: results.scores[f"{name}_{m}"] for m in metrics[name]}) for name in names}
    group_figures = {name: _task(name, {_GROUP_METRIC: value}) for name, value in groups.items()}
    options = results.protocol.options
    few_shots = {
        name: options.get(f"suite.num_few_shots.{name}", options.get("num_few_shots")) for name in names
    }
    members = category_members()
    subtasks = {name: [m for m in members[name] if m in metrics] for name in results.categories}
    identity = results.run.get("identity", {})
    return {
        "results": {**tasks, **group_figures},
        "groups": group_figures,
        "group_subtasks": {**subtasks, **({AVERAGE: list(subtasks)} if AVERAGE in groups else {})},
        "configs": {
            name: {
                "task": name,
                "num_fewshot": few_shots[name],
                "metric_list": [{"metric": m, "higher_is_better": True} for m in metrics[name]],
                "output_type": "generate_until",
                "metadata": {"version": results.scores[f"{name}_{metrics[name][0]}"].metric_version}
                if metrics[name]
                else {},
            }
            for name in names
        },
        "versions": dict.fromkeys((*names, *groups), results.protocol.name),
        "n-shot": few_shots,
        "higher_is_better": {name: dict.fromkeys(metrics[name], True) for name in names},
        "n-samples": {
            name: {"original": results.datasets[name].n, "effective": results.datasets[name].n}
            for name in names
        },
        "config": {
            "model": "evalkit",
            "model_args": identity.get("model", {}),
            "limit": results.protocol.options.get("limit"),
            "bootstrap_iters": results.protocol.options.get("metrics.resamples"),
            "random_seed": identity.get("seed"),
        },
        "model_name": run.model,
        "model_name_sanitized": folder_name(run.model),
        "evalkit": {
            "version": __version__,
            "protocol": results.protocol.name,
            "deviations": results.protocol.deviations,
            "partial": results.partial.reasons,
            "run": results.run.get("id"),
        },
    }


def _task(name: str, values: dict[str, Figure]) -> dict[str, Any]:
    entry: dict[str, Any] = {"alias": name}
    for metric, value in values.items():
        entry[f"{metric},{_FILTER}"] = value.value
        entry[f"{metric}_stderr,{_FILTER}"] = "N/A" if value.stderr is None else value.stderr
    return entry
