"""Completions made elsewhere -> answers by dataset and sample id.

Two forms: a folder with one `<dataset>.jsonl` per dataset, lines with `id` (as in the `prompts` dump)
and `completion`, and optionally `finish_reason`; or llm-jp-eval's own result JSON, whose rows have
`input`, `pred` and `gold` in the order of the dataset.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from evalkit.errors import InputError
from evalkit.metrics.prediction import gold
from evalkit.nearest import did_you_mean
from evalkit.scoring.scores import GivenAnswer
from evalkit.task_spec import task_names
from evalkit.tasks import Task
from evalkit.types import FinishReason

Answers = dict[str, GivenAnswer]
_SHOWN = 5


def read_completions(path: Path, tasks: Sequence[Task]) -> dict[str, Answers]:
    """The completions at `path` for whole datasets, by dataset and sample id.

    Args:
        path: a folder of JSONL files, or llm-jp-eval's result file (or a folder with just that).
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
    # Datasets of other suites may lie beside the ones asked for; a name nobody knows is a mistake.
    unknown = [name for name in names if name not in suite and name not in task_names()]
    if unknown:
        raise InputError(
            f"unknown dataset: {listed(unknown)}{did_you_mean(unknown[0], suite)}",
            where=f"completions={path}",
        )


def _read_jsonl(path: Path, task: Task) -> Answers:
    known = {sample.id for sample in task.samples}
    answers: Answers = {}
    extra: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", where=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: {error.reason} at byte {error.start}", where=path) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _parsed_line(line, where)
        if row["id"] in answers:
            raise InputError(f"the id {row['id']} is there twice", where=where)
        if row["id"] not in known:
            extra.append(row["id"])
            continue
        answers[row["id"]] = GivenAnswer(row["completion"], _finish_reason(row, where))
    if extra:
        raise InputError(
            f"{task.name} has no sample with the id {listed(extra)}",
            where=path,
            fix="the ids are those of: python -m evalkit prompts",
        )
    return answers


def _parsed_line(line: str, where: str) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise InputError(f"not JSON: {error}", where=where) from None
    for key in ("id", "completion"):
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise InputError("a string was expected", where=f"{where}, field {key}")
    return row


def _finish_reason(row: Mapping[str, Any], where: str) -> str | None:
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
        content = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", where=path) from None
    except ValueError as error:
        raise InputError(f"not JSON: {error}", where=path) from None
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


def _aligned(rows: Sequence[Any], task: Task, path: Path) -> Answers:
    if len(rows) > len(task.samples):
        raise InputError(
            f"{task.name} has {len(task.samples)} samples, {len(rows)} rows are given", where=path
        )
    answers: Answers = {}
    for index, (row, sample) in enumerate(zip(rows, task.samples, strict=False)):
        where = f"{path}, {task.name}[{index}]"
        for key in ("input", "pred", "gold"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise InputError("a string was expected", where=f"{where}, field {key}")
        # Some versions keep the whole prompt as the input.
        if sample.input not in row["input"] or gold(row["gold"]) != gold(sample.gold):
            raise InputError(
                f"the row is not the sample {sample.id}: its input or gold answer differs",
                where=where,
                fix="give the data the completions were made on: data_dir=DIR, split=",
            )
        answers[sample.id] = GivenAnswer(row["pred"])
    return answers
