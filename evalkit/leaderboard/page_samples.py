"""The samples of each dataset as the page embeds them: inputs once, answers by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalkit.core.config import Config
from evalkit.leaderboard.comparable import counting_metric
from evalkit.leaderboard.scored_run import ScoredRun
from evalkit.leaderboard.whole_prompts import Prompts
from evalkit.metrics.prediction import gold


@dataclass
class _Dataset:
    """One dataset while it comes together: samples by (id, input, gold), answers by row."""

    metric: str | None
    places: dict[tuple[str, str, str], int] = field(default_factory=dict)
    around: list[tuple[str, str]] = field(default_factory=list)
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)


def dataset_samples(runs: Mapping[int, ScoredRun], config: Config) -> dict[str, dict[str, Any]]:
    """The samples of every dataset, as plain JSON values.

    Args:
        runs: the runs by their row's index.
        config: `data_dir` names the data for whole prompts when the run's own is elsewhere.
    """
    found: dict[str, _Dataset] = {}
    for row, scored in runs.items():
        prompts = Prompts(scored.run, config)
        for name in scored.run.results.datasets:
            dataset = found.setdefault(name, _Dataset(counting_metric(name, scored.run.results)))
            dataset.runs[row] = _answers(dataset, scored, name, prompts)
    return {name: _json(dataset) for name, dataset in found.items()}


def _answers(dataset: _Dataset, scored: ScoredRun, name: str, prompts: Prompts) -> dict[str, Any]:
    records = scored.records(name)
    rows = scored.rows(name)
    # Completions that came from elsewhere have scores, but no records.
    records = {key: record for key, record in records.items() if key in rows}
    at = []
    for key in rows:
        record = records.get(key)
        sample = (key, record.input if record else "", gold(record.gold) if record else "")
        at.append(dataset.places.setdefault(sample, len(dataset.places)))
    metrics = scored.run.results.datasets[name].metrics
    return {
        "prompt": _prompt(dataset, prompts, name, records) if records else None,
        "at": at,
        "text": [records[key].completion if key in records else None for key in rows],
        "prediction": [str(row["prediction"]) for row in rows.values()],
        "finish": [records[key].finish_reason if key in records else None for key in rows],
        "tokens": [records[key].new_tokens if key in records else None for key in rows],
        "scores": {metric: [_value(row, metric) for row in rows.values()] for metric in metrics},
    }


def _prompt(dataset: _Dataset, prompts: Prompts, name: str, records: Mapping[str, Any]) -> int | None:
    around = prompts.around(name, records)
    if around is None:
        return None
    if around not in dataset.around:
        dataset.around.append(around)
    return dataset.around.index(around)


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    value = row["values"].get(metric)
    return None if value is None else round(float(value), 6)


def _json(dataset: _Dataset) -> dict[str, Any]:
    samples: Sequence[tuple[str, str, str]] = list(dataset.places)
    return {
        "metric": dataset.metric,
        "around": [list(pair) for pair in dataset.around],
        "ids": [sample[0] for sample in samples],
        "inputs": [sample[1] for sample in samples],
        "golds": [sample[2] for sample in samples],
        "runs": dataset.runs,
    }
