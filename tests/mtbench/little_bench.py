"""A whole little MT-Bench of our own: questions, references, judge prompts, a preset and a mirror."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from evalkit.mtbench.fastchat import CATEGORIES, REFERENCE_CATEGORIES

URL = "https://files.example.org/mt-bench/"
SINGLE = "Rate it: [[rating]].\n\n[Question]\n{question}\n\n[Answer]\n{answer}"
PROMPTS = {
    "single-v1": ("You judge.", SINGLE),
    "single-math-v1": ("You judge.", SINGLE + "\n\n[Reference]\n{ref_answer_1}"),
    "single-v1-multi-turn": ("Judge turn two.\n\n", "{question_1}|{answer_1}|{question_2}|{answer_2}"),
    "single-math-v1-multi-turn": (
        "Judge turn two.\n\n",
        "{ref_answer_1}|{ref_answer_2}|{question_1}|{answer_1}|{question_2}|{answer_2}",
    ),
    "pair-v2": ("Which?", "{question}\nA: {answer_a}\nB: {answer_b}"),
    "pair-math-v1": ("Which?", "{question}\nR: {ref_answer_1}\nA: {answer_a}\nB: {answer_b}"),
    "pair-v2-multi-turn": (
        "Which second turn?",
        "{question_1}\n{question_2}\nA: {answer_a_1}\n{answer_a_2}\nB: {answer_b_1}\n{answer_b_2}",
    ),
    "pair-math-v1-multi-turn": (
        "Which second turn?",
        "{question_1}\n{question_2}\nR: {ref_answer_1}\n{ref_answer_2}\n"
        "A: {answer_a_1}\n{answer_a_2}\nB: {answer_b_1}\n{answer_b_2}",
    ),
}


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Bench:
    """Where the little MT-Bench lies; `preset` and `mirror` go on the command line as they are."""

    preset: Path
    mirror: Path
    questions: int

    def answers(self, path: Path, model: str, text: str = "{id}番の答え{turn}") -> Path:
        """A FastChat answer file of this model."""
        return write_jsonl(
            path,
            (
                {
                    "question_id": number,
                    "model_id": model,
                    "choices": [
                        {"index": 0, "turns": [text.format(id=number, turn=turn) for turn in (1, 2)]}
                    ],
                }
                for number in range(1, self.questions + 1)
            ),
        )


def make_bench(folder: Path, per_category: int = 10, **changes: Any) -> Bench:
    """Writes the files of a bench of 8 categories; `changes` replace keys of the preset."""
    mirror = folder / "mirror"
    questions, references = [], []
    for index, category in enumerate(CATEGORIES):
        for place in range(per_category):
            number = index * per_category + place + 1
            turns = [f"{category}の問い{number}、一つ目 {{answer}}", f"{category}の問い{number}、二つ目"]
            questions.append({"question_id": str(number), "category": category, "turns": turns})
            if category in REFERENCE_CATEGORIES:
                choice = {"index": 0, "turns": [f"参照{number}-1", f"参照{number}-2"]}
                references.append({"question_id": number, "model_id": "gpt-4", "choices": [choice]})
    prompts = [
        {"name": name, "type": "single", "system_prompt": system, "prompt_template": template}
        for name, (system, template) in PROMPTS.items()
    ]
    pins = {}
    with_rows = {"questions": questions, "references": references, "prompts": prompts}
    for name, rows in with_rows.items():
        path = write_jsonl(mirror / f"{name}.jsonl", rows)
        digest = sha256(path.read_bytes()).hexdigest()
        pins[name] = {"url": f"{URL}{name}.jsonl", "sha256": digest, "license": "CC0-1.0"}
    with (mirror / "MANIFEST.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["local_path", "upstream_url", "sha256"])
        writer.writerows([f"{name}.jsonl", pin["url"], pin["sha256"]] for name, pin in pins.items())
    failures = ("unparsed", "malformed", "filtered", "overflow", "api_error")
    preset = {
        "name": "little",
        "source": "the tests",
        "judge": None,
        "sets": {"ja": {"questions": pins["questions"], "references": pins["references"]}},
        "prompts": pins["prompts"],
        "sampling": {"temperature": dict.fromkeys(CATEGORIES, 0.0), "other": 0.0, "seed": 0},
        "length": {"rule": "new", "tokens": 16},
        "aggregation": "show_result",
        "statuses": {"ok": "value", "out_of_range": "value"} | dict.fromkeys(failures, "minus_one"),
    }
    path = folder / "little.yaml"
    path.write_text(yaml.safe_dump(preset | changes, allow_unicode=True), encoding="utf-8")
    return Bench(path, mirror, 8 * per_category)
