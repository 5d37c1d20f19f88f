"""results.json of an MT-Bench run.

    {
      "schema_version": 1,
      "kind":      "mt_bench",
      "preset":    {name, source, sha256, not_given, files, prompts (a local file)},
      "mt_bench":  {<model>: {<rule>: {<scope>: number or null}}},
      "tables":    {<model>: ModelTable},
      "answers":   {<model>: {turns, truncated, empty, errors, over_context, thoughts (ThoughtRates)}}
      "partial":   {"partial": bool, "reasons": [...]},
      "replay":    {<model>: Fidelity}          of replayed logs
      "pairwise":  {...}                        of pairwise matches
      "cost":      {...}                        of judged runs
      "sentences": {<sentence>: {template, fields}}   of the reasons (evalkit.core.reasons)
    }

Numbers are unrounded and on each rule's own scale. Results of different presets do not compare.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evalkit.core.config import Reduce
from evalkit.core.errors import EvalkitError
from evalkit.core.reasons import Reason, sentences_in
from evalkit.core.types import Judgment, JudgmentStatus
from evalkit.mtbench.aggregate import (
    MINUS_ONE,
    RULES,
    TURN_SCOPES,
    Scored,
    all_tables,
    deviation_over_answers,
    in_scope,
    intervals,
    table,
)
from evalkit.mtbench.folder import LOGGED, MtBenchFolder
from evalkit.mtbench.presets import Counts, Preset, RatingParser, load_preset, plain
from evalkit.records.results import PROTOCOL_RESAMPLES, Figure, ThoughtRates
from evalkit.records.run_folder import SampleRecord

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelTable:
    """One model's table by the preset's own rule, and what lies behind it.

    In `scopes`, `n` of a figure counts the scores that the rule kept. `statuses` and `parsed_by` count
    judgments by how they ended and by what the reference parser matched; `strict_differs` those whose
    strict rating is another. `rows` counts judgments, `duplicates` those of them that repeat a
    (question, turn) of a log.
    """

    judge: str
    rule: str
    scopes: dict[str, Figure]
    rows: int
    duplicates: int
    statuses: dict[str, int]
    parsed_by: dict[str, int]
    strict_differs: int
    repeats: int
    reduce: str
    deviation_over_answers: float | None


def scored(judgments: Sequence[Judgment], preset: Preset) -> list[Scored]:
    """The scores of judgments as the preset counts each status; dropped ones are left out."""
    rows = []
    for judgment in judgments:
        status, value = _reading(judgment, preset.parser)
        counts = preset.counts(status)
        if counts is Counts.drop:
            continue
        if counts is Counts.minus_one or value is None:
            value = MINUS_ONE
        rows.append(_row(judgment, value))
    return rows


def as_logged(judgments: Sequence[Judgment]) -> list[Scored]:
    """The scores as FastChat would have logged them: the rating that was read, else -1."""
    return [
        _row(judgment, MINUS_ONE if judgment.rating is None else judgment.rating) for judgment in judgments
    ]


def _row(judgment: Judgment, score: float) -> Scored:
    return Scored(
        question_id=judgment.question_id,
        category=judgment.category,
        turn=judgment.turn,
        score=score,
        answer=judgment.answer,
        # Every row of a log counts by itself.
        repeat=None if judgment.judge.endswith(LOGGED) else judgment.repeat,
    )


def _reading(judgment: Judgment, parser: RatingParser) -> tuple[JudgmentStatus, float | None]:
    if parser is RatingParser.strict and judgment.text is not None and judgment.status not in _UNREADABLE:
        return ("unparsed", None) if judgment.strict is None else ("ok", judgment.strict)
    return judgment.status, judgment.rating


_UNREADABLE = ("answerless", "filtered", "overflow", "api_error")


def model_table(
    judgments: Sequence[Judgment],
    rows: Sequence[Scored],
    preset: Preset,
    *,
    resamples: int,
    duplicates: int = 0,
    repeats: int = 1,
    reduce: Reduce = Reduce.mean,
) -> ModelTable:
    """The table of one model's `judgments`, whose scores are `rows`."""
    rule = RULES[preset.aggregation]
    figures = table(rows, rule, reduce)
    spread = intervals(rows, rule, resamples, reduce)
    kept = [row for row in rows if rule.counts(row)]
    counts = {scope: len(in_scope(kept, scope)) for scope in figures}
    # The mean of nothing but marks for ratings that could not be read says nothing about the answers.
    for scope in figures:
        if all(row.score == MINUS_ONE for row in in_scope(kept, scope)):
            figures[scope] = spread[scope] = None
    return ModelTable(
        judge=", ".join(dict.fromkeys(judgment.judge for judgment in judgments)),
        rule=preset.aggregation,
        scopes={scope: Figure(figures[scope], counts[scope], ci95=spread[scope]) for scope in figures},
        rows=len(judgments),
        duplicates=duplicates,
        statuses=dict(Counter(judgment.status for judgment in judgments)),
        parsed_by=dict(Counter(judgment.rule for judgment in judgments)),
        strict_differs=sum(judgment.strict != judgment.rating for judgment in judgments),
        repeats=repeats,
        reduce=reduce.value,
        deviation_over_answers=deviation_over_answers(rows, rule, reduce),
    )


def results_json(
    preset: Preset,
    tables: Mapping[str, ModelTable],
    scores: Mapping[str, Sequence[Scored]],
    *,
    partial: Sequence[str] = (),
    reduce: Reduce = Reduce.mean,
    **more: Any,
) -> dict[str, Any]:
    """The content of results.json; `scores` by model are as logged, `more` are further keys."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": "mt_bench",
        "preset": preset.record(),
        "mt_bench": {model: all_tables(rows, reduce) for model, rows in scores.items()},
        "tables": {model: _table_json(model_table) for model, model_table in tables.items()},
        "partial": {"partial": bool(partial), "reasons": list(partial)},
        **more,
    }
    if sentences := sentences_in(content):
        content["sentences"] = sentences
    finite: dict[str, Any] = plain(content)
    return finite


def _table_json(model_table: ModelTable) -> dict[str, Any]:
    scopes = {
        name: {"value": figure.value, "ci95": figure.ci95, "n": figure.n}
        for name, figure in model_table.scopes.items()
    }
    return {**asdict(model_table), "scopes": scopes}


def scope_figures(table: Mapping[str, Any], *, partial: bool = False) -> dict[str, Figure]:
    """The figures of a model's table in results.json, by scope; `partial` marks them all.

    One of -1, as earlier versions wrote it where no rating could be read, is none.
    """
    return {
        name: Figure(
            None if cell["value"] == MINUS_ONE else cell["value"],
            cell["n"],
            ci95=tuple(cell["ci95"]) if cell["ci95"] else None,
            partial=partial,
        )
        for name, cell in table["scopes"].items()
    }


def with_own_intervals(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a results.json, without the intervals of zero width that earlier versions gave.

    The intervals of such a table are computed again from judgments/; where those are missing, or the
    preset has changed, the affected intervals are left out.
    """
    tables = {
        model: {**table, "scopes": _sound_scopes(content, model, table, folder)}
        for model, table in content["tables"].items()
    }
    return {**content, "tables": tables}


def _sound_scopes(
    content: Mapping[str, Any], model: str, table: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    scopes: dict[str, Any] = table["scopes"]
    flat = {name for name, cell in scopes.items() if cell["ci95"] and cell["ci95"][0] >= cell["ci95"][1]}
    if not flat:
        return scopes
    # Where one category has no interval, those written for the averages were too narrow.
    ends = {
        name: None if name in {*flat, "average", *TURN_SCOPES} else c["ci95"] for name, c in scopes.items()
    }
    try:
        preset = load_preset(content["preset"]["name"])
        judged = MtBenchFolder(folder).judgments(table["judge"])
        rows = scored([judgment for judgment in judged if judgment.model == model], preset)
        if rows and preset.sha256 == content["preset"]["sha256"]:
            ends |= intervals(rows, RULES[table["rule"]], PROTOCOL_RESAMPLES, Reduce(table["reduce"]))
    except (EvalkitError, KeyError, ValueError):
        pass
    return {name: {**cell, "ci95": ends[name]} for name, cell in scopes.items()}


def answer_counts(turns: Sequence[SampleRecord]) -> dict[str, Any]:
    """How many answered turns there are, and how many are cut off, empty or failed.

    Of a model that thinks also `thoughts`: the shares of what became of its answers (`ThoughtRates`).
    """
    split = [turn.split for turn in turns if turn.split is not None]
    thoughts = ThoughtRates.of([(one.status, one.thought_tokens) for one in split])
    return {
        "turns": len(turns),
        "truncated": sum(turn.truncated for turn in turns),
        "empty": sum(not turn.completion.strip() for turn in turns),
        "errors": sum(turn.error is not None for turn in turns),
        "over_context": sum(turn.over_context for turn in turns),
        **({"thoughts": asdict(thoughts)} if thoughts else {}),
    }


def missing_turns(
    model: str, rows: Sequence[Scored], preset: Preset, questions: int, answers: int = 1
) -> list[Reason]:
    """Why a model's table does not cover the question set, with this many answers each; empty: it does."""
    # More answers to some questions do not make up for questions without one.
    found = {
        (row.question_id, row.turn, row.answer)
        for row in rows
        if row.turn in preset.turns and row.answer < answers
    }
    wanted = questions * len(preset.turns) * answers
    if len(found) >= wanted:
        return []
    reason = Reason("{n} of {all} turns of the question set have a score", n=len(found), all=wanted)
    return [Reason("{name}: {reason}", name=model, reason=reason)]
