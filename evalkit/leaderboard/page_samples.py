"""The samples a page embeds: inputs and answers of datasets, and MT-Bench conversations.

Inputs, questions and the texts of answers are embedded once, answers by the index of their row. The data that
prompts are rendered from is read once for all runs that were made from it.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.core.config import given_suite
from evalkit.core.durable import read_log
from evalkit.core.errors import EvalkitError
from evalkit.core.files import read_text
from evalkit.core.reasons import sentences_in, with_sentences
from evalkit.core.text import text_sha256
from evalkit.leaderboard.rows import PFGEN
from evalkit.leaderboard.runs import FinishedRun, JudgedRun
from evalkit.metrics.prediction import gold
from evalkit.mtbench.books import BookOptions
from evalkit.mtbench.folder import MtBenchFolder
from evalkit.records.environment import CONFIG
from evalkit.records.run_folder import RunDirectory, SampleRecord
from evalkit.runs.rescore import kept_config
from evalkit.runs.suite import load_suite
from evalkit.sources.fetch import Fetcher
from evalkit.sources.pfgen import read_pool
from evalkit.sources.pins import pins_of
from evalkit.tasks.load import Task
from evalkit.tasks.prompts import PromptTemplate

# Replaces the input while a prompt is rendered; no dataset contains it.
_PLACEHOLDER = "\ufdd0input\ufdd1"


# What a run's configuration says of the run alone: its checksum, its model and its folder.
_OF_ONE_RUN = re.compile(r"(?ms)^(# check:|out:)[^\n]*\n|^model:.*?(?=^\w)")
_Suites = dict[str, tuple[dict[str, Task], PromptTemplate]]


class _PromptFrame(NamedTuple):
    """A prompt without its input."""

    head: str
    tail: str


@dataclass
class _Dataset:
    """One dataset while its samples are collected by (id, input, gold), and its answers by row."""

    places: dict[tuple[str, str, str], int] = field(default_factory=dict)
    frames: list[_PromptFrame] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=dict)
    hashes: dict[tuple[_PromptFrame, str], str] = field(default_factory=dict)
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)


def dataset_samples(
    runs: Mapping[int, FinishedRun], data_dir: str | None
) -> tuple[dict[str, dict[str, Any]], dict[Path, int]]:
    """The samples of every dataset, as plain JSON values, and the tokens that each run folder generated.

    Args:
        runs: the runs by the index of their row.
        data_dir: the prepared data for whole prompts; None: where each run found it.
    """
    found: dict[str, _Dataset] = {}
    tokens: dict[Path, int] = {}
    suites: _Suites = {}
    made = []
    for row, run in runs.items():
        for leaf in run.leaves:
            prompts = _Prompts(leaf.folder, data_dir, suites)
            for name in leaf.results.datasets:
                if run.leaf(name) is leaf:
                    found.setdefault(name, _Dataset())
                    made.append((row, leaf, name, prompts))
    # Completions of another tool take the places of the samples that runs have records of.
    for row, leaf, name, prompts in sorted(made, key=lambda one: not _has_records(one[1], one[2])):
        found[name].runs[row], count = _dataset_answers(found[name], leaf, name, prompts)
        tokens[leaf.folder] = tokens.get(leaf.folder, 0) + count
    return {name: _json(dataset) for name, dataset in found.items()}, tokens


class _Prompts:
    """The prompts of one run; nothing where its data cannot be read.

    A run records the hash of each prompt, not its text. Where the prepared data is available, the prompt
    is rendered again; it is shown only when every hash is the same.
    """

    def __init__(self, folder: Path, data_dir: str | None, suites: _Suites) -> None:
        """`suites` holds what was read before, by the configuration of the runs."""
        self._tasks: dict[str, Task] = {}
        self._template = PromptTemplate()
        try:
            key = _OF_ONE_RUN.sub("", read_text(folder / CONFIG))
            if key not in suites:
                suites[key] = {}, PromptTemplate()
                config = kept_config(folder / CONFIG)
                data_dir = data_dir if data_dir is not None else config.data_dir
                config = replace(config, data_dir=data_dir, offline=True, allow_missing=True, limit=1)
                loaded = load_suite(given_suite(config.suite), config.data, say=lambda line: None)
                tasks = {task.name: task for task in loaded.tasks}
                suites[key] = tasks, PromptTemplate.of(config.protocol)
            self._tasks, self._template = suites[key]
        except EvalkitError:
            return

    def frame(self, dataset: str) -> _PromptFrame | None:
        """The text before and after the input, where it is known."""
        task = self._tasks.get(dataset)
        if task is None:
            return None
        parts = self._template.render(task.spec.instruction, task.few_shots, _PLACEHOLDER).split(_PLACEHOLDER)
        return _PromptFrame(*parts) if len(parts) == 2 else None


def _dataset_answers(
    dataset: _Dataset, run: FinishedRun, name: str, prompts: _Prompts
) -> tuple[dict[str, Any], int]:
    """The answers of a run, and the tokens generated.

    The scores are of each question, all else of each answer, and `each` counts the answers to a question. A
    text is its place among the dataset's texts; a column whose entries are all equal is that entry.
    """
    rows = run.scores(name)
    # The lines of the answers to each question; one that was asked once is its own.
    answers = {key: list(row.get("repeats") or [row]) for key, row in rows.items()}
    lines = [line for given in answers.values() for line in given]
    # Completions that another tool generated have scores, but no records.
    kept = RunDirectory(run.folder).records(name)
    records = {line["id"]: kept[line["id"]] for line in lines if line["id"] in kept}
    at, questions = [], _pfgen_questions() if name == PFGEN and not records else {}
    known: dict[str, list[int]] = {}
    for sample, place in dataset.places.items():
        known.setdefault(sample[0], []).append(place)
    for key, given in answers.items():
        record = records.get(given[0]["id"])
        if record is None and len(known.get(key, ())) == 1:
            at += known[key]
            continue
        asked = record.input if record else questions.get(key, "")
        sample = (key, asked, gold(record.gold) if record else "")
        at.append(dataset.places.setdefault(sample, len(dataset.places)))
    found = [records.get(line["id"]) for line in lines]
    results, anew = run.results, run.results.split_anew
    text = [None if record is None else _text(record, anew) for record in found]
    tokens = [record.new_tokens if record else None for record in found]
    content = {
        "prompt": _frame_index(dataset, prompts.frame(name), records.values()),
        "chat": bool(results.protocol.options.get("suite.chat")),
        "metric": run.metric(name),
        "each": _column([len(given) for given in answers.values()]),
        "text": _column([_place(dataset, one) for one in text]),
        "prediction": [_place(dataset, str(line["prediction"])) for line in lines],
        "finish": _column([record and record.finish_reason for record in found]),
        "tokens": _column(tokens),
        "scores": {
            metric: [_score(row, metric) for row in rows.values()]
            for metric in results.datasets[name].metrics
        },
        **_verdicts(lines),
    }
    if at != list(range(len(at))):
        content["at"] = at
    if len(lines) > len(rows):
        content["own"] = {metric: [_score(line, metric) for line in lines] for metric in lines[0]["values"]}
    if any(line.get("missing") for line in lines):
        content["missing"] = [line.get("missing") or [] for line in lines]
    if results.datasets[name].thoughts is not None:
        content["rule"] = results.split_by
        content["anew"] = anew
        content["status"] = _column([line.get("status") for line in lines])
        thoughts = [_thought(line, record, anew) for line, record in zip(lines, found, strict=True)]
        content["thought"] = _column([_place(dataset, thought) for thought in thoughts])
    return content, sum(count or 0 for count in tokens)


def _has_records(run: FinishedRun, name: str) -> bool:
    return RunDirectory(run.folder).samples_path(name).exists()


def _pfgen_questions() -> dict[str, str]:
    """The questions of pfgen by id, which published answers lack; none where they are not in the cache."""
    pins = [pin for pin in pins_of(PFGEN) if pin.role == "pool"]
    files = Fetcher(offline=True).fetch(pins).values()
    pools = [read_pool(file.path) for file in files if not isinstance(file, EvalkitError)]
    return {sample.id: sample.input for pool in pools for sample in pool}


def _place(dataset: _Dataset, text: str | None) -> int | None:
    return None if text is None else dataset.texts.setdefault(text, len(dataset.texts))


def _column(values: list[Any]) -> Any:
    return values[0] if values and all(value == values[0] for value in values) else values


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


def _frame_index(
    dataset: _Dataset, frame: _PromptFrame | None, records: Collection[SampleRecord]
) -> int | None:
    """The place of a prompt's frame, where it gives the recorded hash of every prompt."""
    if frame is None or not records:
        return None
    for record in records:
        key = (frame, record.input)
        if key not in dataset.hashes:
            dataset.hashes[key] = text_sha256(frame.head + record.input + frame.tail)
        if dataset.hashes[key] != record.prompt_sha256:
            return None
    if frame not in dataset.frames:
        dataset.frames.append(frame)
    return dataset.frames.index(frame)


def _score(row: Mapping[str, Any], metric: str) -> float | None:
    value = row["values"].get(metric)
    # A whole number is written without its decimals.
    return None if value is None else int(value) if value == int(value) else round(float(value), 6)


def _json(dataset: _Dataset) -> dict[str, Any]:
    samples: Sequence[tuple[str, str, str]] = list(dataset.places)
    return {
        "around": [list(frame) for frame in dataset.frames],
        "ids": [sample[0] for sample in samples],
        "inputs": [sample[1] for sample in samples],
        "golds": [sample[2] for sample in samples],
        "texts": list(dataset.texts),
        "runs": dataset.runs,
    }


# --- MT-Bench ------------------------------------------------------------------------------------


def conversations(
    benches: Mapping[int, JudgedRun], data_dir: str | None, mirror: str | None
) -> dict[str, Any]:
    """Each row's answers with their judgments, and the questions they answer, as plain JSON values.

    `questions` has the turns by preset and language, then by id; `asked` each row's preset and language.

    Args:
        benches: the runs by the index of their row.
        data_dir: a bundle that may have the questions.
        mirror: a mirror that may have the questions.
    """
    options = BookOptions(data_dir=data_dir, mirror=mirror, offline=True)
    runs = {row: _conversation_answers(bench) for row, bench in benches.items()}
    questions: dict[str, dict[int, list[str]]] = {}
    asked = {row: _add_questions(questions, bench, runs[row], options) for row, bench in benches.items()}
    return {"questions": questions, "asked": asked, "runs": runs}


def _conversation_answers(bench: JudgedRun) -> list[dict[str, Any]]:
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
    run = MtBenchFolder(folder)
    for path in map(run.judgments_path, run.judges()):
        for row in read_log(path)[0].values():
            key = (row["model"], row["question_id"], row["answer"], row["turn"])
            shown = {name: row.get(name) for name in ("judge", "rating", "status", "text")}
            found.setdefault(key, []).append(shown)
    return found


def _add_questions(
    found: dict[str, dict[int, list[str]]],
    bench: JudgedRun,
    answers: Iterable[Mapping[str, Any]],
    options: BookOptions,
) -> str | None:
    """Adds the turns of a run's questions where the files of its preset can be read offline.

    Returns the run's preset and language; None where they are not known.
    """
    try:
        header = MtBenchFolder(bench.folder).header()
    except EvalkitError:
        return None
    key = f"{header.preset_sha256} {header.language or ''}".strip()
    turns = found.setdefault(key, {})
    try:
        if missing := sorted({answer["question"] for answer in answers} - turns.keys()):
            books = options.books(header.preset, header.language)
            # A preset that was changed since may have other questions.
            if books.preset.sha256 == header.preset_sha256:
                turns |= {number: list(books.question(number).turns) for number in missing}
    except EvalkitError:
        pass
    return key
