"""M-IFEval's lines, made here in upstream's form, and the one split they make."""

import json
from pathlib import Path

import pytest

from evalkit.core.types import Row
from evalkit.sources.mifeval import mifeval
from evalkit.sources.prepare import prepare
from evalkit.sources.readers import SourceError
from evalkit.tasks.load import load_task
from evalkit.tasks.spec import load_spec
from tests.sources.helpers import Upstream

LINE = {
    "key": 7,
    "prompt": "読点を使わずに\n書いてください。",
    "instruction_id_list": ["ja:punctuation:no_comma"],
    "kwargs": [{"count": None}],
}


def lines(*records: object) -> str:
    # The upstream file has no newline at its end.
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def test_prompts_are_verbatim_and_what_is_checked_is_the_gold_answer(upstream: Upstream) -> None:
    file = upstream.file("ja.jsonl", lines(LINE))
    gold = '{"instruction_id_list":["ja:punctuation:no_comma"],"key":7,"kwargs":[{}]}'
    assert mifeval({"all": [file]}) == {"all": [[Row("読点を使わずに\n書いてください。", gold)]]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"instruction_id_list": ["ja:punctuation:no_coma"]},
            "line 2.*did you mean 'ja:punctuation:no_comma'",
        ),
        ({"kwargs": [{"speed": 1}]}, "'speed'.*line 2"),
        ({"key": 7}, "7 was already used at line 1"),
    ],
)
def test_a_line_that_cannot_be_checked_is_named(
    upstream: Upstream, change: dict[str, object], words: str
) -> None:
    file = upstream.file("ja.jsonl", lines(LINE, {**LINE, "key": 8, **change}))
    with pytest.raises(SourceError) as error:
        mifeval({"all": [file]})
    for word in words.split(".*"):
        assert word in str(error.value)


@pytest.mark.sources
def test_the_suite_has_one_split_of_172_prompts(mirror: Path, tmp_path: Path) -> None:
    spec = load_spec("mifeval-ja")
    for _ in range(2):
        (report,) = prepare([spec], tmp_path, mirror=mirror)
        assert report.complete and list(report.splits) == ["dev"]
    assert [path.name for path in tmp_path.glob("1.3.1/evaluation/*")] == ["dev"]
    task = load_task(spec, tmp_path, limit=0, num_few_shots=0)
    assert len(task.samples) == 172
