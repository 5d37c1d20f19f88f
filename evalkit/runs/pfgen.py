"""suite=pfgen with answers made elsewhere -> results: a published set, or evalkit's own form."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalkit.core.config import Config, given_suite
from evalkit.core.errors import InputError
from evalkit.core.files import read_rows, text_field
from evalkit.core.reasons import Reason
from evalkit.metrics.pfgen import Question, answer_of
from evalkit.records.results import PROTOCOL_RESAMPLES, ProtocolRecord, Results
from evalkit.runs.foreign import listed, output_directory
from evalkit.scoring.categories import summarise
from evalkit.scoring.pfgen import DATASET, SPEC, score_pfgen
from evalkit.scoring.write import write_scored
from evalkit.sources.pfgen import DATA_HASH, AnswerSet, fetch_data, read_answers
from evalkit.tasks.pfgen import MODES, Mode, stop_strings

_ID = re.compile(r"(Q\d\d)/([1-9]\d{0,4})")


def score_answers_of(config: Config) -> Results:
    """Scores the answers of `completions=` and writes scores/ and results.json to `out=`.

    Raises:
        InputError: no folder for the scores, or answers that are not as expected; nothing is written then.
        EvalkitError: the benchmark's data are not here and cannot be fetched.
    """
    if config.completions is None or config.out is None:
        raise InputError("where shall the scores go? No folder is given", where="option out", fix="out=DIR")
    out, data = output_directory(config.out), config.data
    mode = given_mode(given_suite(config.suite).pfgen)
    path = Path(config.completions).expanduser()
    questions = fetch_data(data.mirror, offline=data.offline)
    own = path.is_dir()
    given = (
        _read_own(path / f"{DATASET}.jsonl", questions, mode, allow_missing=data.allow_missing)
        if own
        else read_answers(path, questions, allow_missing=data.allow_missing)
    )
    mode = given_mode(given.mode or mode)
    scores = score_pfgen(questions, given.answers, config.metrics.resamples, trials_known=own)
    most = max(map(len, given.answers.values()))
    lacking = len(questions) * most - sum(map(len, given.answers.values()))
    reasons = (
        [Reason("{n} of {all} answers are missing", n=lacking, all=len(questions) * most)] if lacking else []
    )
    deviations: dict[str, Any] = {} if mode == "completion" else {"suite.pfgen": mode}
    if config.metrics.resamples != PROTOCOL_RESAMPLES:
        deviations["metrics.resamples"] = config.metrics.resamples
    results = summarise(
        [scores.task],
        ProtocolRecord(
            "pfgen-bench", {"suite.pfgen": mode, "metrics.resamples": config.metrics.resamples}, deviations
        ),
        reasons=reasons,
        run={
            "completions": str(path),
            "suite": DATASET,
            "model": config.model.name if config.model else given.model,
            "samples": len(scores.task.samples),
            "datasets": {
                DATASET: {"sha256": {}, "sha1": DATA_HASH, "license": SPEC.license, "citation": SPEC.citation}
            },
            DATASET: scores.details,
            "warnings": [],
        },
    )
    with out:
        write_scored(out, [scores.task], results, config.export)
    return results


def given_mode(name: str | None) -> Mode:
    """The mode of that name.

    Raises:
        InputError: there is none.
    """
    for mode in MODES:
        if mode == name:
            return mode
    raise InputError(f"unknown mode {name!r}", where="option suite.pfgen", fix=f"one of {', '.join(MODES)}")


def _read_own(path: Path, questions: Sequence[Question], mode: Mode, *, allow_missing: bool) -> AnswerSet:
    """Lines with `id` (`Q01/1`: question and trial) and `completion`."""
    known = {question.id: question for question in questions}
    found: dict[tuple[str, int], str] = {}
    for place, row in read_rows(path, mend=True):
        key = text_field(row, "id", place)
        matched = _ID.fullmatch(key)
        if matched is None or matched[1] not in known:
            raise InputError(
                f"no id of pfgen: {key!r}", where=f"{place}, field id", fix="Q01/1 to Q50/TRIALS"
            )
        question, trial = matched[1], int(matched[2])
        if (question, trial) in found:
            raise InputError(f"the id {key} is there twice", where=place)
        found[question, trial] = answer_of(text_field(row, "completion", place), mode, stop_strings(mode))
    if not found:
        raise InputError("there are no answers", where=path)
    trials = range(1, max(trial for _, trial in found) + 1)
    lacking = [f"{key}/{trial}" for key in known for trial in trials if (key, trial) not in found]
    if lacking and not allow_missing:
        raise InputError(
            f"answers are missing: {listed(lacking)}",
            where=path,
            fix="add them, or score what is there: allow_missing=true",
        )
    answers = {key: tuple(found[key, n] for n in trials if (key, n) in found) for key in known}
    return AnswerSet(None, None, {key: texts for key, texts in answers.items() if texts})
