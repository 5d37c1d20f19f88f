"""MT-Bench conversations as the page embeds them: questions once, answers and judgments by row."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evalkit.config import Config
from evalkit.durable import read_log
from evalkit.errors import InputError
from evalkit.leaderboard.rows import MtBenchRun, Row
from evalkit.reading import read_json_object


def conversations(rows: Sequence[Row], config: Config) -> dict[str, Any]:
    """Questions by language and id, and each row's answers with their judgments; empty without any."""
    found = {
        index: _answers(row.mt_bench_run) for index, row in enumerate(rows) if row.mt_bench_run is not None
    }
    if not found:
        return {}
    benches = [row.mt_bench_run for row in rows if row.mt_bench_run is not None]
    return {"questions": _questions(benches, config), "runs": found}


def _answers(bench: MtBenchRun) -> list[dict[str, Any]]:
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


def _questions(benches: Iterable[MtBenchRun], config: Config) -> dict[str, list[str]]:
    """The turns of each question by id, where the preset's files are at hand."""
    found: dict[str, list[str]] = {}
    for bench in benches:
        try:
            header = read_json_object(bench.folder / "mt_bench.json")
        except InputError:
            continue
        found.update(_of_preset(header, bench, config))
    return found


def _of_preset(header: dict[str, Any], bench: MtBenchRun, config: Config) -> dict[str, list[str]]:
    from dataclasses import replace

    from evalkit.errors import EvalkitError
    from evalkit.mtbench.data import Books, pinned_files
    from evalkit.mtbench.presets import load_preset

    turns, _ = read_log(bench.folder / "samples" / "mt_bench.jsonl")
    ids = {row["question_id"] for row in turns.values()}
    try:
        preset = load_preset(header["preset"])
        books = Books(preset, pinned_files(replace(config, offline=True)), header.get("language"))
        return {str(number): list(books.of(number).questions[number].turns) for number in ids}
    except (EvalkitError, KeyError, TypeError):
        return {}
