"""suite=pfgen with answers made elsewhere -> results: a published set, or evalkit's own form."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evalkit.core.config import Config, PfgenConfig, PfgenMode, given_suite
from evalkit.core.errors import InputError
from evalkit.core.files import read_rows, text_field
from evalkit.core.reasons import Reason
from evalkit.core.types import Sample
from evalkit.records.results import Results
from evalkit.runs.foreign import finish_reason, listed, output_directory
from evalkit.runs.identity import protocol_record
from evalkit.runs.suite import check_options, load_suite
from evalkit.scoring.categories import summarise
from evalkit.scoring.pfgen import score_pfgen
from evalkit.scoring.scores import GivenAnswer
from evalkit.scoring.write import write_scored
from evalkit.sources.pfgen import read_answers
from evalkit.tasks.pfgen import DATASET, answer_of, stop_strings

_ID = re.compile(r"(Q\d\d)/([1-9]\d{0,4})")


def score_answers_of(config: Config) -> Results:
    """Scores the answers of `completions=` and writes scores/ and results.json to `out=`.

    Raises:
        InputError: no folder for the scores, or answers that are not as expected; nothing is written then.
        EvalkitError: the benchmark's data are not here and cannot be fetched.
    """
    if config.completions is None or config.out is None:
        raise InputError("where shall the scores go? No folder is given", where="option out", fix="out=DIR")
    suite = given_suite(config.suite)
    check_options(suite, config.given)
    out, path = output_directory(config.out), Path(config.completions).expanduser()
    loaded = load_suite(suite, config.data, say=lambda line: None)
    (task,) = loaded.tasks
    model = config.model.name if config.model else None
    if own := path.is_dir():
        answers = _read_own(path / f"{DATASET}.jsonl", task.few_shots, config.pfgen.mode)
    else:
        given = read_answers(path, loaded.questions, allow_missing=config.allow_missing)
        model = model or given.model
        answers = {
            f"{name}/{trial}": GivenAnswer(text)
            for name, texts in given.answers.items()
            for trial, text in enumerate(texts, start=1)
        }
        if given.mode is not None:
            config = replace(config, pfgen=PfgenConfig(_mode(given.mode, path)))
    trials = max(int(key.partition("/")[2]) for key in answers)
    wanted = [key for sample in task.samples for key in task.spec.ids(sample.id, trials)]
    lacking = [key for key in wanted if key not in answers]
    answers = {key: answers[key] for key in wanted if key in answers}
    if not answers or (own and lacking and not config.allow_missing):
        raise InputError(
            f"answers are missing: {listed(lacking)}",
            where=path,
            fix="add them, or score what is there: allow_missing=true",
        )
    missing = Reason("{n} of {all} answers are missing", n=len(lacking), all=len(wanted))
    scored, details = score_pfgen(loaded.questions, answers, config.metrics.resamples, trials_known=own)
    results = summarise(
        [scored],
        protocol_record(config),
        reasons=[missing] if lacking else [],
        run={
            "completions": str(path),
            "suite": suite.name,
            "model": model,
            "samples": len(scored.samples),
            "datasets": {DATASET: task.facts},
            DATASET: details,
            "warnings": [],
        },
    )
    with out:
        write_scored(out, [scored], results, config.export)
    return results


def _mode(name: str, path: Path) -> PfgenMode:
    try:
        return PfgenMode(name)
    except ValueError:
        raise InputError(
            f"unknown mode {name!r}",
            where=f"{path.with_name('config.json')}, field mode",
            fix=f"one of {', '.join(mode.value for mode in PfgenMode)}",
        ) from None


def _read_own(path: Path, samples: Sequence[Sample], mode: PfgenMode) -> Mapping[str, GivenAnswer]:
    """Lines with `id` (`Q01/1`: question and trial), `completion` and perhaps `finish_reason`."""
    known, found = {sample.id for sample in samples}, dict[str, GivenAnswer]()
    for place, row in read_rows(path, mend=True):
        key = text_field(row, "id", place)
        matched = _ID.fullmatch(key)
        if matched is None or matched[1] not in known:
            raise InputError(
                f"no id of pfgen: {key!r}", where=f"{place}, field id", fix="Q01/1 to Q50/TRIALS"
            )
        if key in found:
            raise InputError(f"the id {key} is there twice", where=place)
        text = answer_of(text_field(row, "completion", place), mode, stop_strings(mode))
        found[key] = GivenAnswer(text, finish_reason(row, place))
    if not found:
        raise InputError("there are no answers", where=path)
    return found
