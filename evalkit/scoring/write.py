"""Writes a scoring into a run directory: scores/, an export, and results.json last."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evalkit.core.config import ExportFormat
from evalkit.core.durable import read_log, write_checked_json, write_json_atomic, write_lines_atomic
from evalkit.core.reasons import sentences_in
from evalkit.core.types import Score
from evalkit.metrics.prediction import gold
from evalkit.records.results import AVERAGE, Results
from evalkit.records.run_folder import RunDirectory
from evalkit.scoring.scores import TaskScores

EXPORT_FILE = "llm-jp-eval.json"


def write_scored(
    directory: RunDirectory, tasks: Sequence[TaskScores], results: Results, export: ExportFormat
) -> None:
    """Writes the scores of each sample, the requested export, and results.json.

    Raises:
        EvalkitError: the disk is full or the folder cannot be written; results.json is as it was.
    """
    for task in tasks:
        rows = [
            {
                **_row(score),
                "metric_versions": task.metric_versions,
                "protocol": results.protocol.name,
                "deviations": results.protocol.deviations,
            }
            for score in task.scores
        ]
        write_lines_atomic(directory.scores_path(task.spec.name), rows)
    if export is ExportFormat.llm_jp_eval:
        write_json_atomic(directory.path / EXPORT_FILE, llm_jp_eval_json(tasks, results))
    write_checked_json(directory.results_path, results.to_json())


def _row(score: Score) -> dict[str, Any]:
    """A score without the entries that plain runs do not have."""
    row = {
        key: value for key, value in asdict(score).items() if key in ("id", "prediction", "values") or value
    }
    if score.repeats:
        row["repeats"] = [_row(one) for one in score.repeats]
    return row | ({"sentences": found} if (found := sentences_in(row)) else {})


def scores_fit(directory: RunDirectory, results: Results) -> bool:
    """Whether scores/ is undamaged and of the same scoring as `results`.

    It is not when a line is damaged, or when another scoring was killed before its results.json.
    """
    for name, rates in results.datasets.items():
        rows, damaged = read_log(directory.scores_path(name))
        if damaged or len(rows) != rates.n:
            return False
        if any(row.get("deviations") != results.protocol.deviations for row in rows.values()):
            return False
    return True


def llm_jp_eval_json(tasks: Sequence[TaskScores], results: Results) -> dict[str, Any]:
    """export=llm-jp-eval: the scores under llm-jp-eval's own keys, with its four decimals.

        {"scores": {"AVG": 0.3767, "NLI": 0.308, ..., "jamp_exact_match": 0.35, ...},
         "outputs": {"jamp": [{"input": ..., "pred": ..., "gold": ...}, ...], ...}}

    Categories and an average that are not complete, and evalkit's own additions (sentence_bleu_*), are
    left out.
    """
    reference_keys = {f"{task.spec.name}_{metric}" for task in tasks for metric in task.spec.metrics}
    complete = {
        **{name: value for name, value in results.average.items() if name == AVERAGE},
        **{name: v for name, v in results.categories.items() if name not in results.partial.categories},
        **{key: value for key, value in results.scores.items() if key in reference_keys},
    }
    return {
        "scores": {
            name: float(f"{value.value:.4f}") for name, value in complete.items() if value.value is not None
        },
        "outputs": {
            task.spec.name: [
                {"input": sample.input, "pred": score.prediction, "gold": gold(sample.gold)}
                for sample, score in zip(task.samples, task.scores, strict=True)
            ]
            for task in tasks
        },
    }
