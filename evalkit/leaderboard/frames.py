"""Finished runs as lines of a table: one for each figure, or for each sample and metric."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from evalkit.core.text import step_of
from evalkit.leaderboard.rows import jaster_row
from evalkit.leaderboard.runs import FinishedRun, JudgedRun
from evalkit.leaderboard.steps import checkpoint_of
from evalkit.mtbench.folder import SAMPLES, MtBenchFolder, turn_id
from evalkit.mtbench.model_tables import scope_figures
from evalkit.records.results import Figure

FIGURE_COLUMNS = ("model", "run", "step", "dataset", "metric", "value", "low", "high", "n", "partial")
SAMPLE_COLUMNS = (*FIGURE_COLUMNS, "id", "input", "gold", "prediction", "completion", "finish_reason")
# The metric of a category and of the average.
_SCORE = "score"


def figure_rows(run: FinishedRun | JudgedRun) -> Iterator[dict[str, Any]]:
    """A line for each figure of a run, with the keys FIGURE_COLUMNS."""
    facts = _facts(run)
    for dataset, metric, figure in _figures(run):
        low, high = figure.ci95 or (None, None)
        named = {"dataset": dataset, "metric": metric, "partial": figure.partial}
        yield {**facts, **named, "value": figure.value, "low": low, "high": high, "n": figure.n}


def sample_rows(run: FinishedRun | JudgedRun) -> Iterator[dict[str, Any]]:
    """A line for each sample and metric of a run, with the keys SAMPLE_COLUMNS but for low and high.

    `value` is None for the metrics that a single sample has none of, as correlations. Of a question that
    was asked several times it is the mean, and there is no one completion.

    Raises:
        InputError: the kept scores are damaged.
    """
    facts = {**_facts(run), "n": 1}
    if isinstance(run, JudgedRun):
        yield from ({**facts, "partial": bool(run.reasons), **row} for row in _judged_turns(run))
        return
    facts["partial"] = bool(run.whole_reasons)
    for dataset, rates in run.results.datasets.items():
        records = run.records(dataset)
        for key, line in run.scores(dataset).items():
            record = records.get(key)
            row = {**facts, "dataset": dataset, "id": key, "prediction": line.get("prediction")}
            if record is not None:
                row |= {"input": record.input, "gold": record.gold, "completion": record.completion}
                row["finish_reason"] = record.finish_reason
            for metric in rates.metrics:
                yield {**row, "metric": metric, "value": (line.get("values") or {}).get(metric)}


def _facts(run: FinishedRun | JudgedRun) -> dict[str, Any]:
    if isinstance(run, JudgedRun):
        named = step_of(run.model)
        return {"model": run.model, "run": run.folder.name, "step": named[1] if named else None}
    point = checkpoint_of(run)
    name = run.results.run.get("id") or run.folder.name
    return {"model": run.model, "run": name, "step": point.step if point else None}


def _figures(run: FinishedRun | JudgedRun) -> Iterator[tuple[str, str, Figure]]:
    if isinstance(run, JudgedRun):
        figures = scope_figures(run.table, partial=bool(run.reasons))
        yield from ((SAMPLES, scope, figure) for scope, figure in figures.items())
        return
    results, row = run.results, jaster_row(run)
    for dataset, rates in results.datasets.items():
        for metric in rates.metrics:
            yield dataset, metric, row.datasets[f"{dataset}_{metric}"]
    for name, figure in (results.categories | results.average).items():
        # An average without a value is in no row.
        yield name, _SCORE, row.cells.get(name) or replace(figure, partial=True)


def _judged_turns(run: JudgedRun) -> Iterator[dict[str, Any]]:
    folder = MtBenchFolder(run.folder)
    turns = {
        (turn.model, turn.question_id, turn.turn, turn.answer): turn
        for turn in folder.turns()
        if turn.model == run.model
    }
    for judgment in folder.judgments(run.table["judge"]):
        asked = (judgment.model, judgment.question_id, judgment.turn, judgment.answer)
        if judgment.model != run.model:
            continue
        row = {"dataset": SAMPLES, "metric": "rating", "value": judgment.rating, "id": turn_id(*asked)}
        # A log may be replayed without its answers.
        if (turn := turns.get(asked)) is not None:
            row |= {"completion": turn.completion, "finish_reason": turn.finish_reason}
        yield row
