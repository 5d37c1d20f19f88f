"""Instructions through the command line: a scripted chat model, answers made elsewhere, own files."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.durable import read_log
from evalkit.core.errors import InputError, UnreachableError
from evalkit.core.options import CommandLine, load_config
from evalkit.runs.run import evaluate
from tests.thinking import save_thinking_model

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
TASK = """name: mine
instruction: ""
output_length: 8
metrics: [instruction_strict, prompt_loose]
counts: instruction_strict
answer: {kind: instructions}
data: {file: mine.jsonl, input: prompt}
"""
LINES: list[dict[str, Any]] = [
    {
        "prompt": "読点も算用数字も使わずに書け。",
        "instruction_id_list": ["ja:punctuation:no_comma", "ja:letters:kansuuji"],
        "kwargs": [{}, {"count": None}],
    },
    {"prompt": "{input}", "instruction_id_list": ["ja:detectable_format:json_format"], "kwargs": [{}]},
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(TASK, encoding="utf-8")
    lines = [json.dumps(line, ensure_ascii=False) for line in LINES]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "mine.yaml"


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return content


def test_a_chat_model_is_asked_and_checked_verbatim(
    task: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The digit stands behind a blank line; llm-jp-eval's clean-up would remove the space.
    model = save_thinking_model(tmp_path / "model", ("漢字", " .", "\n\n", "は1"), template=TEMPLATE)
    command = ["model=hf", f"model.path={model}", "model.name=chat", "suite=task", f"suite.tasks=[{task}]"]
    command += ["offline=true", "engine.threads=1", f"out={tmp_path / 'out'}"]
    assert main(command) == 2
    assert "mine asks through the model's chat template" in capsys.readouterr().err
    assert main([*command, "suite.chat=true"]) == 0
    (folder,) = (path.parent for path in (tmp_path / "out").rglob("results.json"))
    first, second = read_log(folder / "samples" / "mine.jsonl")[0].values()
    assert first["completion"] == second["completion"] == "漢字.\n\nは1"
    scores = read_log(folder / "scores" / "mine.jsonl")[0]
    assert scores["mine/own/0"]["prediction"] == "漢字 .\n\nは1"
    assert [v["strict"] for v in scores["mine/own/0"]["verdicts"]] == [True, False]
    assert results(folder)["scores"]["mine_instruction_strict"]["value"] == 1 / 3
    capsys.readouterr()
    assert main(["score", f"run={folder}"]) == 0
    assert "nothing moved" in capsys.readouterr().out
    out = tmp_path / "prompts"
    assert main(["prompts", *command[3:5], "suite.chat=true", f"out={out}"]) == 0
    prompts = [json.loads(line) for line in (out / "mine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [prompt["messages"] for prompt in prompts] == [
        [{"role": "user", "content": line["prompt"]}] for line in LINES
    ]
    assert all(prompt["stop"] == [] for prompt in prompts)


def test_a_length_of_ones_own_is_a_deviation(task: Path, tmp_path: Path, cache: Path) -> None:
    model = save_thinking_model(tmp_path / "model", ("漢字", "\n\n", "は1"), template=TEMPLATE)
    command = ["model=hf", f"model.path={model}", "model.name=chat", "suite=task", f"suite.tasks=[{task}]"]
    command += ["offline=true", "engine.threads=1", f"out={tmp_path / 'out'}", "suite.chat=true"]
    assert main([*command, "generation.output_length=2"]) == 0
    (folder,) = (path.parent for path in (tmp_path / "out").rglob("results.json"))
    found = results(folder)
    assert found["run"]["identity"]["max_new_tokens"] == {"mine": 2}
    assert found["protocol"]["deviations"]["generation.output_length"] == 2
    # Cut off, a blank line or not.
    assert found["datasets"]["mine"]["truncated"] == 1.0


def test_answers_in_the_published_form(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "model-x.jsonl"
    rows = [
        {"prompt": LINES[1]["prompt"], "response": "{}"},
        {"prompt": LINES[0]["prompt"], "response": None},
    ]
    answers.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    command = ["score", "suite=task", f"suite.tasks=[{task}]", f"completions={answers}", f"out={tmp_path}/o"]
    assert main(command) == 0
    assert results(tmp_path / "o")["scores"]["mine_instruction_strict"]["value"] == 1 / 3
    # Either form may have an answer that a service did not give.
    ids = read_log(tmp_path / "o" / "scores" / "mine.jsonl")[0]
    rows = [{"id": key, "completion": None} for key in ids]
    answers.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert main(command) == 0
    answers.write_text(json.dumps({"prompt": "別の問い", "response": ""}), encoding="utf-8")
    capsys.readouterr()
    assert main(command) == 2
    assert "別の問い" in capsys.readouterr().err


def test_answers_to_a_prompt_that_stands_twice_are_in_its_order(task: Path, tmp_path: Path) -> None:
    lines = [json.dumps(LINES[1])] * 2
    (tmp_path / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = [{"prompt": LINES[1]["prompt"], "response": text} for text in ("{}", "no")]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    words = [f"suite.tasks=[{task}]", f"completions={tmp_path}/x.jsonl", f"out={tmp_path}/o"]
    assert main(["score", "suite=task", *words]) == 0
    scores = read_log(tmp_path / "o" / "scores" / "mine.jsonl")[0]
    assert [row["prediction"] for row in scores.values()] == ["{}", "no"]
    assert main(["score", "suite=task", *words, "num_few_shots=2"]) == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"instruction_id_list": ["ja:punctuation:no_period", "ja:letters:kanzi"]}, "ja:letters:kanji'"),
        ({"kwargs": [{}, {"count": 3}]}, "has no argument 'count'"),
        ({"kwargs": [{}]}, "a list of 2 objects"),
    ],
)
def test_bad_instructions_name_the_record(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], words: str
) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps({**LINES[0], **changed}), encoding="utf-8")
    command = ["prompts", "suite=task", f"suite.tasks=[{task}]", "suite.chat=true", f"out={tmp_path}/o"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert words in said and "mine.jsonl" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("metrics: [instruction_strict, prompt_loose]", "metrics: [exact_match]", "metrics"),
        ("answer: {kind: instructions}", "", "metrics"),
        ('instruction: ""', "instruction: 書け", "instruction"),
        ("counts:", "num_few_shots: 2\ncounts:", "num_few_shots"),
        ("input: prompt}", "input: prompt, output: kwargs}", "data.output"),
    ],
)
def test_a_task_file_that_contradicts_itself(
    task: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, field: str
) -> None:
    text = task.read_text(encoding="utf-8").replace(old, new)
    task.write_text(text.replace("counts: instruction_strict\n", ""), encoding="utf-8")
    assert main(["prompts", "suite=task", f"suite.tasks=[{task}]", f"out={task.parent}/o"]) == 2
    assert f"field {field}" in capsys.readouterr().err


@pytest.mark.sources
def test_the_suite_takes_all_prompts_and_gives_the_published_totals(mirror: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert main(["prepare", "suite=mifeval-ja", f"mirror={mirror}", f"data_dir={data}"]) == 0
    answers = mirror / "mifeval_ja" / "answers" / "claude-3-haiku-20240307.jsonl"
    command = [
        "score",
        "suite=mifeval-ja",
        f"data_dir={data}",
        f"completions={answers}",
    ]
    assert main([*command, f"out={tmp_path}/o"]) == 0
    found = results(tmp_path / "o")
    values = {name.removeprefix("mifeval-ja_"): figure["value"] for name, figure in found["scores"].items()}
    assert (values["instruction_strict"], values["instruction_loose"]) == (140 / 226, 160 / 226)
    assert found["protocol"]["name"] == "m-ifeval" and found["protocol"]["deviations"] == {}
    assert not found["partial"]["partial"]
    instructions = found["datasets"]["mifeval-ja"]["instructions"]
    assert instructions["ceiling"]["instruction_strict"] == 222 / 226
    assert list(instructions["unsatisfiable"]) == [f"mifeval-ja/dev/{index}" for index in (40, 43, 145, 147)]
    # Fewer prompts than the protocol takes: partial.
    assert main([*command, f"out={tmp_path}/p", "limit=100"]) == 0
    assert results(tmp_path / "p")["partial"]["partial"]


def test_packages_that_are_not_installed_are_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "janome", None)
    config = load_config(CommandLine("run", ("model=nowhere/model", "suite=mifeval-ja", "offline=true")))
    with pytest.raises(InputError, match="not installed: janome") as error:
        evaluate(config, say=print)
    assert "pip install 'evalkit[ifeval]'" in str(error.value)
    config.allow_missing = True
    with pytest.raises(UnreachableError, match="nowhere/model"):
        evaluate(config, say=print)
