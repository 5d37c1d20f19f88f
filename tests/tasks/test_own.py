"""A dataset with one YAML and one data file: the example of docs/own-tasks.md, and what can be wrong."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from evalkit.__main__ import main
from evalkit.core.errors import EvalkitError, FetchError, InputError
from evalkit.tasks.load import Task, load_task
from evalkit.tasks.spec import load_spec
from tests.conftest import ROOT

GUIDE = (ROOT / "docs" / "own-tasks.md").read_text(encoding="utf-8")
YAML = "name: mine\ninstruction: 問い\noutput_length: 5\nmetrics: [exact_match]\n"


def lay(folder: Path, data: str, files: dict[str, str | bytes], head: str = YAML) -> str:
    """A task file and its data; the path of the task file."""
    (folder / "mine.yaml").write_text(f"{head}data:\n{data}", encoding="utf-8")
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder / "mine.yaml")


def load(path: str, **options: object) -> Task:
    options = {"num_few_shots": 1} | options
    return load_task(load_spec(path), Path("nowhere"), **options)  # type: ignore[arg-type]


def pairs(task: Task) -> list[tuple[str, str]]:
    return [(sample.input, sample.gold) for sample in (*task.few_shots, *task.samples)]


def test_the_example_of_the_guide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = r"`(\w+\.(?:yaml|jsonl))`(?:, beside it)?:\n\n```\w+\n(.*?)```"
    files = dict(re.findall(named, GUIDE, re.DOTALL))
    assert sorted(files) == ["capitals.jsonl", "capitals.yaml"]
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    out = tmp_path / "out"
    words = ["suite=task", f"suite.tasks=[{tmp_path}/capitals.yaml]", "num_few_shots=2"]
    assert main(["prompts", *words, f"out={out}"]) == 0
    prompts = [json.loads(line) for line in (out / "capitals.jsonl").read_text().splitlines()]
    assert len(prompts) == 3
    assert prompts[0]["max_new_tokens"] == 10
    assert "### 入力:\n質問：フランスの首都はどこですか。\n\n### 応答:\nパリ\n\n" in prompts[0]["prompt"]
    assert prompts[0]["prompt"].endswith("### 入力:\n質問：カナダの首都はどこですか。\n\n### 応答:\n")
    assert main(["prepare", *words, f"data_dir={tmp_path / 'data'}"]) == 0
    assert re.search(r"capitals\W+2\W+3\W+-\W+your own", capsys.readouterr().out)


def test_the_guide_names_every_key() -> None:
    from dataclasses import fields

    from evalkit.tasks.spec import DataSpec, TaskSpec

    keys = {field.name for kind in (TaskSpec, DataSpec) for field in fields(kind)}
    assert not {key for key in keys - {"published", "upstream", "data"} if f"`{key}`" not in GUIDE}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.json", '[{"q": "a", "a": "b"}, {"q": "c", "a": 1.5}]'),
        ("d.json", '{"instruction": "", "samples": [{"q": "a", "a": "b"}, {"q": "c", "a": 1.5}]}'),
        ("d.jsonl", '{"q": "a", "a": "b"}\n\n{"q": "c", "a": 1.5}\n'),
        ("d.csv", "\ufeffq,a,x\r\na,b,\r\nc,1.5,\r\n"),
        ("d.tsv", "q\ta\na\tb\nc\t1.5\n"),
    ],
)
def test_every_format(tmp_path: Path, name: str, content: str) -> None:
    task = load(lay(tmp_path, f"  {{file: {name}, input: q, output: a, few_shots: 1}}", {name: content}))
    assert pairs(task) == [("a", "b"), ("c", "1.5")]
    assert [sample.id for sample in task.samples] == ["mine/own/0"]
    assert task.sha256 == {"data": hashlib.sha256(content.encode()).hexdigest()}


def test_examples_of_a_file_of_their_own(tmp_path: Path) -> None:
    files = {"d.csv": "q,a\n1,2\n3,4\n", "shots.jsonl": '{"q": "x", "a": "y"}\n'}
    task = load(lay(tmp_path, "  {file: d.csv, few_shots_file: shots.jsonl, input: q, output: a}", files))
    assert pairs(task) == [("x", "y"), ("1", "2"), ("3", "4")]
    assert set(task.sha256) == {"data", "few_shots"}


def test_templates_fill_columns_and_leave_the_data_alone(tmp_path: Path) -> None:
    data = '  {file: d.csv, input: "{{問}}：{q}／{z}", output: "{a}。", few_shots: 0}'
    task = load(lay(tmp_path, data, {"d.csv": "q,z,a\n{a},{{,答\n"}), num_few_shots=0)
    assert pairs(task) == [("{問}：{a}／{{", "答。")]


def test_braces_hold_a_column_and_no_format(tmp_path: Path) -> None:
    rows = {"d.jsonl": '{"q:1": "一", "q": "x", "a!r:>5": "答"}'}
    data = "  {file: d.jsonl, input: '{q:1}{q}', output: '{a!r:>5}', few_shots: 0}"
    assert pairs(load(lay(tmp_path, data, rows), num_few_shots=0)) == [("一x", "答")]
    for column in ("q:>10", "q!r", "q:1:2"):
        path = lay(tmp_path, data.replace("{q}", f"{{{column}}}"), rows)
        with pytest.raises(InputError, match=f"no column {column!r}; did you mean"):
            load(path, num_few_shots=0)


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = lay(tmp_path, "  {file: d.csv, input: q, output: q, few_shots: 1}", {"d.csv": "q\n1\n2\n3\n4\n"})
    assert pairs(load(path, limit=2)) == [("1", "1"), ("2", "2"), ("3", "3")]
    assert len(load(path, limit=0).samples) == 3


COLUMNS = "  {file: d.jsonl, input: question, output: answer, few_shots: 0}"


@pytest.mark.parametrize(
    ("data", "files", "message"),
    [
        (COLUMNS, {}, "cannot read the data file"),
        (
            COLUMNS,
            {"d.jsonl": '{"qestion": "a", "answer": "b"}'},
            "no column 'question'; did you mean 'qestion'",
        ),
        (COLUMNS, {"d.jsonl": '{"question": "a"}'}, "no column 'answer'"),
        (COLUMNS, {"d.jsonl": '{"question": "a", "answer": ["b"]}'}, "holds list"),
        (COLUMNS, {"d.jsonl": '{"question": null, "answer": "b"}'}, "holds NoneType"),
        (COLUMNS, {"d.jsonl": '{"question": NaN, "answer": "b"}'}, "'question' holds nan"),
        (COLUMNS, {"d.jsonl": '{"question": "a", "answer": 1e400}'}, "'answer' holds inf"),
        (COLUMNS, {"d.jsonl": '{"question": "a",\n'}, "line 1"),
        (COLUMNS, {"d.jsonl": "3\n"}, "named columns"),
        (COLUMNS, {"d.jsonl": ""}, "no rows to evaluate"),
        (COLUMNS, {"d.jsonl": "質問".encode("shift_jis")}, "not UTF-8"),
        ("  {file: d.xlsx, input: a, output: b}", {"d.xlsx": ""}, ".jsonl"),
        ("  {file: d.csv, input: a, output: b}", {"d.csv": "a,b\n1\n"}, "line 2"),
        ("  {file: d.csv, input: a, output: b}", {"d.csv": 'a,b\n"1,2\n'}, "not CSV"),
        ("  {file: d.json, input: a, output: b}", {"d.json": "{}"}, "list of records"),
        ("  {file: d.csv, input: '{a', output: b, few_shots: 0}", {"d.csv": "a,b\n1,2\n"}, "not a template"),
        ("  {file: d.csv, input: '{x}', output: b, few_shots: 0}", {"d.csv": "a,b\n1,2\n"}, "no column 'x'"),
        ("  {file: d.csv, input: a, output: b}", {"d.csv": "a,b\n1,2\n"}, "1 are kept as examples"),
    ],
)
def test_bad_data_is_named(tmp_path: Path, data: str, files: dict[str, str | bytes], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load(lay(tmp_path, data, files), num_few_shots=0)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ("  {input: a, output: b}", "field data"),
        ("  {file: a.csv, hub: b, input: a, output: b}", "field data"),
        ("  {file: a.csv, output: b}", "data.input"),
        ("  {file: a.csv, input: a, output: b, few_shots: -1}", "data.few_shots"),
        ("  {file: a.csv, input: a, output: b, few_shots: many}", "data.few_shots"),
        ("  {file: a.csv, input: a, output: b, colour: red}", "colour"),
        ("  {file: a.csv, input: a, output: b, subset: x}", "field data"),
        ("  {hub: a, input: a, output: b, few_shots_file: x}", "data.few_shots_file"),
    ],
)
def test_a_bad_task_file_names_the_field(tmp_path: Path, data: str, field: str) -> None:
    with pytest.raises(InputError) as refused:
        load_spec(lay(tmp_path, data, {}))
    assert field in str(refused.value) and "mine.yaml" in str(refused.value)


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "", "a b", "pfgen", "mifeval-ja", "jamp"])
def test_a_name_that_is_no_file_name_or_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="field name"):
        load_spec(lay(tmp_path, COLUMNS, {}, head=YAML.replace("mine", f'"{name}"')))


def test_more_examples_than_there_are(tmp_path: Path) -> None:
    path = lay(tmp_path, "  {file: d.csv, input: a, output: a, few_shots: 2}", {"d.csv": "a\n1\n2\n3\n"})
    with pytest.raises(InputError, match="num_few_shots=2"):
        load(path, num_few_shots=3)


def test_bad_own_data_is_missing_for_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lay(tmp_path, COLUMNS, {})
    assert main(["prepare", "suite=task", f"suite.tasks=[{path}]", f"data_dir={tmp_path / 'd'}"]) == 1
    assert "d.jsonl" in capsys.readouterr().out


def test_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads a folder as it reads a hub dataset; no network is needed for it."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    folder = tmp_path / "user-dataset"
    folder.mkdir()
    for split, rows in {"train": [("a", 1)], "test": [("b", 2), ("c", 3)]}.items():
        lines = (json.dumps({"q": question, "n": number}) for question, number in rows)
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    data = f"  {{hub: '{folder}', few_shots_split: train, input: q, output: n}}"
    task = load(lay(tmp_path, data, {}), offline=True)
    assert pairs(task) == [("a", "1"), ("b", "2"), ("c", "3")]
    assert task.sha256 == load(lay(tmp_path, data, {}), offline=True).sha256
    with pytest.raises(FetchError, match="split dev"):
        load(lay(tmp_path, data.replace("train", "dev"), {}), offline=True)


def test_an_offline_hub_dataset_opens_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with pytest.raises(FetchError) as refused:
        load(lay(tmp_path, "  {hub: nobody/nothing, input: q, output: n}", {}), offline=True)
    assert "nobody/nothing" in str(refused.value) and "socket" not in str(refused.value)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(EvalkitError, match=r"evalkit\[hub\]"):
        load(lay(tmp_path, "  {hub: nobody/nothing, input: q, output: n}", {}))


def test_a_mistyped_key_is_named_with_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)did you mean 'few_shots'.*mine.yaml, field data.few_shot$"):
        load_spec(lay(tmp_path, "  {file: a.csv, input: a, output: b, few_shot: 1}", {}))


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        ("instruction: yes", "instruction", "reads yes as true"),
        ("instruction: 012", "instruction", "reads 012 as 10"),
        ("instruction: 1_000", "instruction", "reads 1_000 as 1000"),
        ("instruction: 1.80", "instruction", "reads 1.80 as 1.8"),
        ("instruction: 1.0e+3", "instruction", "reads 1.0e+3 as 1000.0"),
        ("instruction: 2024-01-01", "instruction", "reads 2024-01-01 as 2024-01-01"),
        ("instruction: 10:30", "instruction", "reads 10:30 as 630"),
        ("license: no", "license", "reads no as false"),
        ("name: on", "name", "reads on as true"),
        ("answer: {kind: label, labels: [A, yes]}", "answer.labels.1", "reads yes as true"),
        ("<<: {citation: 0x1F}", "citation", "reads 0x1F as 31"),
    ],
)
def test_a_word_that_yaml_takes_for_something_else_needs_quotes(
    tmp_path: Path, line: str, field: str, said: str
) -> None:
    kept = [one for one in YAML.splitlines() if not line.startswith(one.partition(":")[0])]
    with pytest.raises(InputError) as refused:
        load_spec(lay(tmp_path, COLUMNS, {}, head="\n".join([*kept, line, ""])))
    assert said in refused.value.what and f"mine.yaml, field {field}" in str(refused.value.where)
    written = said.split()[1]
    assert refused.value.fix == f'write it in quotes: "{written}"'


def test_the_first_metric_counts_where_the_category_alone_is_named(tmp_path: Path) -> None:
    head = YAML.replace("[exact_match]", "[char_f1, exact_match]")
    assert load_spec(lay(tmp_path, COLUMNS, {}, head=head)).counts is None
    head += "category: QA\n"
    assert load_spec(lay(tmp_path, COLUMNS, {}, head=head)).counts == "char_f1"
    assert load_spec(lay(tmp_path, COLUMNS, {}, f"{head}counts: exact_match\n")).counts == "exact_match"


def test_a_number_that_yaml_leaves_as_it_is_may_be_a_text(tmp_path: Path) -> None:
    head = YAML.replace("問い", '"yes"') + "license: 1.8\nanswer: {kind: label, labels: [1, -2, 'no']}\n"
    spec = load_spec(lay(tmp_path, COLUMNS, {}, head=head))
    assert (spec.instruction, spec.license) == ("yes", "1.8") and spec.answer.labels == ["1", "-2", "no"]


def test_a_dollar_and_a_brace_are_text(tmp_path: Path) -> None:
    head = YAML.replace("問い", "'値は${x}、\\${y} も'")
    path = lay(
        tmp_path, "  {file: d.csv, input: '${a}', output: b, few_shots: 0}", {"d.csv": "a,b\n1,2\n"}, head
    )
    assert load_spec(path).instruction == "値は${x}、\\${y} も"
    assert pairs(load(path, num_few_shots=0)) == [("$1", "2")]


def test_the_bundled_suite_has_no_items_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lay(tmp_path, COLUMNS, {"d.jsonl": '{"question": "a", "answer": "b"}'})
    assert main(["prompts", "suite=sample", f"suite.tasks=[{path}]", f"out={tmp_path}"]) == 2
    assert "suite=task" in capsys.readouterr().err
