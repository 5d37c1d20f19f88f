import json
import re
import unicodedata
from fractions import Fraction
from itertools import pairwise

import pytest

from evalkit.core import assets
from evalkit.core.types import Sample
from evalkit.tasks.load import Task, load_bundled
from evalkit.tasks.spec import AnswerKind, load_spec
from tests.scored import JASTER

KANJI_OR_KANA = r"[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff]"

NLI = r"前提：[^\n]+\n仮説：[^\n]+"
QUESTION = r"質問：[^\n]+[？。]"
PLAIN = r"[^\n]+"
SENTENCES = r"([^\n。]+。)+"

# The input of each dataset, as its conversion in llm-jp-eval v1.3.1 writes it.
INPUTS = {
    "alt-e-to-j": r"[A-Z][ -~]+\.",
    "alt-j-to-e": SENTENCES,
    "chabsa": r"文章：[^\n。]+",
    "jamp": NLI,
    "janli": r"前提：[^\n。]+\n仮説：[^\n。]+",
    "jcommonsenseqa": QUESTION + r"\n選択肢：" + ",".join(rf"{n}\.[^,\s]+" for n in range(5)),
    "jemhopqa": QUESTION,
    "jmmlu": QUESTION + r"\n選択肢：" + ",".join(rf"{letter}\.[^,\s]+" for letter in "ABCD"),
    "jnli": NLI,
    "jsem": NLI,
    "jsick": r"前提：[^\n。]+\n仮説：[^\n。]+",
    "jsquad": r"文章：(?P<title>[^\n]+) \[SEP\] (?P<context>[^\n]+。)\n質問：[^\n]+？",
    "jsts": r"文1：[^\n]+。\n文2：[^\n]+。",
    "mawps": r"問題：[^\n]+？",
    "mmluen": r"Qusetion: [ -~]+\?\nChoices: " + ", ".join(rf"{letter}\.[^,]+" for letter in "ABCD"),
    "niilc": QUESTION,
    "wiki_coreference": SENTENCES,
    "wiki_dependency": SENTENCES,
    "wiki_ner": SENTENCES,
    "wiki_pas": SENTENCES,
    "wiki_reading": SENTENCES,
    "wikicorpus-e-to-j": r"[A-Z][ -~]+\.",
    "wikicorpus-j-to-e": SENTENCES,
}

NER_KINDS = ("組織名", "人名", "地名", "固有物名", "日付表現", "時刻表現", "金額表現", "割合表現")
CASES = ("ガ", "デ", "ト", "ニ", "ヘ", "ヲ", "カラ", "マデ", "ヨリ")
LABEL_TASKS = [name for name in JASTER if load_spec(name).answer.kind is AnswerKind.label]
TO_JAPANESE = ["alt-e-to-j", "wikicorpus-e-to-j"]
TO_ENGLISH = ["alt-j-to-e", "wikicorpus-j-to-e"]

# What each word problem asks for, written down again from its text.
SUMS = {
    "健太はりんごを8個": Fraction(8 - 3),
    "1袋にあめが12個": Fraction(12 * 4),
    "1本1.5リットル": Fraction("1.5") * 5,
    "36枚のクッキー": Fraction(36, 9),
    "美咲は貝殻を27個": Fraction(27 + 15),
    "バスに41人": Fraction(41 - 18 + 6),
    "1冊120円のノート": Fraction(500 - 120 * 3),
    "花壇にチューリップ": Fraction(7 * 14),
    "長さ10メートルのひも": 10 - Fraction("2.4"),
    "鉛筆が75本": Fraction(75, 5),
}


def bundled(name: str) -> Task:
    return load_bundled(load_spec(name))


def items(name: str) -> tuple[Sample, ...]:
    task = bundled(name)
    return task.few_shots + task.samples


def full_match(pattern: str, text: str) -> re.Match[str]:
    match = re.fullmatch(pattern, text)
    assert match, f"{text!r} is not of the form {pattern!r}"
    return match


def test_every_task_has_its_items_and_there_are_no_others() -> None:
    assert sorted(path.stem for path in assets.SAMPLES.iterdir()) == JASTER == sorted(INPUTS)


@pytest.mark.parametrize("name", JASTER)
def test_the_file_is_written_in_the_one_form(name: str) -> None:
    text = (assets.SAMPLES / f"{name}.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert list(content) == ["few_shots", "samples"]
    assert all(list(row) == ["input", "output"] for rows in content.values() for row in rows)
    assert text == json.dumps(content, ensure_ascii=False, indent=2) + "\n"


@pytest.mark.parametrize("name", JASTER)
def test_four_few_shots_and_six_samples_that_all_differ(name: str) -> None:
    task = bundled(name)
    assert (len(task.few_shots), len(task.samples)) == (4, 6)
    assert len({item.input for item in items(name)}) == 10


@pytest.mark.parametrize("name", JASTER)
def test_inputs_have_the_form_of_the_dataset(name: str) -> None:
    for item in items(name):
        full_match(INPUTS[name], item.input)


@pytest.mark.parametrize("name", JASTER)
def test_texts_are_clean_and_short(name: str) -> None:
    for item in items(name):
        for text in (item.input, item.gold):
            assert unicodedata.is_normalized("NFC", text)
            assert text and all(line and line == line.strip() for line in text.split("\n"))
        # A demo on a small machine asks all of them.
        assert len(item.input) <= 130 and len(item.gold) <= 100


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_golds_are_labels_and_no_label_answers_them_all(name: str) -> None:
    task = bundled(name)
    for part in (task.few_shots, task.samples):
        golds = [item.gold for item in part]
        assert set(golds) <= set(task.spec.answer.labels)
        assert max(golds.count(gold) for gold in golds) <= len(golds) / 2


@pytest.mark.parametrize("name", ["jcommonsenseqa", "jmmlu", "mmluen"])
def test_choices_differ(name: str) -> None:
    for item in items(name):
        choices = re.split(r", ?", item.input.split("\n")[1].split(".", 1)[1])
        texts = [re.sub(r"^[0-9A-D]\.", "", choice) for choice in choices]
        assert len(set(texts)) == len(texts) == (5 if name == "jcommonsenseqa" else 4)


def test_mawps_golds_are_the_results_of_their_sums() -> None:
    problems = {item.input.removeprefix("問題："): item.gold for item in items("mawps")}
    for start, result in SUMS.items():
        (gold,) = (gold for problem, gold in problems.items() if problem.startswith(start))
        assert Fraction(gold) == result, start
    assert len(SUMS) == len(problems)


def test_jsts_golds_are_single_precision_scores_from_0_to_5() -> None:
    np = pytest.importorskip("numpy")
    for item in items("jsts"):
        score = float(item.gold)
        assert 0.0 <= score <= 5.0
        assert str(float(np.float32(round(score, 1)))) == item.gold


def test_jsts_samples_have_a_correlation() -> None:
    assert len({item.gold for item in bundled("jsts").samples}) > 2


def test_jsquad_golds_stand_in_the_context() -> None:
    for item in items("jsquad"):
        assert item.gold in full_match(INPUTS["jsquad"], item.input)["context"]


def test_jemhopqa_has_both_yes_and_no_and_names() -> None:
    for part in (bundled("jemhopqa").few_shots, bundled("jemhopqa").samples):
        golds = {item.gold for item in part}
        assert {"YES", "NO"} < golds


def test_niilc_answers_are_joined_with_a_bare_comma() -> None:
    golds = [item.gold for item in items("niilc")]
    assert all(full_match(r"[^,、\s]+(,[^,、\s]+)*", gold) for gold in golds)
    assert any("," in gold for gold in golds[:4]) and any("," in gold for gold in golds[4:])


def test_chabsa_targets_stand_in_the_sentence_with_each_polarity() -> None:
    for part in (bundled("chabsa").few_shots, bundled("chabsa").samples):
        polarities = set()
        for item in part:
            sentence = item.input.removeprefix("文章：")
            for line in item.gold.split("\n"):
                match = full_match(r"(\S+) (positive|neutral|negative)", line)
                assert match[1] in sentence
                polarities.add(match[2])
        assert polarities == {"positive", "neutral", "negative"}


@pytest.mark.parametrize("name", TO_JAPANESE)
def test_translations_into_japanese(name: str) -> None:
    for item in items(name):
        full_match(SENTENCES, item.gold)
        assert re.search(KANJI_OR_KANA, item.gold)


@pytest.mark.parametrize("name", TO_ENGLISH)
def test_translations_into_english(name: str) -> None:
    for item in items(name):
        full_match(r"[A-Z][ -~]+\.", item.gold)
        assert re.search(KANJI_OR_KANA, item.input)


@pytest.mark.parametrize("name", TO_JAPANESE + TO_ENGLISH)
def test_translations_keep_the_digits_of_years_and_days(name: str) -> None:
    for item in items(name):
        for number in re.findall(r"\d{3,}", item.input):
            assert number in item.gold


def test_wiki_reading_is_hiragana_and_the_same_punctuation() -> None:
    marks = "、。『』「」"
    for item in items("wiki_reading"):
        full_match(rf"[\u3041-\u3096ー{marks}]+", item.gold)
        assert [c for c in item.gold if c in marks] == [c for c in item.input if c in marks]


def test_wiki_reading_keeps_the_kana_of_the_text_in_order() -> None:
    for item in items("wiki_reading"):
        kana = [_hiragana(c) for c in item.input if re.match(r"[\u3041-\u3096\u30a1-\u30f6ー]", c)]
        rest = iter(item.gold)
        assert all(c in rest for c in kana), item.gold


def _hiragana(character: str) -> str:
    return chr(ord(character) - 0x60) if "\u30a1" <= character <= "\u30f6" else character


def test_wiki_ner_entities_stand_in_the_text_in_order() -> None:
    kinds = "|".join(NER_KINDS)
    seen = set()
    for item in items("wiki_ner"):
        end = 0
        for entity in item.gold.split(" "):
            match = full_match(rf"([^（）]+)（({kinds})）", entity)
            start = item.input.find(match[1], end)
            assert start >= 0, entity
            end = start + len(match[1])
            seen.add(match[2])
    assert seen == set(NER_KINDS)


def test_wiki_dependency_phrases_make_up_the_sentence() -> None:
    for item in items("wiki_dependency"):
        assert item.input.count("。") == 1
        pairs = [full_match(r"(\S+) -> (\S+)", line).groups() for line in item.gold.split("\n")]
        dependents = [dependent for dependent, _ in pairs]
        phrases = [*dependents, pairs[-1][1]]
        assert "".join(phrases) == item.input
        for position, (_, head) in enumerate(pairs):
            assert head in phrases[position + 1 :]


def test_wiki_dependency_arcs_do_not_cross() -> None:
    for item in items("wiki_dependency"):
        pairs = [line.split(" -> ") for line in item.gold.split("\n")]
        phrases = [*(dependent for dependent, _ in pairs), pairs[-1][1]]
        assert len(set(phrases)) == len(phrases)
        arcs = [(phrases.index(dependent), phrases.index(head)) for dependent, head in pairs]
        assert not any(a < c < b < d for a, b in arcs for c, d in arcs)


def test_wiki_pas_lines_hold_a_predicate_and_cases_of_the_text() -> None:
    cases = "|".join(CASES)
    for item in items("wiki_pas"):
        ends = []
        for line in item.gold.split("\n"):
            predicate, *arguments = line.split(" ")
            assert predicate in item.input and arguments
            ends.append(item.input.index(predicate))
            found = [full_match(rf"({cases})：(\S+)", argument) for argument in arguments]
            assert all(match[2] in item.input for match in found)
            order = [CASES.index(match[1]) for match in found]
            assert order == sorted(order)
        assert all(first < second for first, second in pairwise(ends))


def test_wiki_coreference_phrases_stand_in_the_text_in_order() -> None:
    for item in items("wiki_coreference"):
        starts = []
        for line in item.gold.split("\n"):
            phrases = line.split(" ")
            assert len(phrases) > 1
            starts.append(item.input.index(phrases[0]))
            end = 0
            for phrase in phrases:
                start = item.input.find(phrase, end)
                assert start >= 0, f"{phrase!r} in {item.input!r}"
                end = start + len(phrase)
        assert starts == sorted(starts)
