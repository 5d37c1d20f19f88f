"""Upstream files that are not what they should be: the file, the place and the URL are named."""

from collections.abc import Callable

import pytest

from evalkit.sources import jglue, nli, qa
from evalkit.sources.pins import SourceFile
from evalkit.sources.readers import (
    SourceError,
    comma_separated,
    json_lines,
    json_of,
    tab_separated,
    text_of,
    unique,
    xml_of,
)
from tests.sources.helpers import Upstream


def refused(work: Callable[[], object], file: SourceFile) -> str:
    with pytest.raises(SourceError) as error:
        work()
    text = str(error.value)
    assert str(file.path) in text and file.url in text
    return text


def test_a_byte_order_mark_is_no_text(upstream: Upstream) -> None:
    assert text_of(upstream.file("a.txt", b"\xef\xbb\xbfabc")) == "abc"


@pytest.mark.parametrize("encoding", ["shift_jis", "euc_jp", "utf-16"])
def test_another_encoding_is_named(upstream: Upstream, encoding: str) -> None:
    file = upstream.file("a.txt", "質問：日本語".encode(encoding))
    assert "not UTF-8" in refused(lambda: text_of(file), file)


def test_broken_json_lines_name_the_line(upstream: Upstream) -> None:
    file = upstream.file("a.json", '{"a": 1}\n{"a": \n')
    assert "a.json, line 2, column" in refused(lambda: list(json_lines(file)), file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1,\n2,\n", "a.json, line 3, column 1"),
        ('{"a": {"b": "\\ud83d"}}', "a.json, field a.b"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_broken_json_names_the_place(upstream: Upstream, content: str, message: str) -> None:
    file = upstream.file("a.json", content)
    assert message in refused(lambda: json_of(file), file)


def test_a_table_with_another_header(upstream: Upstream) -> None:
    file = upstream.file("a.tsv", "num\tpremise\tgold\n1\ta\tb\n")
    text = refused(lambda: list(tab_separated(file, {0: "num", 2: "gold_label"})), file)
    assert "column 3" in text and "gold_label" in text


def test_an_empty_table(upstream: Upstream) -> None:
    file = upstream.file("a.tsv", "")
    assert "column 1" in refused(lambda: list(tab_separated(file, {0: "num"})), file)


def test_a_line_with_too_few_cells(upstream: Upstream) -> None:
    file = upstream.file("a.tsv", "num\tlabel\n1\ta\n2\n")
    assert "line 3" in refused(lambda: list(tab_separated(file, {0: "num"})), file)


def test_windows_line_ends_in_a_table(upstream: Upstream) -> None:
    """The label would silently become `entailment\\r`, were it the last column."""
    file = upstream.file("a.tsv", "num\tlabel\r\n1\tentailment\r\n")
    assert "CR" in refused(lambda: list(tab_separated(file, {0: "num"})), file)


def test_csv_rows_of_another_width(upstream: Upstream) -> None:
    file = upstream.file("a.csv", "")
    assert "row 2" in refused(lambda: comma_separated("a,b\nc\n", file, "", 2), file)
    assert "not CSV" in refused(lambda: comma_separated('a,"b\n', file, "", 2), file)


def test_broken_xml(upstream: Upstream) -> None:
    file = upstream.file("a.xml", "")
    assert "not XML" in refused(lambda: xml_of("<a><b></a>", file), file)


def test_ids_used_twice(upstream: Upstream) -> None:
    file = upstream.file("a", "")
    unique([("line 1", 1), ("line 2", 2)], file)
    text = refused(lambda: unique([("line 1", 1), ("line 2", 1)], file), file)
    assert "line 1" in text and "line 2" in text


JNLI = '{"sentence_pair_id": "0", "sentence1": "あ", "sentence2": "い", "label": "neutral"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (JNLI.replace("sentence2", "sentence3"), "'sentence2' is missing"),
        (JNLI.replace('"neutral"', "3"), "'label' holds a int"),
        (JNLI + JNLI, "the id '0' was already used"),
        ("[]\n", "object was expected"),
    ],
)
def test_records_with_missing_or_other_fields(upstream: Upstream, content: str, message: str) -> None:
    file = upstream.file("jnli.json", content)
    assert message in refused(lambda: jglue.jnli({"pool": [file]}), file)


def test_questions_without_answers(upstream: Upstream) -> None:
    squad = upstream.file(
        "squad.json",
        '{"data": [{"paragraphs": [{"context": "", "qas": [{"id": "1", "question": "", "answers": []}]}]}]}',
    )
    assert "data[0].paragraphs[0].qas[0]" in refused(lambda: jglue.jsquad({"pool": [squad]}), squad)
    niilc = upstream.file(
        "niilc.xml", '<questions><question id="N1"><text>q</text><answers/></question></questions>'
    )
    assert "N1" in refused(lambda: qa.niilc({"pool": [niilc]}), niilc)


def test_an_inference_without_hypothesis(upstream: Upstream) -> None:
    file = upstream.file("v.xml", '<d><problem answer="yes"><p><script>前提</script></p></problem></d>')
    assert "problem 1" in refused(lambda: nli.jsem({"all": [file]}), file)
