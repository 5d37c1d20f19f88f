"""suite + completions made elsewhere -> results: `score completions=`.

Completions have two forms: a folder with one `<dataset>.jsonl` per dataset (or for a single dataset the
file), lines with `id` (as in the `prompts` dump), `completion` and optionally `finish_reason`, or as of
IFEval with `prompt` (a sample's input) and `response`; or llm-jp-eval's own result JSON, whose rows have
`input`, `pred` and `gold` in the order of the dataset. Those of pfgen are such lines too, or a published set
(`read_trials`).
"""

import lzma
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from evalkit.core.config import Config, PfgenConfig, PfgenMode, given_suite
from evalkit.core.errors import InputError
from evalkit.core.files import parse_rows, read_bytes, read_json, read_json_object, read_rows, text_field
from evalkit.core.progress import Say
from evalkit.core.reasons import Reason
from evalkit.core.text import did_you_mean
from evalkit.core.types import FinishReason
from evalkit.core.words import shown
from evalkit.metrics.prediction import gold
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.records.results import Results
from evalkit.records.run_folder import RunDirectory
from evalkit.runs.identity import differing_few_shots, protocol_record
from evalkit.runs.regrading import Regrading, thought_warnings
from evalkit.runs.suite import LoadedSuite, check_suite_options, load_suite, sample_limit, suite_specs
from evalkit.scoring.categories import summarise
from evalkit.scoring.pfgen import score_pfgen
from evalkit.scoring.scores import GivenAnswer, TaskAnswers, score_tasks
from evalkit.scoring.write import write_scored
from evalkit.tasks.load import Task
from evalkit.tasks.pfgen import answer_of, stop_strings
from evalkit.tasks.spec import few_shot_counts, task_names

GivenAnswers = dict[str, GivenAnswer]
_SHOWN = 5
# A set of answers to pfgen has a few megabytes; more than this is none. It is unpacked in pieces.
_MOST_BYTES = 1 << 30
_PIECE = 1 << 16


def score_completions(config: Config, *, say: Say) -> Results:
    """Scores the completions of `completions=` for a suite and writes scores/ and results.json to `out=`.

    Raises:
        InputError: missing options or data, several `samples`; an unknown dataset or id, a duplicate, or
            (without `allow_missing`) a sample without completion. Nothing is written then.
        EvalkitError: the data of pfgen are not here and cannot be fetched.
    """
    if config.completions is None or config.out is None:
        raise InputError("where shall the scores go? No folder is given", where="option out", fix="out=DIR")
    asked = given_suite(config.suite)
    check_suite_options(asked, config.given)
    if config.samples > 1 and not asked.pfgen:
        raise InputError(
            "completions= has one answer to each question",
            where=f"option samples={config.samples}",
            fix="leave it out; several answers to each are scored with their run: score run=DIR",
        )
    out, path = output_directory(config.out), Path(config.completions).expanduser()
    # All samples, so that an id beyond the limit is known; no few-shots, as there is nothing to ask.
    suite = load_suite(asked, replace(config.data, limit=0), say=say, few_shots=False)
    for warning in suite.warnings:
        say(warning)
    if asked.pfgen:
        return _score_trials(config, suite, path, out)
    completions = read_completions(path, suite.tasks)
    answers, missing, gaps = _matched(
        suite, completions, path, limit=sample_limit(config.data.limit), allow_missing=config.allow_missing
    )
    counts = few_shot_counts(suite_specs(asked), asked.num_few_shots, config.num_few_shots)
    counts = {answer.spec.name: counts[answer.spec.name] for answer in answers}
    regrading = Regrading.of(config.reasoning, config.model, {})
    answers = [replace(task, completions=regrading.given(task)) for task in answers]
    scored = score_tasks(answers, config.protocol, config.metrics, offline=config.data.offline)
    found = [*regrading.warnings(), *thought_warnings(scored)]
    for warning in found:
        say(shown(warning))
    record = protocol_record(config, task_few_shots=differing_few_shots(counts, config.num_few_shots))
    results = summarise(
        scored,
        record,
        missing_datasets={**suite.missing, **missing},
        gaps=gaps,
        reasons=suite.reasons,
        run={
            "completions": str(path),
            "suite": suite.name,
            "model": config.model.name if config.model else None,
            "samples": sum(len(answer.samples) for answer in answers),
            "datasets": {task.name: task.facts for task in suite.tasks},
            "warnings": [*suite.warnings, *found],
        },
    )
    with out:
        write_scored(out, scored, results, config.export)
    return results


def output_directory(out: str, run: Path | None = None) -> RunDirectory:
    """The folder `out=` for scores.

    Raises:
        InputError: it belongs to a run, and not to `run`, or holds the results of another command.
    """
    folder = Path(out).expanduser()
    if run is None or folder.resolve() != run.resolve():
        MtBenchFolder(folder).refuse_another(kind="")
    return RunDirectory(folder)


def _matched(
    suite: LoadedSuite,
    completions: Mapping[str, Mapping[str, GivenAnswer]],
    path: Path,
    *,
    limit: int,
    allow_missing: bool,
) -> tuple[list[TaskAnswers], dict[str, str], dict[str, str]]:
    """What can be scored; the datasets that cannot, with the reason; those that lack samples."""
    answers: list[TaskAnswers] = []
    missing: dict[str, str] = {}
    gaps: dict[str, str] = {}
    for task in suite.tasks:
        wanted = replace(task, samples=task.samples[:limit] if limit else task.samples)
        given = completions.get(task.name, {})
        lacking = missing_ids(wanted, given)
        if lacking and not allow_missing:
            whole = len(lacking) == len(wanted.samples)
            raise InputError(
                f"there are no completions for {task.name}"
                if whole
                else f"samples without completion: {listed(lacking)}",
                where=f"completions={path}",
                fix="add them, or score what is there: allow_missing=true",
            )
        if len(lacking) == len(wanted.samples):
            missing[task.name] = "there are no completions"
            continue
        if lacking:
            gaps[task.name] = Reason(
                "{n} of {all} samples have no completion", n=len(lacking), all=len(wanted.samples)
            )
        present = [sample for sample in wanted.samples if sample.id in given]
        answers.append(TaskAnswers(task.spec, present, given))
    if not answers:
        raise InputError("none of the suite's samples has a completion", where=f"completions={path}")
    return answers, missing, gaps


def read_completions(path: Path, tasks: Sequence[Task]) -> dict[str, GivenAnswers]:
    """The completions at `path` for whole datasets, by dataset and sample id.

    Args:
        path: a folder of JSONL files, the JSONL file of the only dataset, or llm-jp-eval's result file (or a
            folder with just that).
        tasks: the datasets of the suite, with all samples of the split.

    Raises:
        InputError: nothing there, an unknown dataset, an id that is unknown or there twice, or a
            malformed line; the message names them. Missing ids are the caller's to judge.
    """
    if not path.exists():
        raise InputError("there are no completions", where=f"completions={path}")
    by_name = {task.name: task for task in tasks}
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        if files:
            _check_datasets([file.stem for file in files], by_name, path)
            return {
                file.stem: _read_jsonl(file, by_name[file.stem]) for file in files if file.stem in by_name
            }
        results = sorted(path.glob("*.json"))
        if len(results) != 1:
            raise InputError(
                f"neither <dataset>.jsonl files nor one llm-jp-eval result ({len(results)} JSON files)",
                where=f"completions={path}",
            )
        path = results[0]
    if path.suffix == ".jsonl" and len(tasks) == 1:
        return {tasks[0].name: _read_jsonl(path, tasks[0])}
    outputs = _outputs(path)
    _check_datasets(outputs, by_name, path)
    return {name: _aligned(rows, by_name[name], path) for name, rows in outputs.items() if name in by_name}


def missing_ids(task: Task, answers: Mapping[str, GivenAnswer]) -> list[str]:
    """The ids of a task's samples that have no completion, in order."""
    return [sample.id for sample in task.samples if sample.id not in answers]


def listed(names: Sequence[str]) -> str:
    """The first few of many names, and how many there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} ... ({len(names)} in all)"


def _check_datasets(names: Sequence[str] | Mapping[str, Any], suite: Mapping[str, Task], path: Path) -> None:
    # Files of other suites' datasets may be in the same folder; an unknown name is a mistake.
    unknown = [name for name in names if name not in suite and name not in task_names()]
    if unknown:
        raise InputError(
            f"unknown dataset: {listed(unknown)}{did_you_mean(unknown[0], suite)}",
            where=f"completions={path}",
        )


def _read_jsonl(path: Path, task: Task) -> GivenAnswers:
    known = {sample.id for sample in task.samples}
    asked = {sample.input: sample.id for sample in task.samples}
    answers: GivenAnswers = {}
    extra: list[str] = []
    for where, row in read_rows(path, mend=True):
        if "id" not in row and "prompt" in row:
            prompt = text_field(row, "prompt", where)
            sample = asked.get(prompt, prompt)
            # A service that gave no answer is kept as null.
            completion = "" if row.get("response", "") is None else text_field(row, "response", where)
        else:
            sample, completion = text_field(row, "id", where), text_field(row, "completion", where)
        if sample in answers:
            raise InputError(f"the id {sample} is there twice", where=where)
        if sample not in known:
            extra.append(sample)
            continue
        answers[sample] = GivenAnswer(completion, finish_reason(row, where))
    if extra:
        raise InputError(
            f"{task.name} has no sample with the id {listed(extra)}",
            where=path,
            fix="the ids are those of: evalkit prompts",
        )
    return answers


def finish_reason(row: Mapping[str, Any], where: str) -> str | None:
    """How the completion in a line ended; None: it does not say.

    Raises:
        InputError: it is none of the known ways.
    """
    reason = row.get("finish_reason")
    if reason is not None and reason not in get_args(FinishReason):
        raise InputError(
            f"unknown finish reason {reason!r}",
            where=f"{where}, field finish_reason",
            fix=f"one of {', '.join(get_args(FinishReason))}, or leave it out",
        )
    return reason


def _outputs(path: Path) -> dict[str, list[Any]]:
    """The rows of each dataset in a result file, wherever its version puts them."""
    content = read_json(path, mend=True)
    if isinstance(content, dict):
        for place in (content.get("outputs"), content.get("output"), content):
            if isinstance(place, dict) and any(map(_is_rows, place.values())):
                return {name: rows for name, rows in place.items() if _is_rows(rows)}
    raise InputError(
        "no completions in it: llm-jp-eval's result has rows with input, pred and gold for each dataset",
        where=path,
    )


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "pred" in value[0]


def _aligned(rows: Sequence[Any], task: Task, path: Path) -> GivenAnswers:
    if len(rows) > len(task.samples):
        raise InputError(
            f"{task.name} has {len(task.samples)} samples, {len(rows)} rows are given", where=path
        )
    answers: GivenAnswers = {}
    for index, (row, sample) in enumerate(zip(rows, task.samples, strict=False)):
        where = f"{path}, {task.name}[{index}]"
        asked, given, right = (text_field(row, key, where) for key in ("input", "pred", "gold"))
        # Some versions keep the whole prompt as the input.
        if sample.input not in asked or gold(right) != gold(sample.gold):
            raise InputError(
                f"the row is not the sample {sample.id}: its input or gold answer differs",
                where=where,
                fix="give the data the completions were made on: data_dir=DIR, split=",
            )
        answers[sample.id] = GivenAnswer(given)
    return answers


# --- pfgen ---------------------------------------------------------------------------------------


def _score_trials(config: Config, suite: LoadedSuite, path: Path, out: RunDirectory) -> Results:
    (task,), limit = suite.tasks, sample_limit(config.data.limit)
    path = path / f"{task.name}.jsonl" if path.is_dir() else path
    config, model = _described(config, path.with_name("config.json"))
    found, places, trials_known = read_trials(path, task, config.pfgen.mode)
    last = max(int(key.partition("/")[2]) for key in found)
    keys = [key for sample in task.samples[: limit or None] for key in task.spec.ids(sample.id, last)]
    answers = {key: found[key] for key in keys if key in found}
    lacking = [key for key in keys if key not in found]
    if not answers or (lacking and not config.allow_missing):
        name = lacking[0].partition("/")[0]
        asked = next(sample.input for sample in task.samples if sample.id == name)
        own = [place for key, place in places.items() if key.startswith(f"{name}/")]
        number = f"{len(own)} of {last} answers" if own else "no answer"
        raise InputError(
            f"answers are missing: {listed(lacking)}; question {name} ({asked}) has {number}",
            where=(own or list(places.values()))[-1],
            fix="add what is missing, or score what is there: allow_missing=true",
        )
    missing = Reason("{n} of {all} answers are missing", n=len(lacking), all=len(keys))
    scored, details = score_pfgen(
        suite.questions, answers, config.metrics.resamples, trials_known=trials_known
    )
    results = summarise(
        [scored],
        protocol_record(config),
        reasons=[missing] if lacking else [],
        run={
            "completions": str(path),
            "suite": suite.name,
            "model": config.model.name if config.model else model,
            "samples": len(scored.samples),
            "datasets": {task.name: task.facts},
            task.name: details,
            "warnings": [],
        },
    )
    with out:
        write_scored(out, [scored], results, config.export)
    return results


def _described(config: Config, path: Path) -> tuple[Config, str | None]:
    """The options with the mode, and the model's name, as config.json beside published answers says."""
    row = read_json_object(path, "the set's configuration") if path.exists() else {}
    model, mode = (text_field(row, key, str(path)) if key in row else None for key in ("model", "mode"))
    if mode is None:
        return config, model
    modes = [config.pfgen.mode] if "pfgen.mode" in config.given else list(PfgenMode)
    if mode not in (known := [one.value for one in modes]):
        raise InputError(
            f"the answers are of mode {mode}, not {' or '.join(known)}",
            where=f"{path}, field mode",
            fix="correct it, or leave out pfgen.mode=",
        )
    return replace(config, pfgen=PfgenConfig(PfgenMode(mode))), model


def read_trials(path: Path, task: Task, mode: PfgenMode) -> tuple[GivenAnswers, dict[str, str], bool]:
    """Answers to pfgen: a published `trials.jsonl` or `trials.jsonl.xz`, or a file of evalkit's own form.

    Args:
        path: the file; its first line tells the form. Lines of a published set have `question` and `answer`;
            those of evalkit's form `id`, `completion`, from which the answer is cut, and maybe
            `finish_reason`.
        task: the dataset, with all its questions.
        mode: how the answers were asked for.

    Returns:
        The answers and their lines by question and trial (`Q01/1`), and whether the trials are known: a
        published set is sorted, and there the i-th answers of all questions are no trial.

    Raises:
        InputError: no answers, a question that is none of the benchmark's, an answer that is there twice, a
            line that is not as expected, or an xz file that is damaged or cut short.
    """
    ids = {sample.input: sample.id for sample in task.samples}
    numbers = dict.fromkeys(ids.values(), 0)
    answers: GivenAnswers = {}
    places: dict[str, str] = {}
    own = False
    for place, row in parse_rows(_content(path), str(path), mend=True):
        own = own if answers else "id" in row
        if own:
            key = text_field(row, "id", place)
            if not re.fullmatch(r"[^/]+/[1-9]\d{0,4}", key, re.ASCII) or key.partition("/")[0] not in numbers:
                fix = f"{min(numbers)}/1 to {max(numbers)}/TRIALS"
                raise InputError(f"no id of pfgen: {key!r}", where=f"{place}, field id", fix=fix)
            text = answer_of(text_field(row, "completion", place), mode, stop_strings(mode))
        else:
            asked, text = (text_field(row, name, place) for name in ("question", "answer"))
            if asked not in ids:
                what = f"no question of pfgen: {asked!r}{did_you_mean(asked, ids)}"
                raise InputError(what, where=f"{place}, field question")
            numbers[ids[asked]] += 1
            key = f"{ids[asked]}/{numbers[ids[asked]]}"
        if key in answers:
            raise InputError(f"the id {key} is there twice", where=place)
        answers[key] = GivenAnswer(text, finish_reason(row, place) if own else None)
        places[key] = place
    if not answers:
        raise InputError("there are no answers", where=path)
    return answers, places, own


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is an xz file: one or more streams, maybe zeros behind them."""
    data = read_bytes(path, "the answers")
    if path.suffix != ".xz" and not data.startswith(b"\xfd7zXZ\0"):
        return data
    content, stream = bytearray(), lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        # In pieces, so that the line of a damaged place is known.
        while data or not stream.eof:
            if stream.eof:
                # `lzma.open` takes a damaged second stream for the end.
                stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            piece = stream.decompress(data, _PIECE)
            if stream.needs_input and not piece:
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
