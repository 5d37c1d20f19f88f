import copy
import json
import pickle

import pytest

from evalkit.core.reasons import Reason, sentences_in, with_sentences

INNER = Reason("{n} samples", n=3)
REASON = Reason("{name} is missing: {why}", name="jamp", why=(INNER, "no network"))


def test_a_reason_is_its_text() -> None:
    assert REASON == "jamp is missing: 3 samples; no network"
    assert REASON in ["jamp is missing: 3 samples; no network"]
    assert json.loads(json.dumps([REASON])) == ["jamp is missing: 3 samples; no network"]


@pytest.mark.parametrize("copied", [copy.deepcopy(REASON), pickle.loads(pickle.dumps(REASON))])
def test_a_copy_keeps_template_and_fields(copied: Reason) -> None:
    assert copied == REASON and copied.template == REASON.template and copied.fields == REASON.fields
    assert isinstance(copied.fields["why"][0], Reason)


def test_fields_are_put_in_once_and_braces_of_values_stay() -> None:
    assert Reason("{a} and {b}", a="{b}", b="x") == "{b} and x"
    assert Reason("{a} {unknown}", a="{0.__class__}") == "{0.__class__} {unknown}"


def test_reasons_come_back_from_json() -> None:
    content = {"partial": {"reasons": [REASON, "by hand"]}, "n": 1}
    kept = json.loads(json.dumps({**content, "sentences": sentences_in(content)}))
    back = with_sentences(kept, kept["sentences"])["partial"]["reasons"]
    assert back == [REASON, "by hand"]
    assert back[0].template == REASON.template and back[0].fields["why"][0].fields == {"n": "3"}
    assert not isinstance(back[1], Reason)


@pytest.mark.parametrize(
    "sentences",
    [
        None,
        [],
        "x",
        {"a": None},
        {"a": {"template": 3}},
        {"a": {"template": "b", "fields": {}}},
        {"a": {"template": "{x}", "fields": {"x": [[{}], 3]}}},
        {"a": {"template": "a", "fields": [1]}},
    ],
)
def test_data_that_does_not_fit_is_left_aside(sentences: object) -> None:
    (text,) = with_sentences(["a"], sentences)
    assert text == "a" and not isinstance(text, Reason)
