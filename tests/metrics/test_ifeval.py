import json
import os
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalkit.core.errors import InputError
from evalkit.core.reasons import Reason
from evalkit.metrics import ifeval
from evalkit.metrics.ifeval import (
    KINDS,
    Instruction,
    Verdict,
    gold_of,
    passed_by,
    passed_share,
    read_instructions,
    unsatisfiable,
)
from evalkit.metrics.metric import MetricUnavailableError, Mode

MODELS = {
    # Instructions passed, strict and loose, of 226.
    "CohereForAI__aya-23-8B": (79, 87),
    "Qwen__Qwen2.5-1.5B-Instruct-GPTQ-Int4": (64, 72),
    "claude-3-haiku-20240307": (140, 160),
    "o1-mini-2024-09-12": (157, 164),
}
# Without a seed langdetect draws at random: the published verdicts of this instruction may differ.
DRAWN = ("ja:language:response_language", 2)


@pytest.fixture(scope="module")
def published(mirror: Path) -> Path:
    folder = mirror / "mifeval_ja"
    if not folder.is_dir():
        reason = "the mirror has no mifeval_ja"
        if os.environ.get("EVALKIT_REQUIRE_SOURCES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def prompts(published: Path) -> dict[str, tuple[int, tuple[Instruction, ...]]]:
    """Key and instructions by prompt."""
    return {
        row["prompt"]: (
            row["key"],
            read_instructions(row, f"key {row['key']}"),
        )
        for row in rows(published / "ja_input_data.jsonl")
    }


@pytest.mark.sources
@pytest.mark.parametrize("model", MODELS)
def test_every_published_verdict(
    model: str, published: Path, prompts: dict[str, tuple[int, tuple[Instruction, ...]]]
) -> None:
    answers = {row["prompt"]: row["response"] for row in rows(published / "answers" / f"{model}.jsonl")}
    started = time.process_time()
    found = {text: ifeval.verdicts(prompts[text][1], answers[text]) for text in prompts}
    assert time.process_time() - started < 15
    modes: tuple[Mode, Mode] = ("strict", "loose")
    for mode, total in zip(modes, MODELS[model], strict=True):
        verdicts = rows(published / "verdicts" / f"{model}.{mode}.jsonl")
        assert len(verdicts) == len(found) == 172
        different = [
            (verdict.kind, prompts[row["prompt"]][0])
            for row in verdicts
            for verdict, expected in zip(found[row["prompt"]], row["follow_instruction_list"], strict=True)
            if getattr(verdict, mode) != expected
        ]
        assert set(different) <= {DRAWN}
        share, _ = passed_share(list(found.values()), mode, 100)
        assert share * 226 == pytest.approx(total, abs=len(different) + 1e-9)
    kinds = passed_by(chain.from_iterable(found.values()), lambda verdict: verdict.kind)
    assert sum(kind["n"] for kind in kinds.values()) == 226
    assert len(kinds) == 33 == len(KINDS)


@pytest.mark.sources
def test_the_instructions_that_no_answer_can_satisfy(
    prompts: dict[str, tuple[int, tuple[Instruction, ...]]],
) -> None:
    impossible = {
        key: reason
        for key, instructions in prompts.values()
        for instruction in instructions
        if (reason := unsatisfiable(instruction)) is not None
    }
    assert set(impossible) == {41, 44, 146, 148}
    assert impossible[44].fields["texts"] == ("秘密の特訓", "伝説のコーチ", "奇跡の道具")


AT_LEAST, BELOW = "以上", "未満"
# Kind, arguments, answers that pass, answers that fail; by the text of the protocol.
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["夢", "現実"]},
        ["夢と現実を見る。", "現実、夢"],
        ["夢を見る。", "夢中で現実を見る。"],
    ),
    (
        "keywords:frequency",
        {"keyword": " 猫 ", "frequency": 2, "relation": AT_LEAST},
        ["猫と猫", "猫、猫、猫"],
        ["猫がいる。", "猫背の猫"],
    ),
    (
        "keywords:frequency",
        {"keyword": "猫", "frequency": 2, "relation": BELOW},
        ["犬だ。", "猫だ。"],
        ["猫と猫"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["夢", "肌"]},
        ["夢中になる。"],
        ["夢を見る。", "肌だ。"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "か", "let_frequency": 3, "let_relation": AT_LEAST},
        ["かカか", "カカカ"],
        ["かか", "かかガ", "かかｶ"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "か", "let_frequency": 1, "let_relation": BELOW},
        ["が"],
        ["カ"],
    ),
    (
        "language:response_language",
        {"language": "fr"},
        # A detection error (no letter at all) counts as passed.
        ["Bonjour, je suis très heureux de vous rencontrer aujourd'hui.", "12345"],
        ["これは日本語の文章です。", "This is certainly an English sentence."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": AT_LEAST},
        ["a。\n\nb。", "三！四？", "「一。二。」と。三。"],
        ["一。", "これはの\n次。", "「一。二。」"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 4, "relation": BELOW},
        ["一。二。三。"],
        ["一行目\n二行目。三！四？"],
    ),
    ("length_constraints:number_letters", {"num_letters": 3, "relation": AT_LEAST}, ["a b", " a\n"], ["ab"]),
    ("length_constraints:number_letters", {"num_letters": 3, "relation": BELOW}, ["😀😀"], ["あいう"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a***b", "***a\n***\nb***", "a *** b\n***\n"],
        ["a", "a***b***c", "a*** ***b", "***"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "愛"},
        ["一\n\n愛だ。", "一\n\n 「「『愛』。", "一\n\n愛\n\n"],
        # A blank piece is numbered, but not counted.
        ["愛\n\n一", "一\n\n\n\n愛", "一\n\n愛\n\n三", "一\n\n『「愛", "愛"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "Love"},
        ["love", "lovely"],
        ["Love", "LOVE"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[名前] [住所]", "[][]", "[a][b][c]", "[[a][b]"],
        ["[名前]", "[名\n前][b]", "［a］［b］", "[[a]]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["本文\nP.S. 追って", "文中のp. s.です", "P.P.S. x"],
        ["PS. x", "P.S x", "P.  S. x", "追伸"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["p.p.s", "P. P. Sです"],
        ["P.S.", "P.P. .S"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S."},
        ["x p.p.s. y"],
        ["P.P.S", "P. P. S.", "P.P.S：", "pxpxsx"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "追伸"}, ["追伸：x"], ["追 伸"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["・a\n ・b", "x\n・a\n\n\t・b\nx"],
        ["・a", "・a\n・b\n・c", "- a\n- b", "・a\n・・b", "・a ・b"],
    ),
    (
        "detectable_format:number_numbered_lists",
        {"num_items": 2},
        ["1. a\n2. b", " 9. a\n\n１０. b", "1.\ta\n1. b"],
        ["1. a", "1.a\n2.b", "1) a\n2) b", "1. a\n2. b\n3. c", "1． a\n2． b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["はい、そうです。", "えっと、いいえ、違います。です", "どちらとも言えません。"],
        ["はい、そうです", "はい。", "はい、そうです！"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["《a》《b》", "《a》b《c》《 》", "《《a》《b》》"],
        ["《a》《》", "《a》《 　》", "《a\nb》《c》", "*a* *b*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "章", "num_sections": 2},
        ["第1章 a 第２章 b", "第10章\n第1章\n第3章"],
        ["第1章", "第一章 第二章", "第1節 第2節", "第 1 章 第 2 章", "1章 2章"],
    ),
    (
        "detectable_format:json_format",
        {},
        [
            '{"a": 1}',
            "3",
            "NaN",
            '```json\n{"a": [1]}\n```',
            "```\n[]\n```",
            "```Json```JSON[] ```",
            "  []  ",
        ],
        ["{'a': 1}", "```python\n[]\n```", 'x {"a": 1}', "```json\n```json\n[]\n```", "[" * 100_000],
    ),
    (
        "detectable_format:title",
        {},
        ["『春』", "x『春』の『 』", "『』春』", "『 』と『 』", "『『春』"],
        ["『』", "『 』", "「春」", "『春\n』", "『『』』", "『 』\n『』"],
    ),
    (
        "detectable_format:nominal_ending",
        {"count": 2},
        ["静かな夜。美しい月。", "春！夏？", "猫。犬。鳥。"],
        ["静かな夜。", "猫だ。犬だ。", "「猫。」「犬。」", "猫\n犬\n", "。。"],
    ),
    (
        "combination:two_responses",
        {},
        ["a******b", "******a\n******\nb******"],
        ["a", "a******a", "a****** a ", "a******b******c", "a************b", "******a"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": " 山は高い。"},
        ["山は高い。はい。", "\n 山は高い。"],
        ["はい。山は高い。", "山は 高い。", "「山は高い。」"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "「終わり。」\n"},
        ["これで「終わり。", "「終わり。」』」\n", "』『「終わり。』"],
        ["終わり。」", "「終わり。」以上", "「終わり", "「終わり。」**", "「終わり。 」"],
    ),
    (
        "startend:quotation",
        {},
        ["「」", " 「a」\n", "「a」と「b」"],
        ["「", "「a", "a」", "『a』", "「a」。"],
    ),
    (
        "startend:sentence_unified_end",
        {"ending": "です"},
        ["春です。夏です！秋です", "「冬だ。」です。", "。", "「春だ。」『夏だ。』"],
        # A newline after the last full stop is a piece of its own.
        ["春です。夏だ。", "春です。\n", "春です。 夏です ", "「春\n。」です。"],
    ),
    (
        "letters:furigana",
        {},
        ["山（やま）と川（かわ）", "ひらがな", "登山（とざん）"],
        ["山(やま)", "山（ヤマ）", "山（やま）川", "山", "山（やまー）"],
    ),
    ("letters:kanji", {"kanji_limit": 2, "relation": AT_LEAST}, ["山川", "山a川"], ["山", "山々"]),
    ("letters:kanji", {"kanji_limit": 1, "relation": BELOW}, ["ひら", "㐀"], ["山"]),
    ("letters:no_hiragana", {}, ["漢字カナ、ー。", "ゝ゛"], ["あ", "漢ゖ", "ぁ"]),
    ("letters:hiragana_only", {}, ["ひらがなー、1!。\n😀", "を"], ["ひらガ", "あ漢", "ゔ", "a", "々"]),
    ("letters:no_katakana", {}, ["ひらー・漢", "ヽヾ"], ["ア", "ヺ", "ｱ", "ｦ", "ﾟ", "ァ"]),
    ("letters:katakana_only", {}, ["カタカナー・、1。", "ｶﾀﾅ"], ["カあ", "ヴ", "漢", "ヵ", "a"]),
    ("letters:kansuuji", {}, ["三つ", "①Ⅳ"], ["3つ", "３つ", "٣"]),
    ("punctuation:no_period", {}, ["a.b．", "｡"], ["a。"]),
    ("punctuation:no_comma", {}, ["a,b，", "､"], ["a、"]),
]


def record(kinds: Any, arguments: Any) -> dict[str, Any]:
    return {"instruction_id_list": kinds, "kwargs": arguments}


def strict(kind: str, arguments: dict[str, Any], answer: str) -> Verdict:
    (instruction,) = read_instructions(record([f"ja:{kind}"], [arguments]), "test")
    (verdict,) = ifeval.verdicts([instruction], answer)
    return verdict


@pytest.mark.parametrize(
    ("kind", "arguments", "answer", "expected"),
    [
        (kind, arguments, answer, expected)
        for kind, arguments, passing, failing in CASES
        for expected, answers in ((True, passing), (False, failing))
        for answer in answers
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_the_edges_of_each_kind(kind: str, arguments: dict[str, Any], answer: str, expected: bool) -> None:
    verdict = strict(kind, arguments, answer)
    assert verdict.strict is expected, verdict.reason
    assert verdict.loose or not expected
    assert str(verdict.reason)


def test_each_kind_has_cases() -> None:
    assert {f"ja:{kind}" for kind, *_ in CASES} == set(KINDS)


def test_the_variants_of_a_loose_verdict() -> None:
    texts = {"": " *a\nb*\n*c ", **ifeval.variants(" *a\nb*\n*c ")}
    assert texts == {
        "": " *a\nb*\n*c ",
        "*": " a\nb\nc ",
        "the first line": "b*\n*c",
        "the last line": "*a\nb*",
        "the first and the last line": "b*",
        "the first line and *": "b\nc",
        "the last line and *": "a\nb",
        "the first and the last line and *": "b",
    }


@pytest.mark.parametrize(
    ("answer", "removed"),
    [
        ("**「a」**", "*"),
        ("はい\n「a」", "the first line"),
        ("「a」\nはい", "the last line"),
        ("はい\n「a」\nはい", "the first and the last line"),
        ("はい\n*「a」*", "the first line and *"),
        ("「a」*\nはい", "the last line and *"),
        ("はい\n*「a」*\nはい", "the first and the last line and *"),
    ],
)
def test_a_loose_verdict_says_what_was_removed(answer: str, removed: str) -> None:
    verdict = strict("startend:quotation", {}, answer)
    assert (verdict.strict, verdict.loose, verdict.removed) == (False, True, removed)


@pytest.mark.parametrize("answer", [None, "", " \n　", "はい"])
def test_what_passes_in_no_variant(answer: str | None) -> None:
    (verdict,) = ifeval.verdicts([Instruction("ja:startend:quotation", {})], answer)
    assert (verdict.strict, verdict.loose, verdict.removed) == (False, False, "")


def test_a_missing_or_blank_answer_fails_what_every_text_passes() -> None:
    for answer in (None, "\n \n"):
        (verdict,) = ifeval.verdicts([Instruction("ja:punctuation:no_comma", {})], answer)
        assert not verdict.strict and not verdict.loose
    # No variant of it is blank but the answer without its only line of text.
    assert strict("punctuation:no_comma", {}, "a、\n").loose is False


def test_reasons_are_data() -> None:
    reason = strict("detectable_format:number_bullet_lists", {"num_bullets": 4}, "・a\n・b\n・c").reason
    assert reason == "found 3, wanted exactly 4"
    assert reason.fields["found"] == "3"
    assert isinstance(reason.fields["wanted"], Reason)
    assert strict("letters:kanji", {"kanji_limit": 4, "relation": AT_LEAST}, "山").reason == (
        "found 1, wanted at least 4"
    )
    assert strict("keywords:existence", {"keywords": ["夢", "空"]}, "夢").reason == (
        "not among the tokens of the answer: 空"
    )
    assert strict("punctuation:no_comma", {}, "a、b、").reason == "found 、, wanted none"


@pytest.mark.parametrize(
    ("kind", "arguments", "impossible"),
    [
        ("keywords:existence", {"keywords": ["創造性"]}, True),
        ("keywords:existence", {"keywords": ["創造", "性"]}, False),
        ("keywords:frequency", {"keyword": "色落ち", "frequency": 1, "relation": AT_LEAST}, True),
        ("keywords:frequency", {"keyword": "色落ち", "frequency": 1, "relation": BELOW}, False),
        ("keywords:frequency", {"keyword": "色落ち", "frequency": 0, "relation": AT_LEAST}, False),
        ("keywords:forbidden_words", {"forbidden_words": ["色落ち"]}, False),
        ("letters:kanji", {"kanji_limit": 0, "relation": BELOW}, True),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "愛"},
            True,
        ),
    ],
)
def test_unsatisfiable_is_derived(kind: str, arguments: dict[str, Any], impossible: bool) -> None:
    assert (strict(kind, arguments, "創造性と色落ち").unsatisfiable is not None) is impossible


# --- bad input --------------------------------------------------------------------------------------


def test_null_arguments_count_as_absent() -> None:
    given = {"num_bullets": 3, "keywords": None, "unknown": None}
    assert read_instructions(record(["ja:detectable_format:number_bullet_lists"], [given]), "x") == (
        Instruction("ja:detectable_format:number_bullet_lists", {"num_bullets": 3}),
    )
    assert read_instructions(record(["ja:punctuation:no_comma"], [None]), "x")[0].arguments == {}


@pytest.mark.parametrize(
    ("kinds", "arguments", "words"),
    [
        ("ja:punctuation:no_comma", [{}], ["instruction_id_list"]),
        ([], [], ["instruction_id_list"]),
        ([3], [{}], ["instruction_id_list"]),
        (["ja:punctuation:no_comma"], {}, ["kwargs", "1 objects"]),
        (["ja:punctuation:no_comma"], [], ["kwargs", "1 objects"]),
        (["ja:punctuation:no_comma"], ["x"], ["kwargs", "ja:punctuation:no_comma"]),
        (["ja:punctuation:no_coma"], [{}], ["'ja:punctuation:no_coma'", "no_comma", "docs/metrics.md"]),
        (["en:punctuation:no_comma"], [{}], ["unknown kind", "'en:punctuation:no_comma'"]),
        (
            ["ja:letters:kanji"],
            [{"kanji_limit": 3}],
            ["ja:letters:kanji", "'relation'", "missing", "以上 未満"],
        ),
        (["ja:letters:kanji"], [{"kanji_limit": 3, "relation": "以下"}], ["'relation' is '以下'"]),
        (["ja:letters:kanji"], [{"kanji_limit": "3", "relation": "以上"}], ["'kanji_limit' is '3'", "whole"]),
        (["ja:letters:kanji"], [{"kanji_limit": True, "relation": "以上"}], ["'kanji_limit' is True"]),
        (["ja:letters:kanji"], [{"kanji_limit": -1, "relation": "以上"}], ["'kanji_limit' is -1"]),
        (["ja:letters:kanji"], [{"kanji_limit": 3.0, "relation": "以上"}], ["'kanji_limit' is 3.0"]),
        (["ja:keywords:existence"], [{"keywords": "夢"}], ["'keywords' is '夢'", "list"]),
        (["ja:keywords:existence"], [{"keywords": ["夢", ""]}], ["'keywords'"]),
        (["ja:keywords:existence"], [{"keywords": []}], ["'keywords' is []"]),
        (["ja:keywords:existence"], [{"keyword": "夢"}], ["no argument 'keyword'", "keywords"]),
        (["ja:punctuation:no_comma"], [{"count": 1}], ["no argument 'count'", "none", "null"]),
        (["ja:startend:end_checker"], [{"end_phrase": " "}], ["'end_phrase'", "blank"]),
        (["ja:language:response_language"], [{"language": "zh"}], ["'zh'", "zh-cn"]),
        (
            ["ja:keywords:letter_frequency"],
            [{"letter": "カ", "let_frequency": 1, "let_relation": "以上"}],
            ["'letter' is 'カ'", "hiragana"],
        ),
        (
            ["ja:length_constraints:nth_paragraph_first_word"],
            [{"num_paragraphs": 1, "nth_paragraph": 0, "first_word": "愛"}],
            ["'nth_paragraph' is 0", "1 or more"],
        ),
    ],
)
def test_bad_instructions_are_named(kinds: Any, arguments: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        read_instructions(record(kinds, arguments), "own.jsonl, key 7")
    for word in ("own.jsonl, key 7", *words):
        assert word in str(error.value)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "janome.tokenizer", None)
    ifeval._tokenizer.cache_clear()
    ifeval._tokens.cache_clear()
    with pytest.raises(MetricUnavailableError, match=r"pip install 'evalkit\[ifeval\]'"):
        strict("keywords:forbidden_words", {"forbidden_words": ["夢"]}, "現実")
    # What needs no package is checked all the same.
    assert strict("punctuation:no_comma", {}, "a").strict


# --- scores -----------------------------------------------------------------------------------------


def given(kind: str, strict: bool, loose: bool, impossible: bool = False) -> Verdict:
    reason = Reason("x")
    return Verdict(kind, strict, loose, reason, "", reason if impossible else None)


def test_shares_and_their_parts() -> None:
    a, b = "ja:letters:kanji", "ja:letters:furigana"
    prompts = [
        [given(a, True, True), given(b, False, True)],
        [given(a, True, True)],
        [given(b, False, False, impossible=True)],
    ]
    assert passed_share(prompts, "strict", 100)[0] == 2 / 4
    assert passed_share(prompts, "loose", 100)[0] == 3 / 4
    every = [verdict for prompt in prompts for verdict in prompt]
    assert passed_by(every, lambda verdict: verdict.kind) == {
        b: {"strict": 0, "loose": 1, "n": 2},
        a: {"strict": 2, "loose": 2, "n": 2},
    }
    assert passed_by(every, lambda verdict: "all") == {"all": {"strict": 2, "loose": 3, "n": 4}}


def test_intervals_resample_prompts() -> None:
    # Two equal verdicts in one prompt tell no more than one: the interval must not shrink.
    verdict = [given("ja:letters:kanji", index % 3 > 0, True) for index in range(60)]
    single, spread = passed_share([[v] for v in verdict], "strict", 2000)
    double, same = passed_share([[v, v] for v in verdict], "strict", 2000)
    assert single == double == pytest.approx(2 / 3)
    assert spread.interval == same.interval
    # The normal approximation of the same interval.
    half = 1.96 * np.sqrt(2 / 9 / 60)
    assert spread.interval == pytest.approx((2 / 3 - half, 2 / 3 + half), abs=0.02)
    # All equal: a bootstrap says nothing.
    _, flat = passed_share([[v] for v in verdict], "loose", 2000)
    assert flat.interval is None and flat.carried is not None


def test_a_gold_answer_keeps_the_arguments_that_are_given() -> None:
    given = {"key": 3, "prompt": "x", **record(["ja:letters:kansuuji"], [{"count": None}])}
    text = gold_of(given, "line 3")
    assert text == '{"instruction_id_list":["ja:letters:kansuuji"],"key":3,"kwargs":[{}]}'
    assert read_instructions(json.loads(text), "sample 3") == (Instruction("ja:letters:kansuuji", {}),)
    for broken in (3, "entailment", {"kwargs": []}):
        with pytest.raises(InputError, match="sample 3"):
            read_instructions(broken, "sample 3")
