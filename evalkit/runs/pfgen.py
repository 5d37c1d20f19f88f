"""suite=pfgen with answers made elsewhere -> results: a published set, or evalkit's own form."""

import lzma
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalkit.core.config import Config, PfgenConfig, PfgenMode, given_suite
from evalkit.core.errors import InputError
from evalkit.core.files import parse_rows, read_bytes, read_json_object, text_field
from evalkit.core.reasons import Reason
from evalkit.core.text import did_you_mean
from evalkit.metrics.pfgen import Question
from evalkit.records.results import Results
from evalkit.runs.foreign import finish_reason, listed, output_directory
from evalkit.runs.identity import protocol_record
from evalkit.runs.suite import check_options, load_suite
from evalkit.scoring.categories import summarise
from evalkit.scoring.pfgen import score_pfgen
from evalkit.scoring.scores import GivenAnswer
from evalkit.scoring.write import write_scored
from evalkit.tasks.pfgen import DATASET, answer_of, stop_strings

_ID = re.compile(r"(Q\d\d)/[1-9]\d{0,4}")
# A set of 100 trials has a few megabytes; more than this is no set of answers.
_MOST_BYTES = 1 << 30
_PIECE = 1 << 16
_XZ = b"\xfd7zXZ\x00"


@dataclass(frozen=True)
class AnswerSet:
    """Answers made elsewhere.

    Attributes:
        answers: by question and trial (`Q01/1`). A published set is sorted: there the i-th answers of all
            questions are no trial.
        places: the line of each question's last answer, by question id.
        end: the last line.
        trials_known: it has evalkit's own form, whose ids have the trial.
    """

    answers: Mapping[str, GivenAnswer]
    places: Mapping[str, str]
    end: str
    trials_known: bool


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
    path = path / f"{DATASET}.jsonl" if path.is_dir() else path
    config, named = _described(config, path.with_name("config.json"))
    found = read_answers(path, loaded.questions, config.pfgen.mode)
    trials = Counter(key.partition("/")[0] for key in found.answers)
    last = max(int(key.partition("/")[2]) for key in found.answers)
    asked = {sample.id: task.spec.ids(sample.id, last) for sample in task.samples}
    answers = {key: found.answers[key] for keys in asked.values() for key in keys if key in found.answers}
    lacking = [key for keys in asked.values() for key in keys if key not in found.answers]
    if not answers or (lacking and not config.allow_missing):
        name = lacking[0].partition("/")[0]
        text = next(one.text for one in loaded.questions if one.id == name)
        number = f"{trials[name]} of {last} answers" if trials[name] else "no answer"
        raise InputError(
            f"answers are missing: {listed(lacking)}; question {name} ({text}) has {number}",
            where=found.places.get(name, found.end),
            fix="add what is missing, or score what is there: allow_missing=true",
        )
    missing = Reason("{n} of {all} answers are missing", n=len(lacking), all=len(lacking) + len(answers))
    resamples, known = config.metrics.resamples, found.trials_known
    scored, details = score_pfgen(loaded.questions, answers, resamples, trials_known=known)
    results = summarise(
        [scored],
        protocol_record(config),
        reasons=[missing] if lacking else [],
        run={
            "completions": str(path),
            "suite": suite.name,
            "model": config.model.name if config.model else named,
            "samples": len(scored.samples),
            "datasets": {DATASET: task.facts},
            DATASET: details,
            "warnings": [],
        },
    )
    with out:
        write_scored(out, [scored], results, config.export)
    return results


def _described(config: Config, path: Path) -> tuple[Config, str | None]:
    """The options with the mode, and the model's name, as config.json beside published answers says."""
    content = read_json_object(path, "the set's configuration") if path.exists() else {}
    model, mode = (
        text_field(content, key, str(path)) if key in content else None for key in ("model", "mode")
    )
    if mode is None:
        return config, model
    modes = [one.value for one in PfgenMode]
    if mode not in modes:
        raise InputError(
            f"unknown mode {mode!r}", where=f"{path}, field mode", fix=f"one of {', '.join(modes)}"
        )
    if "pfgen.mode" in config.given and config.pfgen.mode.value != mode:
        raise InputError(
            f"the answers are of mode {mode}", where=f"{path}, field mode", fix="leave out pfgen.mode="
        )
    return replace(config, pfgen=PfgenConfig(PfgenMode(mode))), model


def read_answers(path: Path, questions: Sequence[Question], mode: PfgenMode) -> AnswerSet:
    """A published `trials.jsonl` or `trials.jsonl.xz`, or a file in evalkit's own form.

    Args:
        path: the file; its first line tells the form. Lines of a published set have `question` and `answer`;
            those of evalkit's form `id`, `completion`, from which the answer is cut, and maybe
            `finish_reason`.
        questions: all questions of the benchmark.
        mode: how the answers were asked for.

    Raises:
        InputError: no answers, a question that is none of the benchmark's, an answer that is there twice, a
            line that is not as expected, or an xz file that is damaged or cut short.
    """
    ids = {question.text: question.id for question in questions}
    known, numbers = set(ids.values()), Counter[str]()
    answers: dict[str, GivenAnswer] = {}
    places: dict[str, str] = {}
    own = False
    for place, row in parse_rows(_content(path), str(path), mend=True):
        own = "id" in row if not answers else own
        if own:
            key = text_field(row, "id", place)
            matched = _ID.fullmatch(key)
            if matched is None or matched[1] not in known:
                fix = f"{min(known)}/1 to {max(known)}/TRIALS"
                raise InputError(f"no id of pfgen: {key!r}", where=f"{place}, field id", fix=fix)
            text = answer_of(text_field(row, "completion", place), mode, stop_strings(mode))
        else:
            asked, text = (text_field(row, name, place) for name in ("question", "answer"))
            if asked not in ids:
                raise InputError(
                    f"no question of pfgen: {asked!r}{did_you_mean(asked, ids)}",
                    where=f"{place}, field question",
                )
            numbers[asked] += 1
            key = f"{ids[asked]}/{numbers[asked]}"
        if key in answers:
            raise InputError(f"the id {key} is there twice", where=place)
        answers[key] = GivenAnswer(text, finish_reason(row, place) if own else None)
        places[key.partition("/")[0]] = place
    if not answers:
        raise InputError("there are no answers", where=path)
    return AnswerSet(answers, places, place, own)


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is an xz file."""
    data = read_bytes(path, "the answers")
    if path.suffix != ".xz" and not data.startswith(_XZ):
        return data
    content = bytearray()
    try:
        # In pieces, so that what comes before a damaged place is known. A file may hold several streams,
        # with zeros behind them; lzma.open takes a damaged second one for the end.
        while data or not content:
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            while not stream.eof:
                piece, data = stream.decompress(data, _PIECE), b""
                if not piece and not stream.eof and stream.needs_input:
                    raise EOFError
                content += piece
                if len(content) > _MOST_BYTES:
                    raise InputError(f"it unpacks to more than {_MOST_BYTES >> 20} MiB", where=path)
            data = stream.unused_data.lstrip(b"\0")
    except (EOFError, lzma.LZMAError) as error:
        problem = "it is cut short" if isinstance(error, EOFError) else f"it is damaged ({error})"
        line = content.count(b"\n") + 1
        raise InputError(
            f"not a whole xz file: {problem}", where=f"{path}, line {line}", fix="fetch the file again"
        ) from error
    return bytes(content)
