"""What a scoring leaves in a run directory: scores/, an export, and results.json last."""

from collections.abc import Sequence
from dataclasses import asdict

from evalkit.core.config import ExportFormat
from evalkit.core.durable import read_log, write_checked_json, write_json_atomic, write_lines_atomic
from evalkit.records.results import Results
from evalkit.records.run_folder import RunDirectory
from evalkit.scoring.export import FILE_NAME, llm_jp_eval_json
from evalkit.scoring.scores import TaskScores


def write_scored(
    directory: RunDirectory, tasks: Sequence[TaskScores], results: Results, export: ExportFormat
) -> None:
    """Writes the scores of each sample, the export that is asked for, and results.json.

    Raises:
        EvalkitError: the disk is full or the folder cannot be written; results.json is as it was.
    """
    for task in tasks:
        rows = [
            {
                **asdict(score),
                "metric_versions": task.metric_versions,
                "protocol": results.protocol.name,
                "deviations": results.protocol.deviations,
            }
            for score in task.scores
        ]
        write_lines_atomic(directory.scores_path(task.spec.name), rows)
    if export is ExportFormat.llm_jp_eval:
        write_json_atomic(directory.path / FILE_NAME, llm_jp_eval_json(tasks, results))
    write_checked_json(directory.results_path, results.to_json())


def scores_fit(directory: RunDirectory, results: Results) -> bool:
    """Whether scores/ is whole and of the same scoring as `results`.

    It is not when a line is damaged, or when another scoring was killed before its results.json.
    """
    for name, rates in results.datasets.items():
        rows, damaged = read_log(directory.scores_path(name))
        if damaged or len(rows) != rates.n:
            return False
        if any(row.get("deviations") != results.protocol.deviations for row in rows.values()):
            return False
    return True
