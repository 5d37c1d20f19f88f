import unicodedata

import pytest
from hypothesis import given

from evalkit.core.errors import InputError
from evalkit.metrics.prediction import gold, prediction
from tests.metrics.texts import texts


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Ａ", "A"),
        ("entailment\n\n### 入力:\n", "entailment"),
        ("entailment\n", "entailment\n"),
        (" entailment", " entailment"),
        ("a\n \nb", "a\n \nb"),
        ("\n\nanswer", ""),
        ("a\r\n\r\nb", "a\r\n\r\nb"),
        ("ﾊﾟﾝ　㌔", "パン キロ"),
        ("a\n\n\nb", "a"),
        ("", ""),
    ],
)
def test_the_protocols_rule(completion: str, expected: str) -> None:
    assert prediction(completion) == expected


@given(texts, texts)
def test_everything_before_the_first_blank_line_in_nfkc(head: str, tail: str) -> None:
    head = head.replace("\n\n", "\n").rstrip("\n")
    assert prediction(f"{head}\n\n{tail}") == unicodedata.normalize("NFKC", head)
    assert gold(head) == unicodedata.normalize("NFKC", head)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (" answer \n", "answer"),
        # The cut comes first: text after a leading blank line never counts.
        ("\n\nanswer", ""),
        ("　答え　\n\n次", "答え"),
        # Strip, then NFKC: a character that becomes a space only then stays one.
        ("¨", " \u0308"),
    ],
)
def test_strip_is_the_rule_of_later_versions(completion: str, expected: str) -> None:
    assert prediction(completion, strip=True) == expected


@pytest.mark.parametrize(
    ("pattern", "completion", "expected"),
    [
        (r"\d+", "答えは12です", "12"),
        (r"答えは(.+?)です", "よって、\n\n答えは１２です。", "12"),
        (r"答えは(.+?)です", "わからない\n\n続き", "わからない"),
        (r"(a)|(b)", "b", ""),
    ],
)
def test_answer_regex_chooses_the_answer(pattern: str, completion: str, expected: str) -> None:
    assert prediction(completion, answer_regex=pattern) == expected


def test_a_broken_regex_is_named() -> None:
    with pytest.raises(InputError, match="answer_regex"):
        prediction("x", answer_regex="(")
