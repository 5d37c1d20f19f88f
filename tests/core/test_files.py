"""Readers of files people hand in: whatever lies there is one message that names it."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalkit.core import assets
from evalkit.core.errors import EvalkitError, InputError
from evalkit.core.files import check_types, decode, parse_json, read_json, read_rows, read_yaml
from evalkit.core.options import load_config, parse
from evalkit.core.types import Sample
from evalkit.engines.models.folder_files import chat_template
from evalkit.leaderboard.card import read_run_tables
from evalkit.leaderboard.llm_jp_eval import read_llm_jp_eval
from evalkit.mtbench.agreement import read_votes
from evalkit.mtbench.books import prompts_from
from evalkit.mtbench.fastchat import questions_from, read_answers, read_judgments
from evalkit.mtbench.judge.budget import load_prices
from evalkit.mtbench.presets import load_preset
from evalkit.records.environment import config_text
from evalkit.records.results import MissingMetric, read_results
from evalkit.runs.foreign import read_completions
from evalkit.runs.rescore import kept_config
from evalkit.tasks.load import Task, load_task
from evalkit.tasks.spec import load_spec

OWN = (
    "name: own\ninstruction: x\noutput_length: 5\nmetrics: [exact_match]\n"
    "data: {{file: {file}, input: q, output: a, few_shots: 0}}\n"
)
CONFIG = load_config(parse(["model=random", "suite=sample"], ["run"]))
TASK = Task(load_spec("jamp"), (), (Sample("jamp/dev/0", "i", "g"),), {})


def own(path: Path) -> Task:
    task = path.with_name("own.task.yaml")
    task.write_text(OWN.format(file=path.name), encoding="utf-8")
    return load_task(load_spec(str(task)), path.parent, num_few_shots=0)


def completions(path: Path) -> Any:
    folder = path.parent / "completions"
    folder.mkdir(exist_ok=True)
    path.replace(folder / "jamp.jsonl")
    return read_completions(folder, [TASK])


def shipped(*place: str) -> Any:
    return yaml.safe_load(assets.ROOT.joinpath(*place).read_text(encoding="utf-8"))


VALUE = {"value": 1.0, "n": 2, "stderr": None, "ci95": [0, 1], "metric_version": "1"}
RESULTS = {
    "schema_version": 1,
    "scores": {"jamp_exact_match": VALUE},
    "categories": {"NLI": VALUE},
    "average": {},
    "datasets": {
        "jamp": {"metrics": ["exact_match"], "n": 2, "empty": 0.0, "truncated": None, "out_of_format": 0}
    },
    "partial": {"partial": False, "reasons": [], "categories": {}, "datasets": {}},
    "missing_metrics": [{"dataset": "a", "metric": "b", "reason": "c", "command": None}],
    "protocol": {"name": "p", "options": {}, "deviations": {}},
    "run": {"id": "1", "datasets": {"jamp": {"sha256": {}}}, "identity": {"model": {}}, "warnings": []},
}
BENCH = {
    "kind": "mt_bench",
    "tables": {"m": {"judge": "x", "scopes": {"average": {"value": 1, "n": 2, "ci95": [1, 2]}}}},
    "preset": {"name": "x"},
    "partial": {"reasons": []},
}
JUDGED = {"question_id": 1, "model": "m", "judge": ["gpt-4", "single"], "judgment": "", "score": 5, "turn": 1}
# Reader, and a file that it takes.
READERS: dict[str, tuple[str, Callable[[Path], Any], Any]] = {
    "task": (".yaml", lambda path: load_spec(str(path)), yaml.safe_load(OWN.format(file="d.jsonl"))),
    "shipped task": (".yaml", lambda path: load_spec(str(path)), shipped("tasks", "jamp.yaml")),
    "preset": (
        ".yaml",
        lambda path: load_preset(str(path)),
        shipped("conf", "mtbench", "llm-jp-3-card.yaml"),
    ),
    "prices": (".yaml", load_prices, {"m": {"input": 1, "output": 2}}),
    "config": (".yaml", kept_config, yaml.safe_load(config_text(CONFIG))),
    "own.jsonl": (".jsonl", own, [{"q": "x", "a": "y"}]),
    "own.json": (".json", own, {"samples": [{"q": "x", "a": "y"}]}),
    "own.csv": (".csv", own, "q,a\nx,y\n"),
    "own.tsv": (".tsv", own, "q\ta\nx\ty\n"),
    "judgments": (".jsonl", read_judgments, [JUDGED]),
    "answers": (".jsonl", read_answers, [{"question_id": 1, "model_id": "m", "choices": [{"turns": ["a"]}]}]),
    "votes": (
        ".jsonl",
        read_votes,
        [{"question_id": 1, "turn": 1, "model_a": "a", "model_b": "b", "winner": "tie", "judge": "gpt"}],
    ),
    "prompts": (
        ".jsonl",
        lambda path: prompts_from(read_rows(path)),
        [{"name": "n", "system_prompt": "s", "prompt_template": "{question}"}],
    ),
    "questions": (
        ".jsonl",
        lambda path: questions_from(read_rows(path)),
        [{"question_id": 1, "category": "math", "turns": ["a"]}],
    ),
    "completions": (".jsonl", completions, [{"id": "jamp/dev/0", "completion": "x"}]),
    "completions of llm-jp-eval": (
        ".json",
        lambda path: read_completions(path, [TASK]),
        {"outputs": {"jamp": [{"input": "i", "pred": "p", "gold": "g"}]}},
    ),
    "results of llm-jp-eval": (".json", read_llm_jp_eval, {"scores": {"AVG": 1.0}}),
    "results": (".json", read_results, RESULTS),
    "MT-Bench results": (".json", read_run_tables, BENCH),
    "chat template": (".jinja", lambda path: chat_template(str(path), None), "{{ bos_token }}"),
}
READER = pytest.mark.parametrize("name", READERS)


def encoded(content: Any, suffix: str) -> bytes:
    if suffix in (".csv", ".tsv", ".jinja"):
        return str(content).encode()
    if suffix == ".yaml":
        return yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
    if suffix == ".jsonl":
        return "\n".join(map(json.dumps, content if isinstance(content, list) else [content])).encode()
    return json.dumps(content).encode()


@READER
def test_a_good_file(name: str, tmp_path: Path) -> None:
    suffix, read, content = READERS[name]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(encoded(content, suffix))
    assert read(path) is not None


def test_a_byte_order_mark_is_not_in_the_way(tmp_path: Path) -> None:
    for name, (suffix, read, content) in READERS.items():
        if name not in ("results", "MT-Bench results"):
            path = tmp_path / f"file{suffix}"
            path.write_bytes(b"\xef\xbb\xbf" + encoded(content, suffix))
            assert read(path) is not None, name


@READER
@pytest.mark.parametrize("kind", ["folder", "pipe", "missing"])
def test_something_that_is_no_file(name: str, kind: str, tmp_path: Path) -> None:
    suffix, read, _ = READERS[name]
    path = tmp_path / f"file{suffix}"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe" and name not in ("results", "MT-Bench results"):
        # Opened for reading, it would be waited for without end.
        os.mkfifo(path)
    if name == "completions" and kind == "missing":
        return
    with pytest.raises(InputError):
        read(path)


WRONG = [
    *(None, True, 0, -1, 3.5, "", "5", "x\0y", "\ud83d", [], {}, [1], {"a": 1}, 10**400, float("nan")),
    *(
        float("inf"),
        ["x", None],
        {"x": {"y": [1]}},
        "${oc.env:HOME}",
        "../../x",
        [[[]]],
        "2024-01-01",
        "{q!r}",
    ),
]
INSERTED = [
    *(b"\0", b"\\ud83d", b"&a [*a]", b"2024-13-45", b"!!python/name:os.system", b"\xff", b"\r", b'"', b"{"),
    *(b"9" * 5000, b"NaN", b"1e999", b"!!binary x", b"!!set {a}", b"? ", b"<<: *x\n", b"\xed\xa0\xbd"),
]


def mutated(content: Any, chance: random.Random) -> Any:
    """A copy with a few values replaced by others, fields renamed or gone."""
    content = json.loads(json.dumps(content))
    nodes: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        pairs = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in list(pairs):
            nodes.append((value, key))
            walk(inner)

    walk(content)
    for parent, key in chance.sample(nodes, min(len(nodes), chance.randint(1, 2))):
        if isinstance(parent, dict) and chance.random() < 0.3:
            value = parent.pop(key, None)
            if chance.random() < 0.5:
                parent[chance.choice(["z", "\ud83d", "a.b", "", "1"])] = value
        elif isinstance(parent, dict) or key < len(parent):
            parent[key] = chance.choice(WRONG)
    return content if chance.random() > 0.05 else chance.choice(WRONG)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A file as disks, editors and other encodings leave it, or with something foreign inside."""
    place = chance.randrange(len(data) + 1)
    kind = chance.randrange(6)
    if kind == 0:
        return bytes(byte if chance.random() > 0.02 else chance.randrange(256) for byte in data)
    if kind == 1:
        return data[:place]
    if kind == 2:
        return chance.randbytes(chance.randrange(200))
    if kind == 3:
        other = chance.choice(["cp932", "euc_jp", "utf-16", "utf-16-le", "utf-32"])
        return f"日本{data.decode('utf-8', 'replace')}".encode(other, "replace")
    if kind == 4:
        return chance.choice([b"[", b'{"a":', b"- ", b"{a: "]) * chance.choice([50, 2000, 100_000])
    return data[:place] + chance.choice(INSERTED) + data[place:]


@READER
def test_no_file_is_a_traceback(name: str, tmp_path: Path) -> None:
    suffix, read, content = READERS[name]
    chance = random.Random(name)
    for number in range(60):
        data = encoded(content, suffix)
        if isinstance(content, str) or number % 2:
            data = damaged(data, chance)
        else:
            data = encoded(mutated(content, chance), suffix)
        path = tmp_path / f"file{suffix}"
        path.write_bytes(data)
        try:
            read(path)
        except EvalkitError as error:
            # The message itself can be shown and logged, too.
            error.message().encode()
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}\n{data[:500]!r}") from error


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("日本\n語".encode("cp932"), ("line 1", "CP932")),
        ('{"q": "a"}\n{"q": "日本語の文"}'.encode("euc_jp"), ("line 2", "EUC-JP")),
        ("日本".encode("utf-16"), ("UTF-16",)),
        (b"\x81\xff\xff", ("line 1", "save it as UTF-8")),
        # Half a character in bytes.
        (b'"\xed\xa0\xbd"', ("line 1",)),
    ],
)
def test_other_encodings_are_named(data: bytes, said: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="not UTF-8 text") as caught:
        decode(data, "FILE")
    assert all(word in str(caught.value) for word in said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": [1, {"b": "x\\ud83d"}]}', "FILE, field a[1].b"),
        ('{"x\\ud83d": 1}', "FILE, field x\\ud83d"),
        ('"\\ude00"', "U+DE00"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "digits"),
        ('{\n"a": }', "FILE, line 2, column 6"),
    ],
)
def test_json_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(text, "FILE")
    assert said in str(caught.value)


def test_two_escapes_of_one_character_are_joined_and_a_models_half_is_replaced() -> None:
    assert parse_json('"\\ud83d\\ude00"', "FILE") == "😀"
    assert parse_json('{"a": "\\ud83d"}', "FILE", mend=True) == {"a": "\ufffd"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3"),
        ("&a [*a]", "repeats without end"),
        (
            "a: &a [x, x]\n"
            + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 12)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
            ),
            "repeats",
        ),
        ("[" * 100_000, "nested too deeply"),
        ("- " * 50_000 + "x", "nested too deeply"),
        ("a: 2024-13-45", "month"),
        ("a: !!python/name:os.system", "line 1"),
        ('a: "\\ud83d"', "line 1"),
        ("a: \0", "control characters"),
    ],
)
def test_yaml_that_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert said in str(caught.value)


def test_yaml_merges_and_aliases_that_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: {<<: *x, b: 2}\nd: {<<: *x}\ne: [*x, *x]\n")
    assert read_yaml(tmp_path / "a.yaml") == {
        "a": {"b": 1},
        "c": {"b": 2},
        "d": {"b": 1},
        "e": [{"b": 1}] * 2,
    }


def test_half_a_character_in_data_names_row_and_field(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"q": "ok", "a": "1"}\n{"q": "\\ud83d", "a": "2"}\n')
    with pytest.raises(InputError, match="half a character") as caught:
        own(tmp_path / "d.jsonl")
    assert caught.value.where == f"{tmp_path / 'd.jsonl'}, line 2, field q"


def test_a_path_with_a_nul(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="null"):
        read_json(tmp_path / "a\0b")


def test_types_are_those_of_the_annotations() -> None:
    check_types(MissingMetric("d", "m", "r", None))
    with pytest.raises(TypeError, match="reason"):
        check_types(MissingMetric("d", "m", 3, None))  # type: ignore[arg-type]
