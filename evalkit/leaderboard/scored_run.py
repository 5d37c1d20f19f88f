"""A run with what its folder says of single samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from evalkit.core.durable import read_log
from evalkit.core.errors import InputError
from evalkit.leaderboard.rows import Run
from evalkit.metrics import METRICS
from evalkit.metrics.base import CorrelationMetric
from evalkit.records.run_folder import RunDirectory, SampleRecord


class ScoredRun:
    """A run with the scores of its samples, each file read once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}
        self._records: dict[str, dict[str, SampleRecord]] = {}

    def rows(self, dataset: str) -> Mapping[str, Mapping[str, Any]]:
        """The lines of scores/<dataset>.jsonl by sample id."""
        if dataset not in self._rows:
            self._rows[dataset], damaged = read_log(RunDirectory(self.run.folder).scores_path(dataset))
            if damaged:
                raise InputError(
                    f"{damaged} lines of the scores are damaged",
                    where=RunDirectory(self.run.folder).scores_path(dataset),
                    fix=f"python -m evalkit score run={self.run.folder}",
                )
        return self._rows[dataset]

    def numbers(self, dataset: str, metric: str, ids: Sequence[str]) -> list[float]:
        """One number per sample: its score, or what a correlation reads in its prediction."""
        rows, kind = self.rows(dataset), METRICS.get(metric)
        if isinstance(kind, CorrelationMetric):
            return [kind.parse(str(rows[key]["prediction"])) for key in ids]
        values = [rows[key]["values"] for key in ids]
        return [float(value[metric]) for value in values if isinstance(value, dict)]

    def records(self, dataset: str) -> Mapping[str, SampleRecord]:
        """The kept records by sample id; none where the completions came from elsewhere."""
        if dataset not in self._records:
            self._records[dataset] = RunDirectory(self.run.folder).records(dataset)
        return self._records[dataset]
