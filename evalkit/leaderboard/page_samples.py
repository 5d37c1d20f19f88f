"""The samples a page embeds: inputs and answers of datasets, and MT-Bench conversations.

Inputs and questions are embedded once, answers by the index of their row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.core.config import given_suite
from evalkit.core.durable import read_log
from evalkit.core.errors import EvalkitError
from evalkit.core.files import read_json_object
from evalkit.core.reasons import sentences_in, with_sentences
from evalkit.core.text import text_sha256
from evalkit.leaderboard.runs import MtBenchRun, Run, counting_metric
from evalkit.metrics.prediction import gold
from evalkit.mtbench.data import BookOptions
from evalkit.records.run_folder import SampleRecord
from evalkit.runs.rescore import kept_config
from evalkit.runs.suite import load_suite
from evalkit.tasks.load import Task
from evalkit.tasks.prompts import PromptTemplate

# Replaces the input while a prompt is rendered; no dataset contains it.
_PLACEHOLDER = "\ufdd0input\ufdd1"


class _PromptFrame(NamedTuple):
    """A prompt without its input."""

    head: str
    tail: str


@dataclass
class _Dataset:
    """One dataset while its samples are collected by (id, input, gold), and its answers by row."""

    places: dict[tuple[str, str, str], int] = field(default_factory=dict)
    frames: list[_PromptFrame] = field(default_factory=list)
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)


def dataset_samples(runs: Mapping[int, Run], data_dir: str | None) -> dict[str, dict[str, Any]]:
    """The samples of every dataset, as plain JSON values.

    Args:
        runs: the runs by the index of their row.
        data_dir: the prepared data for whole prompts; None: where each run found it.
    """
    found: dict[str, _Dataset] = {}
    for row, run in runs.items():
        prompts = _Prompts(run.folder, data_dir)
        for name in run.results.datasets:
            dataset = found.setdefault(name, _Dataset())
            dataset.runs[row] = _dataset_answers(dataset, run, name, prompts)
    return {name: _json(dataset) for name, dataset in found.items()}


class _Prompts:
    """The prompts of one run; nothing where its data cannot be read.

    A run records the hash of each prompt, not its text. Where the prepared data is available, the prompt
    is rendered again; it is shown only when every hash is the same.
    """

    def __init__(self, folder: Path, data_dir: str | None) -> None:
        self._tasks: dict[str, Task] = {}
        self._template = PromptTemplate()
        try:
            config = kept_config(folder / "config.yaml")
            self._template = PromptTemplate.of(config.protocol)
            data_dir = data_dir if data_dir is not None else config.data_dir
            config = replace(config, data_dir=data_dir, offline=True, allow_missing=True, limit=1)
            suite = load_suite(given_suite(config.suite), config.data, say=lambda line: None)
        except EvalkitError:
            return
        self._tasks = {task.name: task for task in suite.tasks}

    def frame(self, dataset: str, records: Mapping[str, SampleRecord]) -> _PromptFrame | None:
        """The text before and after the input, where it is known and the same for all these records."""
        task = self._tasks.get(dataset)
        if task is None:
            return None
        parts = self._template.render(task.spec.instruction, task.few_shots, _PLACEHOLDER).split(_PLACEHOLDER)
        if len(parts) != 2:
            return None
        head, tail = parts
        same = all(text_sha256(head + r.input + tail) == r.prompt_sha256 for r in records.values())
        return _PromptFrame(head, tail) if same else None


def _dataset_answers(dataset: _Dataset, run: Run, name: str, prompts: _Prompts) -> dict[str, Any]:
    """The answers of a run: the scores of each question, and all else `each` times, once for each answer."""
    rows = run.scores(name)
    # The lines of the answers to each question; one that was asked once is its own.
    answers = {key: list(row.get("repeats") or [row]) for key, row in rows.items()}
    lines = [line for given in answers.values() for line in given]
    # Completions that another tool generated have scores, but no records.
    ids = {line["id"] for line in lines}
    records = {key: record for key, record in run.records(name).items() if key in ids}
    at = []
    for key, given in answers.items():
        record = records.get(given[0]["id"])
        sample = (key, record.input if record else "", gold(record.gold) if record else "")
        at.append(dataset.places.setdefault(sample, len(dataset.places)))
    found = [records.get(line["id"]) for line in lines]
    results = run.results
    content = {
        "prompt": _frame_index(dataset, prompts.frame(name, records)) if records else None,
        "chat": bool(results.protocol.options.get("suite.chat")),
        "metric": counting_metric(name, results),
        "at": at,
        "each": len(lines) // max(1, len(rows)),
        "text": [None if record is None else _text(record, results.split_anew) for record in found],
        "prediction": [str(line["prediction"]) for line in lines],
        "finish": [record and record.finish_reason for record in found],
        "tokens": [record and record.new_tokens for record in found],
        "scores": {
            metric: [_score(row, metric) for row in rows.values()]
            for metric in results.datasets[name].metrics
        },
        **_verdicts(lines),
    }
    if len(lines) > len(rows):
        content["own"] = {metric: [_score(line, metric) for line in lines] for metric in lines[0]["values"]}
    if results.datasets[name].thoughts is not None:
        content["rule"] = results.split_by
        content["anew"] = results.split_anew
        content["status"] = [line.get("status") for line in lines]
        content["thought"] = [
            _thought(line, record, results.split_anew) for line, record in zip(lines, found, strict=True)
        ]
    return content


def _text(record: SampleRecord, anew: bool) -> str:
    """The answer, or where the scoring split it anew all that the model wrote."""
    if record.split is None:
        return record.completion
    return (record.raw_text or record.completion) if anew else record.split.answer


def _thought(line: Mapping[str, Any], record: SampleRecord | None, anew: bool) -> str | None:
    """The thought as this scoring split it off."""
    if anew or record is None or record.split is None:
        return line.get("thought")
    return record.split.thought


def _verdicts(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The verdicts on the instructions of each answer, where the dataset has some."""
    kept = [with_sentences(row.get("verdicts"), row.get("sentences")) for row in rows]
    return {"verdicts": kept, "reasons": sentences_in(kept)} if any(kept) else {}


def _frame_index(dataset: _Dataset, frame: _PromptFrame | None) -> int | None:
    if frame is None:
        return None
    if frame not in dataset.frames:
        dataset.frames.append(frame)
    return dataset.frames.index(frame)


def _score(row: Mapping[str, Any], metric: str) -> float | None:
    value = row["values"].get(metric)
    return None if value is None else round(float(value), 6)


def _json(dataset: _Dataset) -> dict[str, Any]:
    samples: Sequence[tuple[str, str, str]] = list(dataset.places)
    return {
        "around": [list(frame) for frame in dataset.frames],
        "ids": [sample[0] for sample in samples],
        "inputs": [sample[1] for sample in samples],
        "golds": [sample[2] for sample in samples],
        "runs": dataset.runs,
    }


# --- MT-Bench ------------------------------------------------------------------------------------


def conversations(
    benches: Mapping[int, MtBenchRun], data_dir: str | None, mirror: str | None
) -> dict[str, Any]:
    """Questions by id, and each row's answers with their judgments, as plain JSON values.

    Args:
        benches: the runs by the index of their row.
        data_dir: a bundle that may have the questions.
        mirror: a mirror that may have the questions.
    """
    options = BookOptions(data_dir=data_dir, mirror=mirror, offline=True)
    return {
        "questions": _questions(benches.values(), options),
        "runs": {row: _conversation_answers(bench) for row, bench in benches.items()},
    }


def _conversation_answers(bench: MtBenchRun) -> list[dict[str, Any]]:
    """One entry per answer: question id, category, number of the answer, and its turns."""
    turns, _ = read_log(bench.folder / "samples" / "mt_bench.jsonl")
    judged = _judgments(bench.folder)
    answers: dict[tuple[int, int], dict[str, Any]] = {}
    for row in turns.values():
        if row["model"] != bench.model:
            continue
        key = (row["question_id"], row["answer"])
        entry = {"question": key[0], "category": row["category"], "answer": key[1], "turns": {}}
        answers.setdefault(key, entry)["turns"][row["turn"]] = {
            "text": row["completion"],
            "finish": row.get("finish_reason"),
            "thought": row.get("thought"),
            "status": row.get("status"),
            "judgments": judged.get((bench.model, *key, row["turn"]), []),
        }
    return [answers[key] for key in sorted(answers)]


def _judgments(folder: Path) -> dict[tuple[str, int, int, int], list[dict[str, Any]]]:
    found: dict[tuple[str, int, int, int], list[dict[str, Any]]] = {}
    for path in sorted((folder / "judgments").glob("*.jsonl")):
        for row in read_log(path)[0].values():
            key = (row["model"], row["question_id"], row["answer"], row["turn"])
            shown = {name: row.get(name) for name in ("judge", "rating", "status", "text")}
            found.setdefault(key, []).append(shown)
    return found


def _questions(benches: Iterable[MtBenchRun], options: BookOptions) -> dict[str, list[str]]:
    """The turns of each question by id, where the preset's files can be read offline."""
    found: dict[str, list[str]] = {}
    for bench in benches:
        turns, _ = read_log(bench.folder / "samples" / "mt_bench.jsonl")
        ids = {row["question_id"] for row in turns.values()}
        try:
            header = read_json_object(bench.folder / "mt_bench.json")
            books = options.books(header["preset"], header.get("language"))
            found |= {str(number): list(books.of(number).questions[number].turns) for number in ids}
        except (EvalkitError, KeyError, TypeError):
            continue
    return found
