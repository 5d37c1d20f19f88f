"""suite + completions made elsewhere -> results: `score completions=`.

Completions have two forms: a folder with one `<dataset>.jsonl` per dataset (or for a single dataset the
file), lines with `id` (as in the `prompts` dump), `completion` and optionally `finish_reason`, or as of
IFEval with `prompt` (a sample's input) and `response`; or llm-jp-eval's own result JSON, whose rows have
`input`, `pred` and `gold` in the order of the dataset. Those of pfgen are such lines too, or a published set
(`read_trials`).
"""

import lzma
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from evalkit.core.config import Config, PfgenConfig, PfgenMode, SuiteConfig, ThoughtParser, given_suite
from evalkit.core.errors import InputError
from evalkit.core.files import (
    JsonObject,
    int_field,
    parse_rows,
    read_bytes,
    read_json,
    read_json_object,
    read_rows,
    text_field,
)
from evalkit.core.progress import Say
from evalkit.core.reasons import Reason
from evalkit.core.text import did_you_mean, listed
from evalkit.core.types import FinishReason
from evalkit.core.words import shown, t
from evalkit.metrics.prediction import gold
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.records.results import Results, read_results
from evalkit.records.run_folder import RunDirectory
from evalkit.runs.identity import differing_few_shots
from evalkit.runs.regrading import Regrading
from evalkit.runs.run import score_suite
from evalkit.runs.suite import (
    LoadedSuite,
    check_suite_options,
    check_unread,
    load_suite,
    sample_limit,
    suite_specs,
)
from evalkit.scoring.scores import GivenAnswer, TaskAnswers
from evalkit.scoring.write import write_scored
from evalkit.tasks.load import Task
from evalkit.tasks.pfgen import DATASET, MOST_TRIALS, answer_of, stop_strings
from evalkit.tasks.spec import few_shot_counts, task_names
from evalkit.tasks.thoughts import refuse_unread

GivenAnswers = dict[str, GivenAnswer]
# Answers are unpacked in pieces of this size, so that the line of a damaged place is known.
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
    asked, folder = given_suite(config.suite), config.out
    check_suite_options(asked, config.given)
    check_unread(asked, config)
    if config.reasoning.parser in (ThoughtParser.auto, ThoughtParser.none):
        refuse_unread(config.given)
    if ("samples" in config.given) if asked.pfgen else config.samples > 1:
        has = "its own number of answers" if asked.pfgen else "one answer"
        raise InputError(
            f"completions= has {has} to each question",
            where=f"option samples={config.samples}",
            fix="leave it out; several answers to each are scored with their run: score run=DIR",
        )
    path = Path(config.completions).expanduser()
    # All samples, so that an id beyond the limit is known; no few-shots, as there is nothing to ask.
    suite = load_suite(asked, replace(config.data, limit=0), say=say, few_shots=False)
    for warning in suite.warnings:
        say(warning)
    model = config.model.name if config.model else None
    if asked.pfgen:
        if path.is_dir():
            names = (f"{DATASET}.jsonl", "trials.jsonl.xz", "trials.jsonl")
            path = next((path / name for name in names if (path / name).exists()), path / names[0])
        config, model = _described(config, path.with_name("config.json"), model)
        trials, own = read_trials(path, suite.tasks[0])
        completions, mode = {DATASET: trials}, config.pfgen.mode
        cut = partial(answer_of, mode=mode, stop=stop_strings(mode)) if own else None
    else:
        completions = read_completions(path, suite.tasks, say if config.allow_missing else None)
        cut = None
    made = {"completions": str(path), "model": model}
    out = output_directory(folder, asked, made)
    answers, missing, gaps = _matched(suite, completions, path, config)
    counts = few_shot_counts(suite_specs(asked), asked.num_few_shots, config.num_few_shots)
    counts = {answer.spec.name: counts[answer.spec.name] for answer in answers}
    identity = {"task_few_shots": differing_few_shots(counts, config.num_few_shots)}
    regrading = Regrading.of(config.reasoning, config.model, identity)
    scored, results = score_suite(
        config,
        replace(suite, missing=suite.missing | missing),
        [replace(task, completions=regrading.given(task)) for task in answers],
        identity,
        regrading,
        cut=cut,
        run=made,
        gaps=gaps,
        warn=lambda warning: say(shown(warning)),
    )
    with out:
        write_scored(out, scored, results, config.export)
    return results


def output_directory(out: str, suite: SuiteConfig, made: Mapping[str, str | None]) -> RunDirectory:
    """The folder `out=` for scores of a suite.

    `made` says whose answers these are: `completions` or `id`, and `model`, as in the result's section `run`.

    Raises:
        InputError: it belongs to a run, runs are below it, or it holds the results of another command or of
            other answers.
    """
    directory = RunDirectory(Path(out).expanduser())
    MtBenchFolder(directory.path).refuse_another(kind="")
    try:
        kept = read_results(directory.results_path)
    except InputError:
        # There are none, or damaged ones, which are written again.
        return directory
    now = {"completions": None, "id": None, "suite": suite.name, **made}
    differing = [key for key, value in now.items() if kept.run.get(key) != value]
    if {*kept.run.get("datasets", {}), *kept.partial.datasets} != {spec.name for spec in suite_specs(suite)}:
        differing.append("datasets")
    if differing:
        raise InputError(
            f"the folder holds the scores of other answers: other {', '.join(differing)}",
            where=f"out={out}",
            fix="choose another",
        )
    return directory


def _matched(
    suite: LoadedSuite, completions: Mapping[str, Mapping[str, GivenAnswer]], path: Path, config: Config
) -> tuple[list[TaskAnswers], dict[str, str], dict[str, str]]:
    """What can be scored; the datasets that cannot, with the reason; those that lack samples."""
    answers: list[TaskAnswers] = []
    missing: dict[str, str] = {}
    gaps: dict[str, str] = {}
    for task in suite.tasks:
        given = completions.get(task.name, {})
        repeats = max((int(key.rpartition("/")[2]) for key in given), default=1) if suite.questions else 1
        samples = task.samples[: sample_limit(config.data.limit) or None]
        asked = {key: sample for sample in samples for key in task.spec.ids(sample.id, repeats)}
        lacking = [key for key in asked if key not in given]
        if lacking and not config.allow_missing:
            what, where = f"there are no completions for {task.name}", f"completions={path}"
            if len(lacking) < len(asked):
                first = asked[lacking[0]]
                what = (
                    f"samples without completion: {listed(lacking, 5)}; {first.id} asks {first.input[:60]!r}"
                )
                # The line of the last answer to the same question, else the file's last.
                near = [key for key in given if asked.get(key) is first] or list(given)
                where = given[near[-1]].place or where
            raise InputError(what, where=where, fix="add them, or score what is there: allow_missing=true")
        if len(lacking) == len(asked):
            missing[task.name] = "there are no completions"
            continue
        if lacking:
            gaps[task.name] = Reason(
                "{n} of {all} samples have no completion", n=len(lacking), all=len(asked)
            )
        present = dict.fromkeys(sample for key, sample in asked.items() if key in given)
        answers.append(TaskAnswers(task.spec, list(present), given, repeats))
    if not answers:
        raise InputError("none of the suite's samples has a completion", where=f"completions={path}")
    return answers, missing, gaps


def read_completions(
    path: Path, tasks: Sequence[Task], pass_over: Say | None = None
) -> dict[str, GivenAnswers]:
    """The completions at `path` for whole datasets, by dataset and sample id.

    Args:
        path: a folder of JSONL files, the JSONL file of the only dataset, or llm-jp-eval's result file (or a
            folder with just that).
        tasks: the datasets of the suite, with all samples of the split.
        pass_over: receives a note on unknown datasets, which then are no error.

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
            _check_datasets([file.stem for file in files], by_name, path, pass_over)
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
    if path.suffix == ".jsonl":
        if len(tasks) != 1:
            raise InputError(
                f"a JSONL file has the completions of one dataset, and the suite has {len(tasks)}",
                where=f"completions={path}",
                fix="completions= a folder with <dataset>.jsonl for each, or suite= the dataset",
            )
        return {tasks[0].name: _read_jsonl(path, tasks[0])}
    outputs = _outputs(path)
    _check_datasets(outputs, by_name, path, pass_over)
    return {name: _aligned(rows, by_name[name], path) for name, rows in outputs.items() if name in by_name}


def _check_datasets(
    names: Iterable[str], suite: Mapping[str, Task], path: Path, pass_over: Say | None
) -> None:
    # Files of other suites' datasets may be in the same folder; an unknown name is a mistake.
    unknown = [name for name in names if name not in suite and name not in task_names()]
    if not unknown:
        return
    what = f"unknown dataset: {listed(unknown, 5)}{did_you_mean(unknown[0], suite)}"
    if pass_over is None:
        fix = "take it out, or score the others: allow_missing=true"
        raise InputError(what, where=f"completions={path}", fix=fix)
    pass_over(t("not scored: {what}", what=what))


def _read_jsonl(path: Path, task: Task) -> GivenAnswers:
    ids = {sample.id for sample in task.samples}
    return _by_id(read_rows(path, mend=True), task, ids)


def _by_id(rows: Iterable[tuple[str, JsonObject]], task: Task, ids: Container[str]) -> GivenAnswers:
    asked: dict[str, list[str]] = {}
    for one in task.samples:
        asked.setdefault(one.input, []).append(one.id)
    answers: GivenAnswers = {}
    extra: dict[str, str] = {}
    for where, row in rows:
        if "id" not in row and "prompt" in row:
            prompt, field = text_field(row, "prompt", where), "response"
            # The answers to a prompt that several samples have are in their order.
            having = asked.get(prompt, [prompt])
            sample = having.pop(0) if len(having) > 1 else having[0]
        else:
            sample, field = text_field(row, "id", where), "completion"
        # A service that gave no answer is kept as null.
        completion = "" if row.get(field, "") is None else text_field(row, field, where)
        if sample in answers:
            raise InputError(f"the id {sample} is there twice", where=where)
        if sample not in ids:
            extra[sample] = where
            continue
        answers[sample] = GivenAnswer(completion, finish_reason(row, where), place=where)
    if extra:
        raise InputError(
            f"{task.name} has no sample with the id {listed(list(extra), 5)}",
            where=next(iter(extra.values())),
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
    try:
        content = read_json(path, mend=True)
    except InputError as error:
        if not error.what.startswith("not JSON"):
            raise
        fix = "give one JSON value, or JSON Lines in files named <dataset>.jsonl"
        raise InputError(error.what, where=error.where, fix=fix) from None
    if isinstance(content, dict):
        for place in (content.get("outputs"), content.get("output"), content):
            if isinstance(place, dict) and any(map(_is_rows, place.values())):
                return {name: rows for name, rows in place.items() if _is_rows(rows)}
    raise InputError(
        "no completions in it: llm-jp-eval's result has rows with input, pred and gold for each dataset",
        where=path,
    )


def _is_rows(value: Any) -> bool:
    # A row without it is named where the rows are read.
    return isinstance(value, list) and any(isinstance(row, dict) and "pred" in row for row in value)


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


def _described(config: Config, path: Path, model: str | None) -> tuple[Config, str | None]:
    """The options that made published answers, and the model's name, as config.json beside them says."""
    row = read_json_object(path, "the set's configuration") if path.exists() else {}
    named, mode = (text_field(row, key, str(path)) if key in row else None for key in ("model", "mode"))
    if mode is not None:
        given = [config.pfgen.mode] if "pfgen.mode" in config.given else PfgenMode
        if mode not in (known := [one.value for one in given]):
            raise InputError(
                f"the answers are of mode {mode}, not {' or '.join(known)}",
                where=f"{path}, field mode",
                fix="correct it, or leave out pfgen.mode=",
            )
        config = replace(config, pfgen=PfgenConfig(PfgenMode(mode)))
    # How they were made, where that is not the protocol's way, is a deviation.
    made = {key: row[key] for key in ("temperature", "top_p") if isinstance(row.get(key), int | float)}
    config = replace(config, generation=replace(config.generation, **made))
    if "num_examples" in row:
        config = replace(config, num_few_shots=int_field(row, "num_examples", str(path)))
    return config, model or (named and " ".join(named.split()))


def read_trials(path: Path, task: Task) -> tuple[GivenAnswers, bool]:
    """Answers to pfgen: a published `trials.jsonl` or `trials.jsonl.xz`, or a file of evalkit's own form.

    Args:
        path: the file; its first line tells the form. Lines of a published set have `question` and `answer`;
            those of evalkit's form `id`, `completion`, and maybe `finish_reason`.
        task: the dataset, with all its questions.

    Returns:
        The answers by question and trial (`Q01/1`), and whether the form is evalkit's: a published set is
        sorted, and there the i-th answers of all questions are no trial.

    Raises:
        InputError: a question that is none of the benchmark's, an answer that is there twice, a line that is
            not as expected, or an xz file that is damaged or cut short.
    """
    rows = list(parse_rows(_content(path), str(path), mend=True))
    if rows and "id" in rows[0][1]:
        ids = {key for sample in task.samples for key in task.spec.ids(sample.id, MOST_TRIALS)}
        return _by_id(rows, task, ids), True
    names = {sample.input: sample.id for sample in task.samples}
    trials = Counter[str]()
    answers: GivenAnswers = {}
    for place, row in rows:
        asked, text = (text_field(row, key, place) for key in ("question", "answer"))
        if asked not in names:
            what = f"no question of pfgen: {asked!r}{did_you_mean(asked, names)}"
            raise InputError(what, where=f"{place}, field question")
        trials[asked] += 1
        answers[f"{names[asked]}/{trials[asked]}"] = GivenAnswer(text, place=place)
    return answers, False


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is an xz file: one or more streams, maybe zeros behind them."""
    data = read_bytes(path, "the answers")
    if path.suffix != ".xz" and not data.startswith(b"\xfd7zXZ\0"):
        return data
    content, stream = bytearray(), lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        while data or not stream.eof:
            if stream.eof:
                # `lzma.open` takes a damaged second stream for the end.
                stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            piece = stream.decompress(data, _PIECE)
            if stream.needs_input and not piece:
                raise EOFError
            content += piece
            data = stream.unused_data.lstrip(b"\0")
    except (EOFError, lzma.LZMAError) as error:
        problem = "it is cut short" if isinstance(error, EOFError) else f"it is damaged ({error})"
        line = content.count(b"\n") + 1
        raise InputError(
            f"not a whole xz file: {problem}", where=f"{path}, line {line}", fix="fetch the file again"
        ) from error
    return bytes(content)
